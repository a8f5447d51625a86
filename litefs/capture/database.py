"""One database on the primary: routes each client operation to the WAL's or the journal's capture."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from litefs.capture.commit import BIG_COMMIT, BigCommit, Gate, Refused, Watcher, log
from litefs.capture.journal import JournalCapture
from litefs.capture.raw import RawCapture
from litefs.capture.super import refuse_super
from litefs.capture.wal import WalCapture
from litefs.errors import LiteFSError
from litefs.sqlite.journal import HEADER_SIZE as JOURNAL_HEADER_SIZE
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.together import Part


class DatabaseCapture:
    """What may happen to a database and its ``-wal`` and ``-journal`` on the primary.

    Every method either does the operation on the backing file and returns (a :class:`BigCommit` where the
    rest belongs in a thread), or raises LiteFSError or OSError and has changed nothing that counts.
    """

    wal_type: type[WalCapture] = WalCapture

    def __init__(
        self,
        name: str,
        db: Database,
        gate: Gate,
        watcher: Watcher,
        open_database: Callable[[], int],
        exclusive_held: Callable[[], bool] = lambda: False,
        admit_super: Callable[[str, str], None] = refuse_super,
    ) -> None:
        """``open_database``: a descriptor of the backing database file, kept open by its owner.

        ``exclusive_held``: whether a client holds SQLite's EXCLUSIVE lock on the database now.
        ``admit_super``: as of ``JournalCapture``.
        """

        def read_page(pgno: int, page_size: int) -> bytes:
            return os.pread(open_database(), page_size, (pgno - 1) * page_size).ljust(page_size, b"\0")

        self.db = db
        self.wal = self.wal_type(name, db, gate, watcher, read_page)
        self.raw = RawCapture(name, db, gate, watcher, exclusive_held)
        self.journal = JournalCapture(name, db, gate, watcher, self.raw, admit_super)
        self._open_database = open_database
        self._name = name
        self.gate = gate
        self._log_bytes = self._file_bytes = 0
        """Bytes that clients wrote to the WAL, and to database and journal, since these were synced last."""

    def check_writable(self, file: str) -> None:
        """Raises Refused unless this node may change the database.

        A transaction that is open when the database is stopped may still be rolled back, or nobody could read
        it; its commit is refused by the store. What is committed may end its journal whatever happened since.
        One that is open when commits come to be refused may be rolled back, too.
        """
        if self.journal.committed and file == self._name + "-journal":
            return
        if not self.gate.writable() and not (self.is_open and file != self._name + "-wal"):
            raise Refused(file, "this node is not the primary")
        if self.db.stopped is not None and not self.is_open:
            raise Refused(file, f"the database is stopped: {self.db.stopped}")
        if self.db.sums.damaged:
            raise Refused(file, "the database is damaged, served for reading only: rename a good one over it")
        if file != self._name:
            self.raw.check(file)

    @property
    def is_open(self) -> bool:
        """Whether the database file has changes that are not committed."""
        return self.journal.hot or self.raw.pending

    # -- database file -----------------------------------------------------------------------------

    def database_write(
        self, fd: int, offset: int, data: bytes, handle: int | None = None
    ) -> BigCommit | None:
        """``handle``: the open file it comes through."""
        self.check_writable(self._name)
        if not self.wal.holds_logged_frames:
            begun = self.raw.pending and not self.journal.hot
            if not begun and not self.gate.admits() and not self._restores(offset, data):
                # At the end of a journal SQLite could not roll back any more, only leave it to others. Amid
                # writes without one nothing is refused: who has no journal at all would leave a torn file.
                raise Refused(self._name, "its transaction could not be committed now")
            if self.journal.hot:
                self.journal.database_write(fd, offset, data)
            else:
                self.raw.write(fd, offset, data, handle)
            self._file_bytes += len(data)
            return None

        def finish(error: Exception | None) -> None:
            _reraise(error)
            self.wal.checkpoint_write(fd, offset, data)
            self._file_bytes += len(data)

        return _synced(self._take_log_bytes(), self._sync_log, finish)

    def _restores(self, offset: int, data: bytes) -> bool:
        """Whether a write lays nothing but pages as the log has them: a rollback."""
        page_size = self.db.page_size
        if not page_size or offset % page_size or len(data) % page_size:
            return False
        first, sums = offset // page_size + 1, self.db.sums
        pages = (data[at : at + page_size] for at in range(0, len(data), page_size))
        return all(sums.matches(pgno, page) for pgno, page in enumerate(pages, first))

    def database_truncate(self, fd: int, size: int, handle: int | None = None) -> None:
        """A checkpoint's or VACUUM's truncation, a rollback's, an extension, or the begin of a copy."""
        self.check_writable(self._name)
        db = self.db
        if self.wal.holds_logged_frames:
            if not size:  # as SQLite never does
                raise Refused(
                    self._name, "cannot be copied over while its WAL is in use: close it first", errno.EBUSY
                )
            self.wal.backfill.truncate(size)
        elif self.journal.hot:
            self.journal.database_truncated(size)
        elif size < db.sums.page_count * db.page_size:
            self.raw.truncate(fd, size, handle)
            return
        fileops.truncate(fd, size)

    def database_sync(self, fd: int, handle: int | None = None) -> BigCommit | None:
        """Sync log and database; for a writer without a journal this is the commit."""
        logged = None if self.journal.hot else self.raw.synced(fd, handle)
        pending = self.raw.pending_bytes if logged is not None else 0

        def run() -> None:
            if logged is not None:
                logged.run()
            self._sync_log()
            try:
                fileops.fdatasync(fd)
            except OSError as exc:
                self.db.file_unsynced(f"{self._name}: fsync failed: {exc}")
                raise

        before = self.db.position.txid

        def finish(error: Exception | None) -> None:
            if logged is not None and (error is None or self.db.position.txid > before):
                logged.finish(None)  # it is in the log, whatever failed afterwards
            _reraise(error)
            if self.journal.hot:
                self.journal.database_synced()
                return
            self.db.sums.durable_txid = max(self.db.sums.durable_txid, self._complete_txid())
            if logged is not None:
                self.gate.confirm()

        return _synced(self._take_log_bytes() + self._take_file_bytes() + pending, run, finish)

    def database_flush(self, handle: int) -> BigCommit | None:
        """A client closes the database: the copy that it made is logged now if it is complete."""
        job = self.raw.commit(self._open_database()) if self.raw.made(handle) else None
        if job is None:
            return None

        def finish(error: Exception | None) -> None:
            job.finish(error)
            self.gate.confirm()

        return _synced(self.raw.pending_bytes, job.run, finish)

    def sweep(self) -> BigCommit | None:
        """Log what was written without a journal and nobody synced. Raises OSError."""
        return None if self.journal.hot else self.raw.sweep(self._open_database())

    def _complete_txid(self) -> int:
        """The last transaction of which the database file, unsynced, is known to hold every page."""
        if self.journal.hot or self.raw.pending:
            return 0
        return self.wal.complete_txid if self.wal.pending else self.db.position.txid

    def _take_log_bytes(self) -> int:
        count, self._log_bytes = self._log_bytes, 0
        return count

    def _take_file_bytes(self) -> int:
        count, self._file_bytes = self._file_bytes, 0
        return count

    def begin_sync(self) -> int | None:
        """Sync the log for what clients with synchronous=OFF never sync, so that it can be reaped (I6).

        Returns the transaction up to which the database file is durable once its owner has synced it too,
        for ``end_sync``; None if there is nothing to do.
        Raises LiteFSError, OSError.
        """
        txid = self._complete_txid()
        if self.db.stopped is not None or self.db.sums.durable_txid >= txid:
            return None
        self._sync_log()
        return txid

    def mend(self) -> BigCommit | None:
        """Try to make durable what a failed sync left, so that commits are taken again; None if that is not
        what stopped the database, or while a transaction is open.
        """
        if not self.db.can_resume or self.journal.hot or self.raw.pending:
            return None
        resumed: list[bool] = []

        def run() -> None:
            resumed.append(self.db.resume(self.wal.backfill.lacks))

        def finish(error: Exception | None) -> None:
            _reraise(error)
            if any(resumed):
                log.warning("%s: it could be synced again, commits are taken again", self._name)

        return BigCommit(run, finish)

    def end_sync(self, txid: int) -> None:
        """The database file was synced after ``begin_sync`` returned ``txid``."""
        if not self.journal.hot and not self.raw.pending:
            self.db.sums.durable_txid = max(self.db.sums.durable_txid, txid)

    def close(self) -> None:
        """Let go of the log."""
        self.raw.close()
        self.db.close()

    # -- WAL ---------------------------------------------------------------------------------------

    def wal_write(self, fd: int, offset: int, data: bytes) -> BigCommit | None:
        self.check_writable(self._name + "-wal")
        self._log_bytes += len(data)
        logged = self.raw.flush(self._open_database()) if self.raw.pending else None
        if logged is None:
            return self.wal.write(fd, offset, data)

        def finish(error: Exception | None) -> None:
            logged.finish(error)
            job = self.wal.write(fd, offset, data)
            if job is not None:  # only after frames that were there before the header: rare
                job.run()
                job.finish(None)

        return _synced(self.raw.pending_bytes, logged.run, finish)

    def wal_sync(self) -> BigCommit | None:
        """The log stands for the WAL: recovery never reads the WAL itself."""
        return _synced(self._take_log_bytes(), self._sync_log, _reraise)

    # -- journal -----------------------------------------------------------------------------------

    def journal_write(self, fd: int, offset: int, data: bytes, database_fd: int | None) -> BigCommit | None:
        self.check_writable(self._name + "-journal")
        self._file_bytes += len(data)
        begins = offset < JOURNAL_HEADER_SIZE and not self.journal.hot
        logged = None
        if begins and self.raw.pending and not self.raw.copying:
            # a commit without a journal; it must not wait for the end of the transaction that begins now
            logged = self.raw.commit(self._open_database())
        if logged is None:
            return self.journal.write(fd, offset, data, database_fd)

        def finish(error: Exception | None) -> None:
            logged.finish(error)
            self.journal.write(fd, offset, data, database_fd)  # begins a transaction, so it ends none

        return _synced(self.raw.pending_bytes, logged.run, finish)

    def journal_sync(self, fd: int) -> BigCommit | None:
        """Sync the journal and, once, its name: without it recovery could not undo what is written next."""

        def run() -> None:
            fileops.fdatasync(fd)
            if not self.journal.named:
                fileops.sync_dir(self.db.dir.path)
                self.journal.named = True

        return _synced(self._take_file_bytes(), run, _reraise)

    def super_part(self) -> Part | None:
        """``journal.part`` of the database's file."""
        return self.journal.part(self._open_database())

    def _sync_log(self) -> None:
        try:
            self.db.sync()
        except (OSError, LiteFSError) as exc:
            self.db.stop(f"{self._name}: the log could not be synced: {exc}", until_synced=True)
            raise


def _synced(
    size: int, run: Callable[[], None], finish: Callable[[Exception | None], None]
) -> BigCommit | None:
    """Sync *size* bytes now, or in a thread if they are many: on a slow disk that may take seconds."""
    if size > BIG_COMMIT:
        return BigCommit(run, finish)
    error: Exception | None = None
    try:
        run()
    except Exception as exc:
        error = exc
    finish(error)
    return None


def _reraise(error: Exception | None) -> None:
    if error is not None:
        raise error
