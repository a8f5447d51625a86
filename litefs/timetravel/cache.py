"""Pages kept in memory, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict

ENTRY_BYTES = 160
"""What a page takes beside its bytes: key, entry and object headers."""


class PageCache:
    """Of all databases of a mount together, never more than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._pages: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, database: int, pgno: int) -> bytes | None:
        """The page, which counts as used now."""
        key = (database, pgno)
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
        return page

    def has(self, database: int, pgno: int) -> bool:
        """Whether it is there; it does not count as used."""
        return (database, pgno) in self._pages

    def put(self, database: int, pgno: int, page: bytes) -> None:
        """Add a page, and let go of others as far as need be."""
        key = (database, pgno)
        if key in self._pages:
            self._pages.move_to_end(key)
            return
        self._pages[key] = page
        self.nbytes += len(page) + ENTRY_BYTES
        while self.nbytes > self.limit:
            _, gone = self._pages.popitem(last=False)
            self.nbytes -= len(gone) + ENTRY_BYTES
