"""What a database file holds that its log does not, found by checksum, and the record that says so.

For commits that tell of their end but not of their pages: rollback journals, and writes without any journal.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from litefs.capture.commit import BIG_COMMIT, now_ms
from litefs.errors import FormatError
from litefs.ltx.format import lock_pgno
from litefs.sqlite.header import SIZE as DATABASE_HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.store.database import Database
from litefs.store.together import Part

_BATCH_PAGES = 256


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction made of a database file."""

    commit: int
    """Its size in pages by its header; 0: empty as it was before a first transaction."""
    pgnos: array[int]
    """The pages that differ from the last transaction (native u32, ascending), or all of another size."""
    page_size: int


class FileChanges:
    """The differences between one database file and its last transaction."""

    def __init__(self, name: str, db: Database) -> None:
        self._name = name
        self._db = db

    def find(self, fd: int, candidates: Iterable[int], unit: int) -> Change:
        """What changed in the file, whose own header is believed about its page size.

        ``candidates``: pages that may differ, numbered in pages of ``unit`` bytes; those that the database
        grew by are looked at anyway, and all of them if ``unit`` is not the page size of the log. Raises
        FormatError for a file that is no database, OSError.
        """
        size = os.fstat(fd).st_size
        sums = self._db.sums
        if not size and not sums.txid:
            return Change(0, array("I"), 0)  # the very first transaction was rolled back
        header = self._header(fd)
        page_size, before = header.page_size, self._db.page_size
        commit = header.trusted_page_count(size)
        full = before not in (0, page_size)
        if full or (before and unit != before):
            candidates = range(1, commit + 1)
        pages = set(candidates).union(range(sums.page_count + 1, commit + 1))
        pages.discard(lock_pgno(page_size))
        inside = (pgno for pgno in sorted(pages) if pgno <= commit)
        found = (pgno for pgno in inside if full or not self._same(fd, pgno, page_size))
        return Change(commit, array("I", found), page_size)

    def differs(self, change: Change) -> bool:
        """Whether what ``find`` found is a transaction at all."""
        return bool(change.pgnos) or change.commit != self._db.sums.page_count

    def log(self, fd: int, candidates: Iterable[int], unit: int, check: Callable[[], None]) -> bool:
        """Log and publish what changed in the file, if anything did; whether something was.

        ``check`` is asked before that, and may raise. Raises as ``find``, ``Database.commit`` and
        ``Database.commit_stream``.
        """
        change = self.find(fd, candidates, unit)
        if not self.differs(change):
            return False
        check()
        self._append(fd, change)
        return True

    def _append(self, fd: int, change: Change) -> None:
        commit, pgnos, page_size = change.commit, change.pgnos, change.page_size
        if len(pgnos) * page_size > BIG_COMMIT or self._db.page_size not in (0, page_size):
            self._db.commit_stream(
                pgnos.tobytes(), lambda: self._batches(fd, pgnos, page_size), commit, now_ms(), page_size
            )
            return
        images = b"".join(_page(fd, pgno, page_size) for pgno in pgnos)
        self._db.commit(pgnos.tobytes(), images, commit, now_ms(), page_size=page_size)

    def part(self, fd: int, change: Change) -> Part:
        """What ``find`` found, as what this database logs of a transaction over several."""
        pgnos, page_size = change.pgnos, change.page_size
        return Part(
            self._db,
            pgnos.tobytes(),
            lambda: self._batches(fd, pgnos, page_size),
            change.commit,
            now_ms(),
            page_size,
        )

    def _header(self, fd: int) -> DatabaseHeader:
        try:
            return DatabaseHeader.parse(os.pread(fd, DATABASE_HEADER_SIZE, 0))
        except FormatError as exc:
            raise FormatError(f"{self._name}: {exc}") from None

    def _same(self, fd: int, pgno: int, page_size: int) -> bool:
        sums = self._db.sums
        return pgno <= sums.page_count and sums.matches(pgno, _page(fd, pgno, page_size))

    def _batches(self, fd: int, pgnos: array[int], page_size: int) -> Iterator[tuple[bytes, bytes]]:
        for first in range(0, len(pgnos), _BATCH_PAGES):
            part = pgnos[first : first + _BATCH_PAGES]
            yield part.tobytes(), b"".join(_page(fd, pgno, page_size) for pgno in part)


def _page(fd: int, pgno: int, page_size: int) -> bytes:
    return os.pread(fd, page_size, (pgno - 1) * page_size).ljust(page_size, b"\0")
