"""The ``sums`` file: mapped page checksums and the position, shared by both processes."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from litefs._core.pagesums import HEADER_SIZE, PageSums, page_checksums
from litefs.errors import DatabaseNotFound, FormatError
from litefs.store import fileops
from litefs.types import Point, Position

GRANULE = 512 * 1024
"""The file is a multiple of this."""

_ROOM = 32 * 1024
"""Bytes that are made room for ahead."""

_COMPARE = 8 * 4096

_DISTRUSTED = (-1, 0, 0)


class SumsFile:
    """The map of a ``sums`` file. ``sums`` is replaced when the map grows: do not keep a reference to it.

    One process writes (``ensure``, ``mark_clean``); others open the same file and call ``refresh``.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Map an existing file, or with ``create`` make a fresh one if there is none or it is unusable.

        Raises DatabaseNotFound without a file, FormatError if it is not a sums file, OSError.
        """
        self.path = path
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        try:
            self._fd = fileops.open_file(path, flags)
        except FileNotFoundError:
            raise DatabaseNotFound(f"{path}: no page checksums") from None
        try:
            fresh = self._size() < GRANULE
            if fresh and not create:
                raise FormatError(f"{path}: {self._size()} bytes are too few for a sums file")
            if create:
                self._reserve(max(GRANULE, self._size()))
            self._map()
            if not self.sums.formatted:
                if not create:
                    raise FormatError(f"{path}: not a sums file")
                self.sums.format(0)
        except BaseException:
            self.close()
            raise

    sums: PageSums
    _buffer: mmap.mmap

    def _reserve(self, size: int) -> None:
        """Make the file that big without a hole: a store to a mapped one on a full disk kills the process."""
        fileops.fallocate(self._fd, 0, size)

    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _map(self) -> None:
        size = self._size() // GRANULE * GRANULE
        self._buffer = mmap.mmap(self._fd, size)
        try:
            self.sums = PageSums(self._buffer)
        except BaseException:
            self._buffer.close()
            raise

    def _unmap(self) -> None:
        self.sums.release()
        self._buffer.close()

    @property
    def position(self) -> Position:
        """The last transaction, as the writer's own process sees it; others take ``read_point``."""
        return Position(self.sums.txid, self.sums.checksum)

    @property
    def point(self) -> Point:
        """As ``position``, for other nodes."""
        return Point(self.sums.txid, self.sums.checksum, self.sums.hash)

    def read_point(self) -> Point:
        """``point`` of one moment, in any process. Raises TimeoutError as ``sums.snapshot``."""
        txid, checksum, *_, digest = self.sums.snapshot()
        return Point(txid, checksum, digest)

    def ensure(self, pages: int) -> int:
        """Make room for ``pages`` checksums, growing file and map; returns for how many there is room now.

        Raises OSError, then nothing changed.
        """
        if HEADER_SIZE + 8 * pages > len(self._buffer):
            self._reserve(-(-(HEADER_SIZE + 8 * pages + _ROOM) // GRANULE) * GRANULE)
        self.refresh()
        return (len(self._buffer) - HEADER_SIZE) // 8

    def refresh(self) -> None:
        """Map the file anew if another process made it bigger than this map."""
        if self._size() >= len(self._buffer) + GRANULE:
            self._unmap()
            self._map()

    def is_current(self) -> bool:
        """Whether the path still leads to the mapped file: a database may be removed and made again."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def flush(self) -> None:
        """Make all stores so far durable. On Linux msync is a sync of the range of the file; so is this."""
        fileops.fdatasync(self._fd)

    def mark_clean(self, stat: os.stat_result) -> None:
        """Store, durably, that the database file is as these checksums say, at this size and these times."""
        self.flush()
        self.sums.database_stat = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        self.flush()
        self.sums.clean = True
        self.flush()

    def unmark_clean(self) -> None:
        """Store, durably, that the database file may change from now on."""
        self.sums.clean = False
        self.flush()

    def distrust(self) -> None:
        """Note that a sync of the database file failed: its disk may lack what is read of it.

        It need not be durable: if the machine dies, so does the page cache that is not to be trusted.
        """
        self.sums.clean = False
        self.sums.database_stat = _DISTRUSTED

    def trust(self) -> None:
        """Take ``distrust`` back: every page was written again, and synced."""
        self.sums.database_stat = (0, 0, 0)

    @property
    def distrusted(self) -> bool:
        """Whether ``distrust`` was called since the last recovery, or ``trust``."""
        return self.sums.database_stat == _DISTRUSTED

    def same_stat(self, stat: os.stat_result) -> bool:
        """Whether the database file still has the size and times that were stored last."""
        return self.sums.database_stat == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def close(self) -> None:
        """Unmap and close; harmless if repeated."""
        if hasattr(self, "sums"):
            self._unmap()
            del self.sums
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_pages(fd: int, sums: PageSums, first: int, count: int) -> tuple[bytes, list[int]]:
    """``count`` pages of a database file from page ``first`` on, fewer at its end; and the numbers of those
    that are not what their checksums say, or are missing. Raises OSError."""
    size = sums.page_size
    data = fileops.pread_all(fd, count * size, (first - 1) * size)
    found = page_checksums(first, memoryview(data)[: len(data) // size * size], size)
    return data, [first + at - 1 for at in differing_pages(sums.array(first, count), found)]


def differing_pages(old: bytes, new: bytes) -> list[int]:
    """Page numbers (from 1) at which two checksum arrays differ; the shorter counts as continued by zeros."""
    size = max(len(old), len(new))
    pages: list[int] = []
    for start in range(0, size, _COMPARE):
        left = old[start : start + _COMPARE].ljust(min(_COMPARE, size - start), b"\0")
        right = new[start : start + _COMPARE].ljust(len(left), b"\0")
        if left != right:
            pairs = zip(memoryview(left).cast("Q"), memoryview(right).cast("Q"), strict=True)
            pages += [start // 8 + index for index, (a, b) in enumerate(pairs, 1) if a != b]
    return pages
