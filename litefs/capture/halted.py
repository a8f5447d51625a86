"""A database of a replica that may be written, because the primary holds its write lock for this node (HALT).

Only the WAL is written: the node process keeps SQLite's checkpoint lock meanwhile, so nothing goes back into
the database file. Each commit is encoded in a thread and accepted by the primary before it is appended to the
log (``Database.forward``), so that it can be refused until then; from there on all is as on a primary.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from litefs._core.walcursor import NEED, Transaction
from litefs.capture.commit import BigCommit, Refused, Watcher
from litefs.capture.database import DatabaseCapture
from litefs.capture.unsealed import FrameSet
from litefs.capture.wal import WalCapture
from litefs.errors import CommitRefused, LiteFSError
from litefs.sqlite.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litefs.store.database import Database


class HaltGate:
    """Whether the lock is held, as far as this node knows; implements :class:`litefs.capture.commit.Gate`.

    The primary, which is asked before each append, has the last word.
    """

    def __init__(self, clock_ns: Callable[[], int], deadline_ns: int) -> None:
        """``deadline_ns``: by ``clock_ns``, until which the primary keeps the lock at least."""
        self._clock_ns = clock_ns
        self._deadline_ns = deadline_ns
        self.lost = False

    def extend(self, deadline_ns: int) -> None:
        """The lock was renewed; that brings no lost one back."""
        self._deadline_ns = deadline_ns

    def lose(self) -> None:
        """Nothing may follow, for good: the lock is given up, or the primary may have a transaction that is
        not in the log here."""
        self.lost = True

    def writable(self) -> bool:
        return not self.lost and self._clock_ns() < self._deadline_ns

    def admits(self) -> bool:
        return self.writable()

    def check(self) -> None:
        if not self.writable():
            raise CommitRefused("commit refused: the HALT lock is not held any more")

    def confirm(self) -> None:
        """The primary has it: nothing that happens later can change that. What is still to be told is whether
        its replicas have."""


class HaltedWal(WalCapture):
    """The WAL of such a database, which begins in the middle: the node process wrote it until now."""

    inline_bytes = -1  # the primary is asked first: the request loop cannot wait for that

    def resume(self, fd: int, salts: tuple[int, int], frames: int, backfilled: bool) -> None:
        """Take the first ``frames`` frames for logged, and for checkpointed if ``backfilled``.

        Blocks, reading the WAL. Raises LiteFSError if the WAL is another one, or holds more commits: nothing
        may be written to it then.
        """
        self.opened(os.fstat(fd).st_size)
        self.complete_txid = self._db.position.txid if backfilled else 0
        if not frames:
            return  # who writes next writes a header first
        cursor = self._cursor
        try:
            cursor.reset(os.pread(fd, WAL_HEADER_SIZE, 0))
        except ValueError as error:
            raise LiteFSError(f"{self._file}: {error}") from error
        commits = cursor.propose(WAL_HEADER_SIZE, b"", self._size)
        while commits == NEED:
            at, length = cursor.want()
            commits = cursor.supply(at, os.pread(fd, length, at))
        cursor.accept()
        while (txn := cursor.take()) is not None:
            # the checksums tell checkpoints of older images, of which there are none
            self._frames.add_transaction(
                txn.first_frame, txn.frame_pgnos, txn.pgnos, bytes(2 * len(txn.pgnos)), txn.commit
            )
            cursor.advance(txn.last_frame)
        if (cursor.salt1, cursor.salt2) != salts or self._frames.frames != frames:
            raise LiteFSError(f"{self._file}: its frames are not those that the wal-index announces")
        if backfilled:
            for pgno in memoryview(self._frames.pending_pages()).cast("I"):
                self._frames.backfilled(pgno)
        self._db.sums.set_wal(*salts, frames)

    def _log_big(self, fd: int, offset: int, data: bytes, txn: Transaction | FrameSet) -> bytes:
        if isinstance(txn, Transaction) and txn.images is not None:
            return self._log_small(txn)
        return super()._log_big(fd, offset, data, txn)


class HaltedCapture(DatabaseCapture):
    """As :class:`DatabaseCapture`, but nothing except the WAL may change."""

    wal_type = HaltedWal
    gate: HaltGate

    def __init__(
        self, name: str, db: Database, gate: HaltGate, watcher: Watcher, open_database: Callable[[], int]
    ) -> None:
        super().__init__(name, db, gate, watcher, open_database)

    def resume(self, wal: int, salts: tuple[int, int], frames: int, backfilled: bool) -> None:
        """As :meth:`HaltedWal.resume`; ``wal``: the backing file."""
        assert isinstance(self.wal, HaltedWal)
        self.wal.resume(wal, salts, frames, backfilled)

    def _only_wal(self) -> Refused:
        return Refused(self._name, "a replica with the HALT lock writes through the WAL alone")

    def database_write(
        self, fd: int, offset: int, data: bytes, handle: int | None = None
    ) -> BigCommit | None:
        raise self._only_wal()

    def database_truncate(self, fd: int, size: int, handle: int | None = None) -> None:
        raise self._only_wal()

    def journal_write(self, fd: int, offset: int, data: bytes, database_fd: int | None) -> BigCommit | None:
        raise self._only_wal()
