"""The kernel's lock table: which lines tell of an EXCLUSIVE lock."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from litefs.fs.locktable import LockTable
from litefs.sqlite.locks import SHARED_FIRST, SHARED_SIZE


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"1: POSIX  ADVISORY  WRITE 1 00:2b:7 1073741826 1073742335", True),
        (b"1: POSIX  ADVISORY  WRITE 1 00:2b:7 1073741824 1073742335", True),
        (b"1: OFDLCK ADVISORY  WRITE -1 00:2b:7 0 EOF", True),
        (b"1: POSIX  ADVISORY  READ 1 00:2b:7 1073741826 1073742335", False),
        (b"1: POSIX  ADVISORY  WRITE 1 00:2b:7 1073741824 1073741825", False),
        (b"1: FLOCK  ADVISORY  WRITE 1 00:2b:7 0 EOF", False),
        (b"1: -> POSIX  ADVISORY  WRITE 1 00:2b:7 1073741826 1073742335", False),
        (b"1: POSIX  ADVISORY  WRITE 1 00:2b:71 1073741826 1073742335", False),
        (b"1: POSIX  ADVISORY  WRITE 1 00:2c:7 1073741826 1073742335", False),
        (b"", False),
    ],
)
def test_lines(tmp_path: Path, line: bytes, expected: bool) -> None:
    path = tmp_path / "locks"
    path.write_bytes(b"1: POSIX  ADVISORY  READ 1 00:2b:7 1073741824 1073741824\n" + line + b"\n")
    table = LockTable(0x2B, str(path))
    assert table.exclusive_held(7) is expected
    table.close()


def test_a_lock_of_ours_is_seen_among_many() -> None:
    """So many that the kernel gives its table in pieces."""
    first = os.memfd_create("locked")
    fds = [first] + [os.open(f"/proc/self/fd/{first}", os.O_RDWR) for _ in range(200)]
    lock = struct.Struct("hhqqi4x")  # struct flock
    try:
        status = os.fstat(first)
        assert os.major(status.st_dev) == 0
        table = LockTable(os.minor(status.st_dev))
        for number, fd in enumerate(fds[1:]):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock.pack(fcntl.F_WRLCK, os.SEEK_SET, number * 2, 1, 0))
        assert not table.exclusive_held(status.st_ino)
        request = lock.pack(fcntl.F_WRLCK, os.SEEK_SET, SHARED_FIRST, SHARED_SIZE, 0)
        fcntl.fcntl(first, fcntl.F_OFD_SETLK, request)
        assert table.exclusive_held(status.st_ino)
        assert not table.exclusive_held(status.st_ino + 1)
        table.close()
    finally:
        for fd in fds:
            os.close(fd)
