"""Moving the replica's WAL back into the database file, when and as far as its readers allow.

The protocol is SQLite's own passive checkpoint (wal.c, ``walCheckpoint``), so that no reader waits and none
sees a page change under it. Two things differ. A database that had readers in a rollback mode is not
touched until they are gone (:meth:`WalWriter.may_checkpoint`). And the database file is not synced here:
recovery rebuilds it from the log, which keeps every record beyond ``durable_txid``; what moves that on is
away from the path of commits (``Applier.sync_database``).
"""

from __future__ import annotations

import os
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from litefs._core.walindex import READ_MARK_UNUSED
from litefs.apply import locks
from litefs.apply.wal import WalWriter
from litefs.sqlite.locks import SHM_CKPT, SHM_READ0, SHM_READ_COUNT, SHM_WRITE
from litefs.sqlite.wal import FRAME_HEADER, frame_offset
from litefs.store import fileops

_LOCK_TIMEOUT = 5.0
"""Seconds to wait for CKPT and WRITE; nobody but us takes them on a replica, save for a moment of
recovery."""

_RUN_BYTES = 1 << 20
"""Pages with consecutive numbers are written in one call up to this size."""

_MARK_EVERY = 64
"""Frames between two remembered (frame, TXID) pairs."""


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """When to checkpoint, in frames and bytes of the WAL."""

    start_frames: int = 1000
    """Frames that are not backfilled before the first attempt, as SQLite's own ``wal_autocheckpoint``."""
    retry_frames: int = 50
    """After an attempt that a reader limited: further frames before the next."""
    limit_bytes: int = 64 << 20
    """Size from which applying waits for readers to leave, so that the WAL can start again."""
    limit_step_bytes: int = 16 << 20
    """Growth beyond the limit between two such waits: a long reader costs pauses, never a stop."""
    limit_wait: float = 0.2
    """Seconds of one such wait."""


class Checkpointer:
    """Checkpoints one attached WAL; used by the thread that writes it.

    ``before_write`` is called before a page of the database file is overwritten: it makes the log durable.
    """

    def __init__(
        self, writer: WalWriter, before_write: Callable[[], None], policy: CheckpointPolicy | None = None
    ) -> None:
        self._writer = writer
        self._before_write = before_write
        self.policy = policy or CheckpointPolicy()
        self._next_attempt = self.policy.start_frames
        self._next_wait = self.policy.limit_bytes
        self._marks: deque[tuple[int, int]] = deque()
        self._salt = writer.salt
        self.backfilled_txid = 0
        """The database file holds every page as of this transaction, or newer; not necessarily on the
        disk."""

    @property
    def pending(self) -> int:
        """Frames that are not in the database file."""
        return self._writer.frames - self._writer.shm.index.backfill

    def applied(self, txid: int) -> None:
        """The WAL's last frame ends transaction ``txid``. Call after each write; cheap."""
        frames = self._writer.frames
        if self._writer.salt != self._salt:
            self._salt = self._writer.salt
            self._marks.clear()
            self._next_attempt = self.policy.start_frames
            self._next_wait = self.policy.limit_bytes
        marks = self._marks
        if len(marks) > 1 and frames - marks[-2][0] < _MARK_EVERY:
            marks.pop()
        marks.append((frames, txid))

    def rebase(self, txid: int) -> None:
        """The database was replaced as a whole by the last write, which ends transaction ``txid``, older or
        newer."""
        self._marks.clear()
        self.backfilled_txid = 0
        self.applied(txid)

    def maybe_run(self) -> bool:
        """Checkpoint if the policy says so; at the hard limit wait a little for readers. True if one was
        attempted.

        Raises OSError, LockTimeout.
        """
        if self._writer.frames < self._next_attempt:
            return False
        self._next_attempt = self._writer.frames + self.policy.start_frames  # if it fails
        complete = self.run()
        self._next_attempt = self._writer.frames + self.policy.retry_frames
        size = self._writer.frames * self._writer.frame_size
        if size >= self._next_wait:
            self._wait_for_readers(complete)
            self._next_wait = size + self.policy.limit_step_bytes
        return True

    def _wait_for_readers(self, complete: bool) -> None:
        """Wait until the WAL can start again, at most the policy's ``limit_wait``."""
        deadline = time.monotonic() + self.policy.limit_wait
        while not (complete and self._writer.can_restart()) and time.monotonic() < deadline:
            time.sleep(0.005)
            complete = complete or self.run()

    def run(self) -> bool:
        """Backfill as far as readers allow, without waiting for any. True if nothing is left to backfill."""
        writer = self._writer
        if not self.pending:
            return True
        if not writer.may_checkpoint():
            return False
        with (
            locks.exclusive(writer.shm.fd, SHM_CKPT, timeout=_LOCK_TIMEOUT),
            locks.exclusive(writer.shm.fd, SHM_WRITE, timeout=_LOCK_TIMEOUT),
        ):
            safe = self._safe_frame()
            if safe > writer.shm.index.backfill and not self._backfill(safe):
                return False
        while self._marks and self._marks[0][0] <= safe:
            self.backfilled_txid = self._marks.popleft()[1]
        return safe == writer.frames

    def _safe_frame(self) -> int:
        """The last frame that no reader needs kept out of the database file; raises the marks that nobody
        holds."""
        shm = self._writer.shm
        safe = self._writer.frames
        for mark in range(1, SHM_READ_COUNT):
            frame = shm.index.read_mark(mark)
            if frame >= safe:  # an unused mark is the greatest number
                continue
            if locks.try_exclusive(shm.fd, SHM_READ0 + mark):
                shm.index.set_read_mark(mark, safe if mark == 1 else READ_MARK_UNUSED)
                locks.unlock(shm.fd, SHM_READ0 + mark)
            else:
                safe = frame
        return safe

    def _backfill(self, safe: int) -> bool:
        """Copy the newest images up to frame ``safe``; False if a reader of the bare database file is
        inside."""
        writer = self._writer
        index = writer.shm.index
        if not locks.try_exclusive(writer.shm.fd, SHM_READ0):
            return False
        try:
            self._before_write()
            index.backfill_attempted = safe
            pgnos, frames = (array("I", part) for part in index.newest(safe, index.backfill + 1))
            self._copy(pgnos, frames)
            if safe == writer.frames:
                size = writer.page_count * writer.page_size
                if os.fstat(writer.db_fd).st_size > size:
                    fileops.truncate(writer.db_fd, size)
            index.backfill = safe
        finally:
            locks.unlock(writer.shm.fd, SHM_READ0)
        return True

    def _copy(self, pgnos: array[int], frames: array[int]) -> None:
        """Write pages, ascending, from their WAL frames to the database file; neighbours in one call."""
        writer = self._writer
        size, limit = writer.page_size, max(1, _RUN_BYTES // writer.page_size)
        run: list[bytes] = []
        start = 0
        for pgno, frame in zip(pgnos, frames, strict=True):
            if pgno > writer.page_count:
                break
            if run and (pgno != start + len(run) or len(run) == limit):
                fileops.pwrite_all(writer.db_fd, b"".join(run), (start - 1) * size)
                run.clear()
            if not run:
                start = pgno
            run.append(fileops.pread_all(writer.wal_fd, size, frame_offset(frame, size) + FRAME_HEADER))
        if run:
            fileops.pwrite_all(writer.db_fd, b"".join(run), (start - 1) * size)
