"""One database on the primary: routes each client operation to the WAL's or the journal's capture."""

from __future__ import annotations

import os
from collections.abc import Callable

from litefs.capture.commit import BigCommit, Gate, Refused, Watcher
from litefs.capture.journal import JournalCapture
from litefs.capture.wal import WalCapture
from litefs.errors import LiteFSError
from litefs.store import fileops
from litefs.store.database import Database


class DatabaseCapture:
    """What may happen to a database and its ``-wal`` and ``-journal`` on the primary.

    Every method either does the operation on the backing file and returns (a :class:`BigCommit` where the
    rest belongs in a thread), or raises LiteFSError or OSError and has changed nothing that counts.
    """

    def __init__(
        self, name: str, db: Database, gate: Gate, watcher: Watcher, open_database: Callable[[], int]
    ) -> None:
        """``open_database``: a descriptor of the backing database file, kept open by its owner."""

        def read_page(pgno: int, page_size: int) -> bytes:
            return os.pread(open_database(), page_size, (pgno - 1) * page_size).ljust(page_size, b"\0")

        self.db = db
        self.wal = WalCapture(name, db, gate, watcher, read_page)
        self.journal = JournalCapture(name, db, gate, watcher)
        self._name = name
        self._gate = gate

    def check_writable(self, file: str) -> None:
        """Raises Refused unless this node may change the database."""
        if not self._gate.writable():
            raise Refused(file, "this node is not the primary")
        if self.db.stopped is not None:
            raise Refused(file, f"the database is stopped: {self.db.stopped}")
        if self.db.sums.damaged:
            raise Refused(file, "the database is damaged and served for reading only")

    # -- database file -----------------------------------------------------------------------------

    def database_write(self, fd: int, offset: int, data: bytes) -> None:
        self.check_writable(self._name)
        if self.wal.holds_logged_frames:
            self.wal.checkpoint_write(fd, offset, data)
        else:
            self.journal.database_write(fd, offset, data)

    def database_truncate(self, fd: int, size: int) -> None:
        """A checkpoint's or VACUUM's truncation, a rollback's, or an extension; never of pages that the log
        counts.
        """
        self.check_writable(self._name)
        db = self.db
        if self.wal.holds_logged_frames:
            self.wal.checkpoint_truncate(size)
        elif not self.journal.hot and size < db.sums.page_count * db.page_size:
            raise Refused(self._name, f"truncation to {size} bytes without a rollback journal")
        fileops.truncate(fd, size)

    def database_sync(self, fd: int) -> None:
        self._sync_log()
        txid = self.db.position.txid
        try:
            fileops.fdatasync(fd)
        except OSError as exc:
            self.db.stop(f"{self._name}: fsync failed: {exc}")
            raise
        if self.journal.hot:
            self.journal.database_synced()
        elif not self.wal.pending:
            self.db.sums.durable_txid = txid

    def begin_sync(self) -> int | None:
        """Sync the log for what clients with synchronous=OFF never sync, so that it can be reaped (I6).

        Returns the transaction up to which the database file is durable once its owner has synced it too,
        for ``end_sync``; None if there is nothing to do, or pages are still in a WAL or under a journal.
        Raises LiteFSError, OSError.
        """
        txid = self.db.position.txid
        if self.wal.pending or self.journal.hot or self.db.stopped is not None:
            return None
        if self.db.sums.durable_txid >= txid:
            return None
        self._sync_log()
        return txid

    def end_sync(self, txid: int) -> None:
        """The database file was synced after ``begin_sync`` returned ``txid``."""
        if not self.wal.pending and not self.journal.hot:
            self.db.sums.durable_txid = max(self.db.sums.durable_txid, txid)

    # -- WAL ---------------------------------------------------------------------------------------

    def wal_write(self, fd: int, offset: int, data: bytes) -> BigCommit | None:
        self.check_writable(self._name + "-wal")
        return self.wal.write(fd, offset, data)

    def wal_sync(self) -> None:
        """The log stands for the WAL: recovery never reads the WAL itself."""
        self._sync_log()

    # -- journal -----------------------------------------------------------------------------------

    def journal_write(self, fd: int, offset: int, data: bytes, database_fd: int | None) -> BigCommit | None:
        self.check_writable(self._name + "-journal")
        return self.journal.write(fd, offset, data, database_fd)

    def journal_sync(self, fd: int) -> None:
        fileops.fdatasync(fd)

    def _sync_log(self) -> None:
        try:
            self.db.sync()
        except (OSError, LiteFSError) as exc:
            self.db.stop(f"{self._name}: the log could not be synced: {exc}")
            raise
