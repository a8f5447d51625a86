"""Page images of big transactions, read from the WAL a batch at a time."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator

from litefs._core.walcursor import Transaction
from litefs.capture.unsealed import FrameSet
from litefs.ltx.format import lock_pgno


class FrameBatches:
    """The page images of a big transaction, read from the WAL with the write that completes it laid over.

    Iterable more than once; yields ``(pgnos, images)``: native u32 ascending, and their contiguous pages.
    ``grown`` pages come from the database file.
    """

    PAGES = 256

    def __init__(
        self,
        fd: int,
        page_size: int,
        txn: Transaction | FrameSet,
        offset: int,
        data: bytes,
        grown: list[int],
        read_page: Callable[[int, int], bytes],
    ) -> None:
        self._fd = fd
        self._page_size = page_size
        self._offset = offset
        self._data = data
        self._read_page = read_page
        pages = list(zip(memoryview(txn.pgnos).cast("I"), memoryview(txn.offsets).cast("Q"), strict=True))
        self._pages = sorted(pages + [(pgno, 0) for pgno in grown]) if grown else pages

    @property
    def pgnos(self) -> bytes:
        return array("I", (pgno for pgno, _ in self._pages)).tobytes()

    def sums_of_frames(self, sums: bytes) -> bytes:
        """Of the checksums of all pages (native u64) those of pages that have a frame."""
        of_all = memoryview(sums).cast("Q")
        return array("Q", (of_all[i] for i, (_, offset) in enumerate(self._pages) if offset)).tobytes()

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for first in range(0, len(self._pages), self.PAGES):
            part = self._pages[first : first + self.PAGES]
            numbers = array("I", (pgno for pgno, _ in part)).tobytes()
            yield numbers, b"".join(self._page(pgno, offset) for pgno, offset in part)

    def _page(self, pgno: int, offset: int) -> bytes:
        if not offset:
            return self._read_page(pgno, self._page_size)
        page = os.pread(self._fd, self._page_size, offset)
        low, high = max(offset, self._offset), min(offset + self._page_size, self._offset + len(self._data))
        if low >= high:
            return page
        whole = bytearray(page.ljust(self._page_size, b"\0"))
        whole[low - offset : high - offset] = self._data[low - self._offset : high - self._offset]
        return bytes(whole)


def grown(txn: Transaction | FrameSet, page_count: int, page_size: int) -> list[int]:
    """Pages that a database of *page_count* pages grows by and that SQLite did not write: they are on its
    free list.
    """
    if txn.commit <= page_count:
        return []
    given = {pgno for pgno in memoryview(txn.pgnos).cast("I") if pgno > page_count}
    given.add(lock_pgno(page_size))
    return [pgno for pgno in range(page_count + 1, txn.commit + 1) if pgno not in given]
