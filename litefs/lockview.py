"""SQLite's locks on the databases of the mount, as the kernel's table of locks shows them (proc_locks(5))."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from litefs.sqlite import locks

_DATABASE = {
    "pending": (locks.PENDING, 1),
    "reserved": (locks.RESERVED, 1),
    "shared": (locks.SHARED_FIRST, locks.SHARED_SIZE),
}
_SHM = {
    "write": (locks.SHM_WRITE, 1),
    "ckpt": (locks.SHM_CKPT, 1),
    "recover": (locks.SHM_RECOVER, 1),
    **{f"read{mark}": (locks.read_lock(mark), 1) for mark in range(locks.SHM_READ_COUNT)},
    "dms": (locks.SHM_DMS, 1),
}

_Held = dict[tuple[int, int, int], list[tuple[int, int, bool]]]
"""By device (major, minor) and inode: first and last byte, and whether it is for writing."""


def _table(text: str) -> _Held:
    """Locks that are granted: ``1: POSIX  ADVISORY  WRITE 1877 00:27:5 1073741826 1073742335``."""
    held: _Held = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) != 8 or fields[1] not in ("POSIX", "OFDLCK"):
            continue
        major, minor, inode = fields[5].split(":")
        last = sys.maxsize if fields[7] == "EOF" else int(fields[7])
        lock = int(fields[6]), last, fields[3] == "WRITE"
        held.setdefault((int(major, 16), int(minor, 16), int(inode)), []).append(lock)
    return held


def _states(held: _Held, path: Path, ranges: dict[str, tuple[int, int]]) -> dict[str, str]:
    try:
        stat = os.stat(path)
        found = held.get((os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino), [])
    except OSError:
        found = []
    states = {}
    for name, (first, size) in ranges.items():
        writing = [write for begin, end, write in found if begin < first + size and end >= first]
        states[name] = "exclusive" if any(writing) else "shared" if writing else "unlocked"
    return states


def held_locks(mountpoint: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """By database: each of SQLite's locks, "unlocked", "shared" or "exclusive", whoever has it.

    Looks at files of the mount, and blocks as long as that does: for a worker thread. Locks of processes in
    a pid namespace beside ours are not seen. Raises OSError.
    """
    held = _table(Path("/proc/locks").read_text(encoding="ascii"))
    return {
        name: {
            **_states(held, mountpoint / name, _DATABASE),
            **_states(held, mountpoint / f"{name}-shm", _SHM),
        }
        for name in names
    }
