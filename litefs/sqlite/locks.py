"""The bytes that SQLite locks, and the ranges they form.

Sources: os.h (database file), wal.c and os_unix.c (``-shm`` file) of SQLite; https://sqlite.org/walformat.html
section 2.3.
"""

from __future__ import annotations

PENDING = 0x40000000
"""Database file: held by a writer that waits for readers to leave. The page it is in is `lock_pgno`."""
RESERVED = PENDING + 1
"""Database file: held exclusively by the one writer that has not yet written to the file."""
SHARED_FIRST = PENDING + 2
"""Database file: first byte of the range that readers share and a writer takes exclusively."""
SHARED_SIZE = 510
"""Length of that range, bytes."""

SHM_WRITE = 120
"""``-shm``: held exclusively while frames are appended."""
SHM_CKPT = 121
"""``-shm``: held exclusively by a checkpoint."""
SHM_RECOVER = 122
"""``-shm``: held exclusively while the index is rebuilt from the WAL."""
SHM_READ0 = 123
"""``-shm``: shared by readers that use the database file only; `SHM_READ0` + i goes with read mark i."""
SHM_READ_COUNT = 5
"""Number of read locks and of read marks."""
SHM_READ_LAST = SHM_READ0 + SHM_READ_COUNT - 1
SHM_DMS = 128
"""``-shm``: the dead man's switch, shared by every connection; who gets it exclusively is alone."""


def read_lock(mark: int) -> int:
    """The ``-shm`` byte of read mark ``mark`` (0..4). Raises ValueError."""
    if not 0 <= mark < SHM_READ_COUNT:
        raise ValueError(f"no such read mark: {mark}")
    return SHM_READ0 + mark


def lock_pgno(page_size: int) -> int:
    """The page that holds the lock bytes: never read, written or journalled. ``page_size`` in bytes."""
    return PENDING // page_size + 1
