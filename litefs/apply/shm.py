"""One database's ``-shm`` file as an ordinary client uses it: its locks, mapping, growth and recovery."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from litefs._core.walindex import READ_MARK_UNUSED, REGION_SIZE, IndexHeader, WalIndex, regions_for
from litefs.apply import locks
from litefs.apply.memory import map_shared
from litefs.sqlite.locks import SHM_DMS, SHM_READ0, SHM_READ_COUNT, SHM_WRITE

APPLIER = os.O_NONBLOCK
"""Means nothing for a file, so SQLite never sets it: tells the fs process which descriptors of the node
process may change a replica (an import that was begun on a primary uses others), and which wal-index is
attached."""

_REGION_HEADER = 136
"""Bytes of region 0 before its page numbers: two copies of the header, checkpoint state, lock bytes."""

_HEADER_COPIES = 96
"""Bytes of the two copies of the header, at the start of the file."""

_DMS_TIMEOUT = 10.0
"""Seconds that an opening client may hold DMS exclusively: it truncates the file and downgrades."""

WRITE_TIMEOUT = 10.0
"""Seconds to wait for WAL_WRITE: on a replica only a client that recovers the wal-index holds it."""


class SharedIndex:
    """The wal-index of a database, attached: DMS is held shared, so that nobody truncates it under the map.

    ``index`` reads and writes through the map. Whoever changes anything holds WAL_WRITE.
    """

    def __init__(self, path: Path, like: os.stat_result) -> None:
        """Open or create the file with the mode of ``like``; who is alone empties it first, by SQLite's rule.

        Raises LockTimeout, OSError.
        """
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, like.st_mode & 0o777)
        try:
            if os.fstat(self.fd).st_size == 0:
                follow_owner(self.fd, like)
            if locks.try_exclusive(self.fd, SHM_DMS):
                os.ftruncate(self.fd, 3)
                locks.try_shared(self.fd, SHM_DMS)
            else:
                locks.wait_shared(self.fd, SHM_DMS, timeout=_DMS_TIMEOUT)
            # Only now, since a client that holds DMS exclusively must be able to empty the file.
            self._mark = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | APPLIER | os.O_CLOEXEC)
        except BaseException:
            locks.close(self.fd)
            raise
        try:
            with locks.exclusive(self.fd, SHM_WRITE, timeout=WRITE_TIMEOUT):
                self._grow(REGION_SIZE)
            self._view = map_shared(self.fd, REGION_SIZE)
        except BaseException:
            self._close_files()
            raise
        self.index = WalIndex(self._view)

    def _grow(self, size: int) -> None:
        """Make the file at least ``size`` bytes by writing zeros: a hole might fail to be filled at the
        first store. The caller holds WRITE, as SQLite does when it makes the file longer: else the zeros
        might come to lie over an index that a client has recovered since the size was looked at."""
        end = os.fstat(self.fd).st_size
        while end < size:
            end += os.pwrite(self.fd, bytes(min(size - end, 1 << 20)), end)

    def cover(self, frames: int) -> None:
        """Map what indexes ``frames`` frames, growing the file if need be. Raises OSError."""
        if frames <= self.index.capacity:
            return
        size = regions_for(frames) * REGION_SIZE
        self._grow(size)
        view = map_shared(self.fd, size)
        self.index.rebind(view)
        self._view.close()
        self._view = view

    def header(self) -> IndexHeader | None:
        """The published header, with every frame that it counts mapped; None if it is not whole. Raises
        OSError."""
        header = self.index.header()
        if header is not None:
            self.cover(header.mx_frame)
        return header

    def rebuild(self, header: IndexHeader, pgnos: bytes) -> None:
        """Set index and header to what the WAL file holds. The caller holds WRITE, CKPT and RECOVER.

        ``pgnos``: the page number (native u32) of each of the ``header.mx_frame`` frames. Readers of an
        older snapshot may be inside: the regions are built aside and only what differs is copied, so that
        no entry that they need is ever absent.
        """
        self.cover(header.mx_frame)
        regions = regions_for(header.mx_frame)
        fresh = bytearray(regions * REGION_SIZE)
        if pgnos:
            scratch = WalIndex(fresh)
            scratch.append(1, pgnos)
            scratch.release()
        for region in range(regions):
            start = region * REGION_SIZE + (0 if region else _REGION_HEADER)
            stop = (region + 1) * REGION_SIZE
            if self._view[start:stop] != fresh[start:stop]:
                self._view[start:stop] = fresh[start:stop]
        self.index.publish(header)
        self._reset_checkpoint(header.mx_frame)

    def _reset_checkpoint(self, frames: int) -> None:
        """Nothing is backfilled; read marks that no reader holds are free again, mark 1 at the last frame."""
        index = self.index
        index.backfill = 0
        index.backfill_attempted = frames
        index.set_read_mark(0, 0)
        for mark in range(1, SHM_READ_COUNT):
            if locks.try_exclusive(self.fd, SHM_READ0 + mark):
                index.set_read_mark(mark, frames if mark == 1 and frames else READ_MARK_UNUSED)
                locks.unlock(self.fd, SHM_READ0 + mark)

    def close(self) -> None:
        """Unmap and close; the locks go with the descriptor."""
        self.index.release()
        self._view.close()
        self._close_files()

    def _close_files(self) -> None:
        locks.close(self._mark)
        locks.close(self.fd)


def follow_owner(fd: int, like: os.stat_result) -> None:
    """Give a companion file mode and owner of its database, as SQLite does, where they differ."""
    stat = os.fstat(fd)
    if (stat.st_mode ^ like.st_mode) & 0o777:
        os.fchmod(fd, like.st_mode & 0o777)
    if os.geteuid() == 0 and (stat.st_uid, stat.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(fd, like.st_uid, like.st_gid)


def map_header(fd: int) -> mmap.mmap:
    """Map the memory page that holds the wal-index header. Raises OSError: EFAULT if the file is empty."""
    return map_shared(fd, mmap.PAGESIZE)


def clear_headers(view: mmap.mmap) -> None:
    """Zero both header copies in a map of the file's beginning: the next client must recover, or fail."""
    view[:_HEADER_COPIES] = bytes(_HEADER_COPIES)
