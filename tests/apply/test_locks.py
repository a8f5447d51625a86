"""OFD locks against a POSIX lock of another process, which is what SQLite takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litefs.apply import locks

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
kind = fcntl.LOCK_EX if sys.argv[2] == "exclusive" else fcntl.LOCK_SH
fcntl.lockf(file, kind | fcntl.LOCK_NB, 10, 100)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"")
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    locks.close(fd)


def holder(path: Path, kind: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_posix_lock_in_another_process_conflicts(path: Path, fd: int) -> None:
    with holder(path, "shared") as process:
        assert not locks.is_free(fd, 100, 10)
        assert locks.is_free(fd, 110, 10)
        assert not locks.try_exclusive(fd, 95, 10), "a range is had whole or not at all"
        assert locks.is_free(fd, 95, 5)
        assert locks.try_shared(fd, 100, 10)
        assert not locks.try_exclusive(fd, 100, 10)
        process.communicate(timeout=10)
    assert locks.try_exclusive(fd, 100, 10), "upgrades what it held shared"


def test_our_lock_keeps_a_posix_lock_out_until_it_is_given_up(path: Path, fd: int) -> None:
    assert locks.try_exclusive(fd, 104)
    command = [sys.executable, "-c", HOLDER, str(path), "exclusive"]
    refused = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    assert b"BlockingIOError" in refused.stderr
    locks.unlock(fd, 104)
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True)


def test_two_open_files_of_one_process_conflict(path: Path, fd: int) -> None:
    other = os.open(path, os.O_RDWR)
    try:
        with locks.exclusive(fd, 7, timeout=0):
            assert not locks.is_free(other, 7)
            assert not locks.try_shared(other, 7)
        assert locks.try_shared(other, 7)
        assert locks.is_free(other, 7), "one's own lock is no obstacle"
        assert not locks.is_free(fd, 7)
    finally:
        locks.close(other)
    assert locks.is_free(fd, 7), "closing a file gives its locks up"


def test_waiting_ends_at_its_deadline(path: Path, fd: int) -> None:
    other = os.open(path, os.O_RDWR)
    try:
        assert locks.try_exclusive(other, 7)
        begun = time.monotonic()
        with pytest.raises(locks.LockTimeout, match=r"bytes 7\.\.8"):
            locks.wait_exclusive(fd, 7, 2, timeout=0.05)
        with pytest.raises(locks.LockTimeout), locks.exclusive(fd, 7, timeout=0.01):
            pytest.fail("held by another")
        assert time.monotonic() - begun < 5
    finally:
        locks.close(other)
    locks.wait_shared(fd, 7, timeout=0)


def test_the_block_gives_its_lock_up_when_it_raises(path: Path, fd: int) -> None:
    other = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(ZeroDivisionError), locks.exclusive(fd, 7, timeout=0):
            raise ZeroDivisionError
        assert locks.is_free(other, 7)
    finally:
        locks.close(other)
