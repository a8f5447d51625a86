"""Rollback journals: DELETE, TRUNCATE and PERSIST (DESIGN §3).

Pages written to the database while the journal is hot are dirty; the transaction ends when the journal is
unlinked, truncated or its header zeroed. A rollback ends the same way: what it put back has the checksum it
had, so nothing is logged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from litefs.capture.changes import FileChanges
from litefs.capture.commit import BIG_COMMIT, BigCommit, Gate, Refused, Watcher
from litefs.capture.raw import RawCapture
from litefs.errors import LiteFSError
from litefs.sqlite.journal import HEADER_SIZE, MAGIC, MAX_SUPER_TAIL, may_end_super_name, super_journal_name
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.together import Part


class JournalCapture:
    """The rollback journal of one database on the primary, and the database writes under it.

    Owned by the request loop.
    """

    def __init__(
        self,
        name: str,
        db: Database,
        gate: Gate,
        watcher: Watcher,
        raw: RawCapture,
        admit_super: Callable[[str, str], None],
    ) -> None:
        """``raw``: what of its pending writes the next transaction has to log too.

        ``admit_super(name, super-journal)`` raises Refused if the transaction must not belong to that one.
        """
        self._name = name
        self._admit_super = admit_super
        self._raw = raw
        self._takes_raw = False
        self._changes = FileChanges(name, db)
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
        self.committed = False
        """Hot, but its transaction is logged: its super-journal is gone, so that nobody plays it back."""
        self.named = False
        """The name of the journal, as it is now, is durable."""

    # -- the journal file --------------------------------------------------------------------------

    def write(self, fd: int, offset: int, data: bytes, database_fd: int | None) -> BigCommit | None:
        """Lay *data* at *offset* of the journal behind *fd*; zeroing the header (PERSIST) ends the
        transaction.
        """
        if offset >= HEADER_SIZE:
            if may_end_super_name(data) and (named := self._super_named(fd, offset, data)) is not None:
                self._admit_super(self._name, named)
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

    @staticmethod
    def _super_named(fd: int, offset: int, data: bytes) -> str | None:
        """The super-journal that the journal names if it ends with this write."""
        end = offset + len(data)
        start = max(0, end - MAX_SUPER_TAIL)
        tail = os.pread(fd, max(0, offset - start), start) + data
        start = end - len(tail)
        return super_journal_name(lambda at, size: tail[max(0, at - start) :][:size], end)

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
        """A database write while the journal is hot. Raises Refused once it is committed."""
        self._check_open()
        page_size = self._page_size
        self._unsynced = True
        self._dirty.update(range(offset // page_size + 1, (offset + len(data) - 1) // page_size + 2))
        fileops.pwrite_all(fd, data, offset)

    def database_truncated(self, size: int) -> None:
        """The database file is cut to *size* bytes under a hot journal: what it grows again is not what was
        there. Raises Refused once it is committed.
        """
        self._check_open()
        self._unsynced = True
        self._dirty.update(range(size // self._page_size + 1, self._db.sums.page_count + 1))

    def database_synced(self) -> None:
        """The database was fsynced."""
        self._synced = True
        self._unsynced = False

    def _check_open(self) -> None:
        if self.committed:
            raise Refused(self._name, "its transaction over several databases is committed: end its journal")

    # -- a transaction over several databases (litefs.capture.super) -----------------------------------

    def part(self, fd: int) -> Part | None:
        """What this database logs of it; None if nothing changed here. May run in a thread.

        Raises FormatError, NotSupported, OSError.
        """
        change = self._changes.find(fd, self._dirty, self._page_size)
        if not self._changes.differs(change):
            return None
        return self._changes.part(fd, change)

    def commit_logged(self) -> None:
        """The transaction is in the logs of all its members; what SQLite still does is to end the journal."""
        self.committed = True
        self._watcher.logged(self._name)

    # -- the end of a transaction ------------------------------------------------------------------

    def _begin(self, page_size: int) -> None:
        if page_size not in _PAGE_SIZES:
            raise Refused(self._name + "-journal", f"page size {page_size} in the header")
        self.hot = True
        self._page_size = page_size
        self._synced = self._unsynced = False
        self._takes_raw = self._raw.pending and not self._raw.copying
        if self._takes_raw:  # writes without a journal that nobody logged yet
            self._dirty = self._raw.take()

    def _clear(self) -> None:
        self.hot = self.committed = self._synced = self._unsynced = False
        self._dirty = set()
        if self._takes_raw:
            self._takes_raw = False
            self._raw.clear()

    def _end(self, fd: int | None, finalise: Callable[[], object]) -> BigCommit | None:
        if self.committed:
            finalise()
            if self._synced and not self._unsynced:
                self._db.sums.durable_txid = self._db.position.txid
            self._clear()
            return None
        if fd is None or not self._dirty:
            finalise()
            self._clear()
            return None
        if len(self._dirty) * self._page_size > BIG_COMMIT:
            return self._big_end(fd, finalise)
        if self._log(fd):
            self._ended(finalise)
        else:
            finalise()
            self._clear()
        return None

    def _log(self, fd: int) -> bool:
        return self._changes.log(fd, self._dirty, self._page_size, self._gate.check)

    def _big_end(self, fd: int, finalise: Callable[[], object]) -> BigCommit:
        changed: list[bool] = []

        def run() -> None:
            if self._log(fd):
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
                db.stop(f"{self._name}: the log could not be synced: {exc}", until_synced=True)
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


_PAGE_SIZES = frozenset(1 << n for n in range(9, 17))
