"""Rollback journals: DELETE, TRUNCATE and PERSIST (DESIGN §3).

Pages written to the database while the journal is hot are dirty; the transaction ends when the journal is
unlinked, truncated or its header zeroed. A rollback ends the same way: what it put back has the checksum it
had, so nothing is logged.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterator

from litefs.capture.commit import BIG_COMMIT, BigCommit, Gate, Refused, Watcher, now_ms
from litefs.errors import LiteFSError, NotSupported
from litefs.ltx.format import lock_pgno
from litefs.sqlite.header import SIZE as DATABASE_HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.sqlite.journal import HEADER_SIZE, MAGIC
from litefs.store import fileops
from litefs.store.database import Database


class JournalCapture:
    """The rollback journal of one database on the primary, and the database writes under it.

    Owned by the request loop.
    """

    def __init__(self, name: str, db: Database, gate: Gate, watcher: Watcher) -> None:
        self._name = name
        self._db = db
        self._gate = gate
        self._watcher = watcher
        self._page_size = 0
        self._dirty: set[int] = set()
        self._synced = False
        """The client synced the database in this transaction, so it expects durability."""
        self._unsynced = False
        """Database writes since then."""
        self.hot = False
        """The journal has a valid header: SQLite would roll it back, and may write to the database."""
        self.named = False
        """The name of the journal, as it is now, is durable."""

    # -- the journal file --------------------------------------------------------------------------

    def write(self, fd: int, offset: int, data: bytes, database_fd: int | None) -> BigCommit | None:
        """Lay *data* at *offset* of the journal behind *fd*; zeroing the header (PERSIST) ends the
        transaction.
        """
        if offset >= HEADER_SIZE:
            fileops.pwrite_all(fd, data, offset)
            return None
        header = bytearray(os.pread(fd, HEADER_SIZE, 0).ljust(HEADER_SIZE, b"\0"))
        header[offset : offset + len(data)] = data[: HEADER_SIZE - offset]
        del header[HEADER_SIZE:]

        def finalise() -> None:
            fileops.pwrite_all(fd, data, offset)

        hot = header.startswith(MAGIC)
        if self.hot and not hot:
            return self._end(database_fd, finalise)
        finalise()
        if hot and not self.hot:
            self._begin(int.from_bytes(header[24:28], "big"))
        return None

    def truncate(self, fd: int, size: int, database_fd: int | None) -> BigCommit | None:
        """Truncate the journal; to less than a header (TRUNCATE mode: to 0) ends the transaction."""
        if self.hot and size < HEADER_SIZE:
            return self._end(database_fd, lambda: fileops.truncate(fd, size))
        fileops.truncate(fd, size)
        return None

    def unlink(self, path: str, database_fd: int | None) -> BigCommit | None:
        """Unlink the journal at *path*: the commit of DELETE mode."""
        self.named = False
        if self.hot:
            return self._end(database_fd, lambda: fileops.unlink(path))
        fileops.unlink(path)
        return None

    # -- the database file under it ----------------------------------------------------------------

    def database_write(self, fd: int, offset: int, data: bytes) -> None:
        """A database write with no logged WAL frame around. Raises Refused when no hot journal covers it."""
        if not self.hot:
            raise Refused(
                self._name,
                "write without a rollback journal or WAL frame behind it "
                "(journal_mode MEMORY or OFF, or a copied file): not captured, so refused",
            )
        page_size = self._page_size
        self._unsynced = True
        self._dirty.update(range(offset // page_size + 1, (offset + len(data) - 1) // page_size + 2))
        fileops.pwrite_all(fd, data, offset)

    def database_truncated(self, size: int) -> None:
        """The database file is cut to *size* bytes under a hot journal: what it grows again is not what was
        there.
        """
        self._unsynced = True
        self._dirty.update(range(size // self._page_size + 1, self._db.sums.page_count + 1))

    def database_synced(self) -> None:
        """The database was fsynced."""
        self._synced = True
        self._unsynced = False

    # -- the end of a transaction ------------------------------------------------------------------

    def _begin(self, page_size: int) -> None:
        if page_size not in _PAGE_SIZES:
            raise Refused(self._name + "-journal", f"page size {page_size} in the header")
        self.hot = True
        self._page_size = page_size
        self._synced = self._unsynced = False

    def _clear(self) -> None:
        self.hot = self._synced = self._unsynced = False
        self._dirty = set()

    def _end(self, fd: int | None, finalise: Callable[[], object]) -> BigCommit | None:
        if fd is None or not self._dirty:
            finalise()
            self._clear()
            return None
        if len(self._dirty) * self._page_size > BIG_COMMIT:
            return self._big_end(fd, finalise)
        commit, pgnos = self._changes(fd)
        if pgnos or commit != self._db.sums.page_count:
            self._gate.check()
            images = b"".join(self._page(fd, pgno) for pgno in pgnos)
            prepared = self._db.prepare(pgnos.tobytes(), images, commit, now_ms(), page_size=self._page_size)
            self._db.append(prepared)
            self._ended(finalise)
        else:
            finalise()
            self._clear()
        return None

    def _big_end(self, fd: int, finalise: Callable[[], object]) -> BigCommit:
        changed: list[bool] = []

        def run() -> None:
            commit, pgnos = self._changes(fd)
            if pgnos or commit != self._db.sums.page_count:
                self._gate.check()
                self._db.commit_stream(
                    pgnos.tobytes(),
                    lambda: self._batches(fd, pgnos),
                    commit,
                    now_ms(),
                    page_size=self._page_size,
                )
                changed.append(True)
                if self._synced:  # here it holds nobody up; what fails is tried again, in a new segment
                    with contextlib.suppress(OSError, LiteFSError):
                        self._db.sync()

        def finish(error: Exception | None) -> None:
            if error is not None:
                raise error
            if changed:
                self._ended(finalise)
            else:
                finalise()
                self._clear()

        return BigCommit(run, finish)

    def _ended(self, finalise: Callable[[], object]) -> None:
        """The record is in the log: make it as durable as the client asked, then let the journal end."""
        db, synced, unsynced = self._db, self._synced, self._unsynced
        self._watcher.logged(self._name)
        failed: Exception | None = None
        if synced:
            try:
                db.sync()
            except (OSError, LiteFSError) as exc:
                db.stop(f"{self._name}: the log could not be synced: {exc}")
                failed = exc
        self._clear()
        try:
            finalise()
        except OSError as exc:
            db.stop(f"{self._name}: the journal of a logged commit could not be ended: {exc}")
            raise
        if failed is not None:  # the commit exists all the same, and is what readers see
            raise failed
        if synced and not unsynced:
            db.sums.durable_txid = db.position.txid
        self._gate.confirm()

    def _changes(self, fd: int) -> tuple[int, array[int]]:
        """The database's size in pages by its header, and the pages that differ from the last transaction
        (native u32).
        """
        size = os.fstat(fd).st_size
        if not size and not self._db.sums.txid:
            return 0, array("I")  # the very first transaction was rolled back
        header = DatabaseHeader.parse(os.pread(fd, DATABASE_HEADER_SIZE, 0))
        sums = self._db.sums
        if header.page_size != (self._db.page_size or self._page_size):
            raise NotSupported(
                f"{self._name}: change of page size from {self._page_size} to {header.page_size}"
            )
        commit = header.trusted_page_count(size)
        candidates = self._dirty.union(range(sums.page_count + 1, commit + 1))
        candidates.discard(lock_pgno(self._page_size))
        return commit, array(
            "I",
            (
                pgno
                for pgno in sorted(candidates)
                if pgno <= commit and not self._same(fd, pgno, sums.page_count)
            ),
        )

    def _same(self, fd: int, pgno: int, page_count: int) -> bool:
        return pgno <= page_count and self._db.sums.matches(pgno, self._page(fd, pgno))

    def _page(self, fd: int, pgno: int) -> bytes:
        return os.pread(fd, self._page_size, (pgno - 1) * self._page_size).ljust(self._page_size, b"\0")

    def _batches(self, fd: int, pgnos: array[int]) -> Iterator[tuple[bytes, bytes]]:
        for first in range(0, len(pgnos), 256):
            part = pgnos[first : first + 256]
            yield part.tobytes(), b"".join(self._page(fd, pgno) for pgno in part)


_PAGE_SIZES = frozenset(1 << n for n in range(9, 17))
