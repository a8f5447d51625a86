"""The databases that the fs process serves: their files, their position, and on the primary their capture."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping

import trio

from litefs.capture.commit import BIG_COMMIT, BigCommit, Watcher
from litefs.capture.database import DatabaseCapture
from litefs.capture.halted import HaltedCapture
from litefs.capture.super import SuperJournals
from litefs.errors import LiteFSError
from litefs.fs.locktable import LockTable
from litefs.fs.replication import AnswerGate, DatabaseGate, Replicated
from litefs.fs.role import RoleState
from litefs.link.rules import SyncRules
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.dropped import drop, rename, replace, tidy
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.strict import wrong_pages
from litefs.store.sums import SumsFile
from litefs.store.together import super_dir
from litefs.types import ZERO, Position

log = logging.getLogger("litefs.fs")


class FsDatabase:
    """One database of the mount.

    ``capture`` is there while this node is the primary, and on a replica under HALT. ``busy`` is set while a
    big commit runs in a thread; nothing else may change the database then.
    """

    def __init__(self, directory: DatabaseDir) -> None:
        self.dir = directory
        self.name = directory.name
        self.capture: DatabaseCapture | None = None
        self.gate: AnswerGate | None = None
        """Of the capture."""
        self.error: str | None = None
        """Why the primary cannot write this database's log."""
        self.removed = False
        """Clients may still have it open."""
        self.forgotten_below = 0
        """Taken from this replica's mount: reads from below this offset of what clients have open must fail,
        so that nobody is answered from before."""
        self.database_fd = -1
        self.ino = 0
        """Inode of the database file on the mount, once a client opened it."""
        self.shm_ino = 0
        """The same of its wal-index."""
        self.announced = False
        self.busy = False
        self._idle = trio.Event()
        self._sums: SumsFile | None = None

    def begin_job(self) -> None:
        self.busy = True
        self._idle = trio.Event()

    def end_job(self) -> None:
        self.busy = False
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no big commit is under way."""
        while self.busy:
            await self._idle.wait()

    @property
    def must_wait(self) -> bool:
        """Whether ``ready`` would wait."""
        return self.busy or (self.gate is not None and self.gate.doubtful)

    async def ready(self) -> None:
        """Wait until no big commit is under way, and a little if replicas are missing."""
        while self.must_wait:
            await self.idle()
            if self.gate is not None:
                await self.gate.cleared_up()

    @property
    def owes_answer(self) -> bool:
        """Whether a commit is complete whose client must not be told before ``answerable`` returns."""
        return self.gate is not None and self.gate.owes_answer

    async def answerable(self) -> None:
        """Wait until enough replicas have the last transaction. Raises OutcomeUnknown."""
        if self.gate is not None and self.gate.owes_answer:
            await self.gate.answerable(self.position()[0].txid)

    @property
    def local(self) -> bool:
        """A file that is no database: it stays on this node."""
        return self.capture is not None and self.capture.raw.local

    @property
    def halted(self) -> bool:
        """This is a replica, and its clients write the database under HALT."""
        return isinstance(self.capture, HaltedCapture)

    async def run(self, job: BigCommit | None) -> None:
        """Run a big commit in a thread; the database is busy meanwhile. Raises what it is answered with."""
        if job is None:
            return
        self.begin_job()
        try:
            error: Exception | None = None
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(job.run)
            except Exception as exc:
                error = exc
            job.finish(error)
        finally:
            self.end_job()

    async def sweep(self) -> None:
        """Log what was written without a journal and nobody synced, once its writer is done."""
        capture = self.capture
        if capture is None or self.busy or not capture.raw.pending:
            return
        try:
            job = capture.sweep()
            if job is not None and capture.raw.pending_bytes > BIG_COMMIT:
                await self.run(job)
            elif job is not None:
                job.run()
                job.finish(None)
        except (LiteFSError, OSError) as exc:
            capture.raw.refused(exc)

    def open_database(self) -> int:
        """A descriptor of the database file that lives as long as this object. Raises OSError."""
        if self.database_fd < 0:
            self.database_fd = os.open(self.dir.database, os.O_RDWR | os.O_CLOEXEC)
        return self.database_fd

    def position(self) -> tuple[Position, int]:
        """Position and the timestamp (Unix ms) of its transaction, whoever writes the log."""
        if self.capture is not None:
            sums = self.capture.db.sums
        else:
            if self._sums is None:
                if not os.path.exists(self.dir.sums):
                    return ZERO, 0
                self._sums = SumsFile(self.dir.sums)
            sums = self._sums.sums
        txid, checksum, timestamp, *_ = sums.snapshot()
        return Position(txid, checksum), timestamp

    def close_sums(self) -> None:
        if self._sums is not None:
            self._sums.close()
            self._sums = None

    def close(self) -> None:
        self.close_sums()
        if self.capture is not None:
            self.capture.close()
            self.capture = None
        if self.database_fd >= 0:
            os.close(self.database_fd)
            self.database_fd = -1


class Databases:
    """Every database of the data directory, by name."""

    def __init__(
        self,
        data: DataDir,
        role: RoleState,
        watcher: Watcher,
        node_id: int,
        unrecovered: Mapping[str, str] | None = None,
        replicated: Replicated | None = None,
    ) -> None:
        """``unrecovered``: databases that may only be read, and why. ``replicated``: None, if no commit is to
        wait for replicas."""
        self.replicated = replicated or Replicated(role, SyncRules(), lambda: None)
        self._data = data
        self._role = role
        self._watcher = watcher
        self._node_id = node_id
        self.locks: LockTable | None = None
        self.supers = SuperJournals(super_dir(data), self._capture_of)
        self.compress = True
        """As of ``Database.compress``, for all that are opened from now on."""
        self._by_name: dict[str, FsDatabase] = {}
        for name in data.names():
            directory = data.database_dir(name)
            if os.path.exists(directory.database):
                self._by_name[name] = FsDatabase(directory)
                self._by_name[name].error = (unrecovered or {}).get(name)

    def __iter__(self) -> Iterator[FsDatabase]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> FsDatabase | None:
        return self._by_name.get(name)

    def _capture_of(self, name: str) -> DatabaseCapture | None:
        db = self._by_name.get(name)
        return db.capture if db is not None else None

    def expose(self, name: str) -> FsDatabase:
        """A database that the node process installed is there now (or was replaced)."""
        db = self._by_name.get(name)
        if db is None:
            db = self._by_name[name] = FsDatabase(self._data.database_dir(name))
        db.close_sums()
        return db

    def create(self, name: str, mode: int) -> FsDatabase:
        """A new, empty database on the primary. Raises InvalidName, OSError."""
        directory = self._data.database_dir(name)
        directory.create()
        os.close(os.open(directory.database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
        db = FsDatabase(directory)
        try:
            self.start_capture(db)
        except BaseException:
            fileops.remove_tree(directory.path)
            raise
        self._by_name[name] = db
        return db

    def remove(self, db: FsDatabase) -> None:
        """Remove a database, durably; of one that had transactions a tombstone tells. What clients have open
        stays readable to them, as of any removed file, but takes no change. Raises OSError.
        """
        position, _ = db.position()
        if position.txid:
            drop(self._data, db.name, position, keep_file=False)
        else:
            fileops.remove_tree(db.dir.path)
        self.forget(db)

    def rename(self, db: FsDatabase, new: str) -> FsDatabase:
        """The database by its new name, durably, in place of the one that has it. Nobody may have it open.

        Raises OSError; then nothing has changed.
        """
        replaced, kept = self._by_name.get(new), None
        if replaced is None:
            rename(self._data, db.name, db.position()[0], new)
        else:
            kept = replace(self._data, db.name, db.position()[0], new, replaced.position()[0])
            self.forget(replaced)
        self.forget(db)
        renamed = self._by_name[new] = FsDatabase(self._data.database_dir(new))
        try:
            self.start_capture(renamed)
        except (LiteFSError, OSError) as exc:
            renamed.error = str(exc)
        if kept is not None:
            tidy(kept)
        return renamed

    def forget(self, db: FsDatabase) -> None:
        """Let go of a database that is gone, or will be: what is not in its log goes with it."""
        if db.capture is not None:
            db.capture.raw.clear()
        db.close()
        db.removed = True
        del self._by_name[db.name]

    def start_capture(self, db: FsDatabase) -> None:
        """Become the log's writer for this database. Raises LiteFSError, OSError."""
        capture, gate = self._open_capture(db)
        db.close_sums()
        db.capture, db.gate = capture, gate

    def _open_capture(self, db: FsDatabase) -> tuple[DatabaseCapture, DatabaseGate]:
        """Its log and its WAL as a replica left them. May run in a thread. Raises LiteFSError, OSError."""
        store = Database.open(db.dir, node_id=self._node_id)
        store.compress = self.compress
        gate = DatabaseGate(self._role, self.replicated, db.name)
        try:
            capture = DatabaseCapture(
                db.name,
                store,
                gate,
                self._watcher,
                db.open_database,
                lambda: self.locks is not None and self.locks.exclusive_held(db.ino),
                self.supers.admit,
            )
            with contextlib.suppress(FileNotFoundError), open(db.dir.wal, "rb") as wal:
                capture.wal.adopt(wal.fileno())
            if not store.position.txid and os.path.getsize(db.dir.database):
                capture.raw.found()
        except BaseException:
            store.close()
            raise
        return capture, gate

    def mounted(self, minor: int) -> None:
        """There is a mount, of that device minor: from now on clients hold locks. Raises OSError."""
        self.locks = LockTable(minor)

    def verify(self, name: str) -> None:
        """``strict-verify``, after a commit: a database whose pages are not as committed takes no more."""
        capture = self._capture_of(name)
        if capture is not None and (wrong := wrong_pages(capture.db.dir, capture.db.sums_file)):
            reason = f"strict-verify: {len(wrong)} pages are not as committed, the first is {wrong[0]}"
            log.error("%s: %s", name, reason)
            capture.db.stop(reason)

    async def sweep(self) -> None:
        """``FsDatabase.sweep`` of each."""
        for db in self:
            await db.sweep()

    async def set_primary(self) -> dict[str, str]:
        """Become the writer of every log; returns whose could not be opened, and why.

        No client may change anything meanwhile: a WAL is read in a thread.
        """
        failed = {}
        for db in self:
            if db.capture is None and db.error is None:
                try:
                    capture, gate = await trio.to_thread.run_sync(self._open_capture, db)
                except (LiteFSError, OSError) as exc:
                    db.error = failed[db.name] = str(exc)
                else:
                    db.close_sums()
                    db.capture, db.gate = capture, gate
        return failed

    def set_replica(self) -> None:
        """Let go of the logs: the node process writes them from now on, but for those written under HALT."""
        for db in self:
            if db.capture is not None and not db.halted:
                db.capture.close()
                db.capture = db.gate = None

    def close(self) -> None:
        for db in self:
            db.close()
        if self.locks is not None:
            self.locks.close()
            self.locks = None
