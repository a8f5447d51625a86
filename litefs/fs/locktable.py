"""Which locks the kernel holds for clients on files of the mount.

The fs process never sees them: the kernel keeps POSIX and OFD locks of this mount itself. ``/proc/locks``
shows them (proc_locks(5)), except POSIX locks of processes in a pid namespace that is not ours or below it.
"""

from __future__ import annotations

import os
import sys

from litefs.sqlite.locks import SHARED_FIRST, SHARED_SIZE

_CHUNK = 1 << 16
_LOOKS = 3
"""How often a table is read that comes in several pieces: between two of them locks that end move others, and
one may be overlooked.
"""


class LockTable:
    """The kernel's lock table, restricted to one mount."""

    def __init__(self, minor: int, path: str = "/proc/locks") -> None:
        """``minor``: device minor of the mount. Raises OSError."""
        self._minor = minor
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def exclusive_held(self, ino: int) -> bool:
        """Whether a write lock covers SQLite's shared range of that inode: EXCLUSIVE. Raises OSError."""
        return any(
            first <= SHARED_FIRST and last >= SHARED_FIRST + SHARED_SIZE - 1
            for _, first, last in self._write_locks(ino)
        )

    def writers(self, ino: int, first: int, last: int) -> set[int]:
        """Processes with a write lock on any byte from ``first`` to ``last`` of that inode; -1 for a lock
        that belongs to an open file. Raises OSError."""
        return {pid for pid, begin, end in self._write_locks(ino) if begin <= last and end >= first}

    def _write_locks(self, ino: int) -> list[tuple[int, int, int]]:
        """(process, first byte, last byte) of each write lock on that inode."""
        file = b" 00:%02x:%d " % (self._minor, ino)
        for _ in range(_LOOKS):
            table, pieces = self._read()
            if file in table:
                found = [lock for line in table.splitlines() if (lock := _write_lock(line, file))]
                if found or pieces == 1:
                    return found
            elif pieces == 1:
                break
        return []

    def close(self) -> None:
        os.close(self._fd)

    def _read(self) -> tuple[bytes, int]:
        parts: list[bytes] = []
        offset = 0
        while part := os.pread(self._fd, _CHUNK, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts), max(1, len(parts))


def _write_lock(line: bytes, file: bytes) -> tuple[int, int, int] | None:
    """(process, first byte, last byte) if a line tells of a write lock on that file, granted, not waited for.

    ``1: POSIX  ADVISORY  WRITE 1877 00:27:5 1073741826 1073742335``; ``->`` stands before those who wait.
    """
    if file not in line:
        return None
    fields = line.split()
    if len(fields) != 8 or fields[1] not in (b"POSIX", b"OFDLCK") or fields[3] != b"WRITE":
        return None
    return int(fields[4]), int(fields[6]), sys.maxsize if fields[7] == b"EOF" else int(fields[7])
