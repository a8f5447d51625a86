"""Where the image of each page of a database lies, as of a moment."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from litefs._core.pagedecode import BlockError, decode_page
from litefs._core.pagemap import lay_index
from litefs.backup.pieces import Indexed, Piece
from litefs.errors import ArchiveCorrupt
from litefs.ltx.format import lock_pgno, page_total

GAP_BYTES = 64 << 10
"""Bytes of other pages that are read rather than begin another request."""
RUN_BYTES = 1 << 20
"""Of an object in one request."""
RUN_PAGES_BYTES = 4 << 20
"""Of pages made from one request."""


@dataclass(frozen=True, slots=True)
class Run:
    """One request: ``length`` bytes at ``start`` of an object, and the pages in it, ascending by place."""

    key: str
    start: int
    length: int
    pgnos: tuple[int, ...]


class PageMap:
    """16 bytes a page, whatever the number of files: by page number - 1, where the frame of the page lies.

    ``size`` of the database: ``commit`` pages of ``page_size`` bytes.
    """

    def __init__(self, page_size: int, commit: int) -> None:
        self.page_size = page_size
        self.commit = commit
        self._lock_pgno = lock_pgno(page_size)
        self._offsets = array("Q", bytes(8 * commit))
        self._sizes = array("I", bytes(4 * commit))
        self._pieces = array("I", bytes(4 * commit))
        self._from: list[Piece] = []

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(a.itemsize * len(a) for a in (self._offsets, self._sizes, self._pieces))

    def fill(self, indexed: Iterable[Indexed], where: str) -> None:
        """Lay the pieces of a moment, the newest first, until every page has its place.

        Raises ArchiveCorrupt, with ``where``, if a page is in none.
        """
        left = self.lay(indexed, where)
        if left:
            raise ArchiveCorrupt(f"{where}: {left} of {self.commit} pages are in none of its files")

    def lay(self, indexed: Iterable[Indexed], where: str) -> int:
        """Lay pieces, the newest first; returns how many pages still have no place.

        A page that an intermediate transaction cut off is not found in what is older: the piece that made the
        database grow again holds it. Raises ArchiveCorrupt.
        """
        left = page_total(self.page_size, self.commit)
        limit = self.commit
        for one in indexed:
            if not left or one.header.page_size != self.page_size:
                break  # what is older than a change of the page size, which wrote every page, is in no piece
            limit = min(limit, one.header.commit)
            try:
                left -= lay_index(
                    one.index, one.offset, self._offsets, self._sizes, self._pieces, len(self._from), limit
                )
            except BlockError as error:
                raise ArchiveCorrupt(f"{where}: {one.piece.key}: {error}") from None
            self._from.append(one.piece)
        return left

    def laid(self) -> list[int]:
        """The pages that have a place, ascending."""
        return [pgno for pgno, size in enumerate(self._sizes, 1) if size]

    def has(self, pgno: int) -> bool:
        """Whether the page is stored; the lock page is not, and is all zeros."""
        return 1 <= pgno <= self.commit and pgno != self._lock_pgno

    def runs(self, pgnos: Sequence[int]) -> list[Run]:
        """The requests that fetch these pages: neighbours in one object together."""
        places = sorted((self._pieces[pgno - 1], self._offsets[pgno - 1], pgno) for pgno in pgnos)
        runs: list[Run] = []
        group: list[int] = []
        piece = start = end = 0
        most = max(1, RUN_PAGES_BYTES // self.page_size)
        for number, offset, pgno in places:
            after = offset + self._sizes[pgno - 1]
            near = number == piece and offset - end <= GAP_BYTES and after - start <= RUN_BYTES
            if group and (not near or len(group) == most):
                runs.append(self._run(piece, start, end, group))
                group = []
            if not group:
                group, piece, start = [], number, offset
            group.append(pgno)
            end = after
        if group:
            runs.append(self._run(piece, start, end, group))
        return runs

    def _run(self, number: int, start: int, end: int, pgnos: list[int]) -> Run:
        piece = self._from[number]
        return Run(piece.key, piece.offset + start, end - start, tuple(pgnos))

    def decode(self, run: Run, data: bytes) -> dict[int, bytes]:
        """The pages of a run from its bytes. Raises ArchiveCorrupt.

        A frame has no checksum of its own: what is checked is that it is a frame of this page, and that it is
        exactly one page when unpacked.
        """
        if len(data) < run.length:
            raise ArchiveCorrupt(f"{run.key}: ends at byte {run.start + len(data)}")
        view, pages = memoryview(data), {}
        base = run.start - self._offsets[run.pgnos[0] - 1]
        for pgno in run.pgnos:
            at = base + self._offsets[pgno - 1] - run.start
            try:
                found, page = decode_page(view[at : at + self._sizes[pgno - 1]], self.page_size)
            except BlockError as error:
                raise ArchiveCorrupt(f"{run.key}: page {pgno} at byte {run.start + at}: {error}") from None
            if found != pgno:
                raise ArchiveCorrupt(f"{run.key}: page {found} is where page {pgno} should be")
            pages[pgno] = page
        return pages
