"""What a database file holds that its log does not, found by checksum, and the record that says so.

For commits that tell of their end but not of their pages: rollback journals, and writes without any journal.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator

from litefs.capture.commit import BIG_COMMIT, now_ms
from litefs.errors import NotSupported
from litefs.ltx.format import lock_pgno
from litefs.sqlite.header import SIZE as DATABASE_HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.store.database import Database
from litefs.store.together import Part

_BATCH_PAGES = 256


class FileChanges:
    """The differences between one database file and its last transaction."""

    def __init__(self, name: str, db: Database) -> None:
        self._name = name
        self._db = db

    def find(self, fd: int, candidates: Iterable[int], page_size: int) -> tuple[int, array[int]]:
        """The database's size in pages by its header, and the pages that differ (native u32, ascending).

        ``candidates``: pages that may differ; those that the database grew by are looked at anyway.
        ``page_size``: of whom wrote; 0 if only the header tells, which is believed for a first transaction.
        Raises FormatError for a file that is no database, NotSupported for another page size, OSError.
        """
        size = os.fstat(fd).st_size
        sums = self._db.sums
        if not size and not sums.txid:
            return 0, array("I")  # the very first transaction was rolled back
        header = DatabaseHeader.parse(os.pread(fd, DATABASE_HEADER_SIZE, 0))
        expected = self._db.page_size or page_size or header.page_size
        if header.page_size != expected:
            raise NotSupported(f"{self._name}: change of page size from {expected} to {header.page_size}")
        commit = header.trusted_page_count(size)
        pages = set(candidates).union(range(sums.page_count + 1, commit + 1))
        pages.discard(lock_pgno(expected))
        differing = (pgno for pgno in sorted(pages) if pgno <= commit and not self._same(fd, pgno, expected))
        return commit, array("I", differing)

    def differs(self, commit: int, pgnos: array[int]) -> bool:
        """Whether what ``find`` found is a transaction at all."""
        return bool(pgnos) or commit != self._db.sums.page_count

    def append(self, fd: int, commit: int, pgnos: array[int], page_size: int) -> None:
        """Log and publish these pages as they are in the file; raises as ``Database.commit``."""
        if len(pgnos) * page_size > BIG_COMMIT:
            self._db.commit_stream(
                pgnos.tobytes(), lambda: self._batches(fd, pgnos, page_size), commit, now_ms(), page_size
            )
            return
        images = b"".join(_page(fd, pgno, page_size) for pgno in pgnos)
        self._db.commit(pgnos.tobytes(), images, commit, now_ms(), page_size=page_size)

    def part(self, fd: int, commit: int, pgnos: array[int], page_size: int) -> Part:
        """These pages as they are in the file, as what this database logs of a transaction over several."""
        return Part(
            self._db,
            pgnos.tobytes(),
            lambda: self._batches(fd, pgnos, page_size),
            commit,
            now_ms(),
            page_size,
        )

    def page_size(self, fd: int) -> int:
        """The log's page size, of a first transaction the header's. Raises FormatError."""
        return self._db.page_size or DatabaseHeader.parse(os.pread(fd, DATABASE_HEADER_SIZE, 0)).page_size

    def _same(self, fd: int, pgno: int, page_size: int) -> bool:
        sums = self._db.sums
        return pgno <= sums.page_count and sums.matches(pgno, _page(fd, pgno, page_size))

    def _batches(self, fd: int, pgnos: array[int], page_size: int) -> Iterator[tuple[bytes, bytes]]:
        for first in range(0, len(pgnos), _BATCH_PAGES):
            part = pgnos[first : first + _BATCH_PAGES]
            yield part.tobytes(), b"".join(_page(fd, pgno, page_size) for pgno in part)


def _page(fd: int, pgno: int, page_size: int) -> bytes:
    return os.pread(fd, page_size, (pgno - 1) * page_size).ljust(page_size, b"\0")
