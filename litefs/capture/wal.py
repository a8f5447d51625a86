"""WAL mode: client writes to ``-wal`` and checkpoints to the database file, judged against the log (DESIGN
§3).

A commit is captured at the write that completes its chain of salts and checksums, before that write is
acknowledged: invariants I2, I3 and I4 of ``docs/concurrency.md`` are held here.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from litefs._core.pagesums import checksums_of
from litefs._core.walcursor import LoggedFrames, Transaction, WalCursor
from litefs.capture.adopt import adopt
from litefs.capture.backfill import Backfill
from litefs.capture.batches import FrameBatches, grown
from litefs.capture.commit import BIG_COMMIT, BigCommit, Gate, Refused, Watcher, now_ms
from litefs.capture.judging import judge, spoil
from litefs.capture.unsealed import Ending, FrameSet, ending, frame_set, only_seals
from litefs.errors import LiteFSError
from litefs.sqlite.wal import FRAME_HEADER
from litefs.sqlite.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litefs.store import fileops
from litefs.store.database import Database

PREALLOCATE = 1 << 20
"""Bytes of WAL that are secured ahead of a completing write, so that most commits need no call for it."""


class WalCapture:
    """The WAL of one database on the primary. Not thread safe; owned by the request loop."""

    inline_bytes = BIG_COMMIT
    """Bytes of pages up to which a commit is logged by the request loop itself."""

    def __init__(
        self, name: str, db: Database, gate: Gate, watcher: Watcher, read_page: Callable[[int, int], bytes]
    ) -> None:
        """``read_page(pgno, page_size)``: that page of the database file, zeros beyond its end."""
        self._name = name
        self._read_page = read_page
        self._file = name + "-wal"
        self._db = db
        self._gate = gate
        self._watcher = watcher
        self._cursor = WalCursor()
        self._frames = LoggedFrames()
        self.backfill = Backfill(name, db, self._frames, watcher)
        self.complete_txid = 0
        """The last transaction at which the database file held every page; it never falls behind that."""
        self._size = 0
        self._secured = 0
        self._unsealed = self._unsealed_before = 0
        """Last frame of a commit that was logged before SQLite sealed its headers; 0: none."""
        self._loose = 0
        """Logged frames of a WAL whose chain SQLite broke: from here on commits are found by position."""

    @property
    def holds_logged_frames(self) -> bool:
        """Whether database writes have to be checkpoints."""
        return self._frames.frames > 0

    @property
    def pending(self) -> int:
        """Pages whose newest logged image is not in the database file."""
        return self._frames.pending

    def adopt(self, fd: int) -> None:
        """Go on with the WAL behind *fd*, all of whose commits are in the log. Raises LogCorrupt, OSError."""
        self._size = self._secured = os.fstat(fd).st_size
        adopt(fd, self._db, self._cursor, self._frames, self._read_page)
        if self._cursor.active:
            self._db.sums.set_wal(
                self._cursor.salt1, self._cursor.salt2, self._frames.frames if self.pending else 0
            )

    @property
    def unsealed(self) -> bool:
        """Whether the log has commits of this WAL that SQLite could not recover from it."""
        return bool(self._unsealed or self._loose)

    # -- the WAL file ------------------------------------------------------------------------------

    def write(self, fd: int, offset: int, data: bytes) -> BigCommit | None:
        """Lay *data* at *offset* of the WAL behind *fd*.

        Raises LiteFSError or OSError; then nothing was committed.
        """
        if offset < WAL_HEADER_SIZE:
            return self._write_header(fd, offset, data)
        cursor = self._cursor
        if not cursor.active:
            self._lay(fd, offset, data)  # SQLite reads nothing behind an invalid header
            return None
        if self._unsealed or self._loose:
            return self._write_unsealed(fd, offset, data)
        if offset < cursor.tip_offset:
            same = min(len(data), cursor.tip_offset - offset)
            if os.pread(fd, same, offset) != data[:same]:
                raise self._unpublished("write over a frame that is in the log")
            if same == len(data):
                self._gate.confirm()  # a client repeats a commit whose outcome it was not told
                return None
            offset, data = offset + same, data[same:]
        commits = self._judge(fd, offset, data)
        if commits and data and cursor.commit_end > offset + len(data):
            commits = spoil(cursor, fd, offset, data, self._size)
        if commits:
            return self._commit(fd, offset, data)
        try:
            self._lay(fd, offset, data)
        except OSError:
            self._resync(fd, offset, len(data))
            raise
        cursor.accept()
        end = offset + len(data)
        match ending(fd, end, self._frame_size, self._salts):
            case Ending.UNSEALED:
                return self._log_by_position(fd, end)
            case Ending.SEALED:
                self._watcher.loose(self._name)
                raise self._unpublished("commit behind frames that are not valid")
        return None

    def truncate(self, fd: int, size: int) -> None:
        """Cut the WAL to *size* bytes (0: checkpoint TRUNCATE; otherwise journal_size_limit)."""
        cursor = self._cursor
        if cursor.active and size < self._tip_offset:
            if self.backfill.unfinished:
                raise self._unpublished("truncation below frames that are in the log")
            if size >= WAL_HEADER_SIZE and self._frames.frames:
                raise Refused(
                    self._file, f"truncation to {size} bytes, inside the frames that are in the log"
                )
        fileops.truncate(fd, size)
        if size < WAL_HEADER_SIZE:
            self._forget()
        self._size = self._secured = size

    def unlink(self) -> None:
        """Whether the WAL may go.

        Raises Refused while it holds the only copy of a logged page (SQLite ignores that).
        """
        if self.backfill.unfinished:
            raise self._unpublished("unlink of a WAL with pages that are not in the database file")
        self._forget()
        self._size = self._secured = 0

    def opened(self, size: int) -> None:
        """A client opened the file; *size* is what it has now."""
        self._size = size
        self._secured = max(self._secured, size)

    def _forget(self) -> None:
        self._cursor = WalCursor()
        self._frames.clear()
        self.complete_txid = self._db.position.txid
        self._unsealed = self._loose = 0
        self.backfill.outdated.clear()
        self._db.sums.set_wal(0, 0, 0)

    def _write_header(self, fd: int, offset: int, data: bytes) -> BigCommit | None:
        old = os.pread(fd, WAL_HEADER_SIZE, 0)
        head, rest = data[: WAL_HEADER_SIZE - offset], data[WAL_HEADER_SIZE - offset :]
        new = bytearray(old.ljust(WAL_HEADER_SIZE, b"\0"))
        new[offset : offset + len(head)] = head
        if bytes(new) != old or not self._cursor.active:
            if self.backfill.unfinished:
                raise self._unpublished("new header over a WAL with pages that are not in the database file")
            self._lay(fd, offset, head)
            self._forget()
            try:
                self._cursor.reset(bytes(new))
            except ValueError:
                pass  # not a header SQLite would accept: nothing in this file counts
            else:
                self._db.sums.set_wal(self._cursor.salt1, self._cursor.salt2, 0)
        # frames that were there before the header may continue its chain: they are judged with it
        return self.write(fd, WAL_HEADER_SIZE, rest) if rest or self._size > WAL_HEADER_SIZE else None

    def _judge(self, fd: int, offset: int, data: bytes) -> int:
        return judge(self._cursor, fd, offset, data, self._size)

    def _lay(self, fd: int, offset: int, data: bytes) -> None:
        fileops.pwrite_all(fd, data, offset)
        self._size = max(self._size, offset + len(data))

    def _resync(self, fd: int, offset: int, length: int) -> None:
        """A write failed half-way: judge what the file holds now instead of what it should have held."""
        self._cursor.reject()
        self._size = os.fstat(fd).st_size
        now = os.pread(fd, length, offset)
        if now:
            if self._judge(fd, offset, now):
                self._cursor.reject()
                self._db.stop(f"{self._file}: a failed write left a commit that is not in the log")
            else:
                self._cursor.accept()

    # -- commits -----------------------------------------------------------------------------------

    def _commit(self, fd: int, offset: int, data: bytes) -> BigCommit | None:
        cursor = self._cursor
        try:
            self._gate.check()
            self._secure(fd, offset + len(data))
            txn = cursor.take()
            assert txn is not None
            if txn.images is None or len(txn.images) > self.inline_bytes:
                return self._big_commit(fd, offset, data, txn)
            new_sums = self._log_small(txn)
        except Exception:
            cursor.reject()
            raise
        self._exists(fd, offset, data, txn, new_sums)
        self._further(fd)
        return None

    def _log_small(self, txn: Transaction) -> bytes:
        """Append a transaction whose images are in memory; returns the checksums of ``txn.pgnos``.

        A commit that changes nothing (the padding that ``psow=0`` asks for repeats one) needs no record.
        """
        db, images, page_size = self._db, txn.images, self._cursor.page_size
        assert images is not None
        prepared = db.prepare(
            txn.pgnos, images, txn.commit, now_ms(), page_size, lambda pgno: self._read_page(pgno, page_size)
        )
        whole = prepared.pgnos is txn.pgnos
        new_sums = prepared.new_sums if whole else checksums_of(txn.pgnos, images, page_size)
        if db.changes(prepared):
            db.append(prepared)
        return new_sums

    def _big_commit(self, fd: int, offset: int, data: bytes, txn: Transaction) -> BigCommit:
        result: list[bytes] = []

        def run() -> None:
            result.append(self._log_big(fd, offset, data, txn))

        def finish(error: Exception | None) -> None:
            if error is not None:
                self._cursor.reject()
                raise error
            self._exists(fd, offset, data, txn, result[0])
            self._further(fd)

        return BigCommit(run, finish)

    def _log_big(self, fd: int, offset: int, data: bytes, txn: Transaction | FrameSet) -> bytes:
        """Append a transaction of any size, read from the WAL; returns the checksums of ``txn.pgnos``."""
        page_size = self._cursor.page_size
        filled = grown(txn, self._db.sums.page_count, page_size)
        batches = FrameBatches(fd, page_size, txn, offset, data, filled, self._read_page)
        new_sums = self._db.commit_stream(batches.pgnos, batches, txn.commit, now_ms(), page_size)
        return batches.sums_of_frames(new_sums)

    def _further(self, fd: int) -> None:
        """Log the commits that the same write completed beyond the first, then confirm."""
        while (txn := self._cursor.take()) is not None:
            try:
                small = txn.images is not None
                new_sums = self._log_small(txn) if small else self._log_big(fd, 0, b"", txn)
            except (OSError, LiteFSError) as exc:
                # its bytes are in the file already and cannot be taken back: recovery will cut them
                self._db.stop(f"{self._file}: the second commit of one write could not be logged: {exc}")
                raise
            self._account(txn, new_sums)
        self._gate.confirm()

    def _exists(self, fd: int, offset: int, data: bytes, txn: Transaction, new_sums: bytes) -> None:
        """The record is in the log: from here on there is no refusal, only the completing bytes."""
        self._cursor.accept()
        self._account(txn, new_sums)
        try:
            self._lay(fd, offset, data)
        except OSError as exc:
            self._db.stop(f"{self._file}: a logged commit could not be completed: {exc}")
            raise

    def _account(self, txn: Transaction, new_sums: bytes) -> None:
        self._frames.add_transaction(txn.first_frame, txn.frame_pgnos, txn.pgnos, new_sums, txn.commit)
        self._cursor.advance(txn.last_frame)
        self._db.sums.set_wal(self._cursor.salt1, self._cursor.salt2, self._cursor.logged_frames)
        self._watcher.logged(self._name)

    def _secure(self, fd: int, end: int) -> None:
        """Allocate up to *end*, so that the completing bytes cannot fail for want of space.

        Raises OSError (ENOSPC).
        """
        start = max(self._size, self._secured)  # what a transaction spilled and rolled back is there, too
        if end <= start:
            return
        try:
            fileops.fallocate(fd, start, end + PREALLOCATE - start)
            self._secured = end + PREALLOCATE
        except OSError:
            fileops.fallocate(fd, start, end - start)
            self._secured = end
        self._size = max(self._size, self._secured)  # what is zero may complete a frame that ends in zeros

    # -- commits that SQLite seals later, or never -------------------------------------------------

    @property
    def _frame_size(self) -> int:
        return self._cursor.page_size + FRAME_HEADER

    @property
    def _salts(self) -> tuple[int, int]:
        return self._cursor.salt1, self._cursor.salt2

    @property
    def _tip_offset(self) -> int:
        """File offset after the last logged frame."""
        return max(self._cursor.tip_offset, WAL_HEADER_SIZE + self._frames.frames * self._frame_size)

    def _write_unsealed(self, fd: int, offset: int, data: bytes) -> BigCommit | None:
        """A write after a commit that was logged by position."""
        tip = self._tip_offset
        if offset < tip:
            inside = data[: tip - offset]
            if not only_seals(fd, offset, inside, self._frame_size):
                raise self._unpublished("write over a frame that is in the log")
            if self._unsealed:
                self._seal(fd, offset, inside)
            else:
                self._lay(fd, offset, inside)
            if len(inside) == len(data):
                return None
            return self.write(fd, tip, data[len(inside) :])
        if self._unsealed:
            self._give_up_seal()
        self._lay(fd, offset, data)
        end = offset + len(data)
        if ending(fd, end, self._frame_size, self._salts) is Ending.NOTHING:
            return None
        return self._log_by_position(fd, end)

    def look_at_seal(self) -> None:
        """Called now and then:

        a commit that was unsealed at the last look too will stay so, its client is dead.
        """
        if self._unsealed and self._unsealed == self._unsealed_before:
            self._give_up_seal()
        self._unsealed_before = self._unsealed

    def _give_up_seal(self) -> None:
        """SQLite went on, or died: what is not sealed now stays so."""
        self._loose, self._unsealed = self._unsealed, 0
        self._db.sums.set_wal(self._cursor.salt1, self._cursor.salt2, 0)
        self._watcher.loose(self._name)

    def _seal(self, fd: int, offset: int, data: bytes) -> None:
        """SQLite seals a frame of the commit that is logged; with the last one the chain is whole again."""
        commits = 0
        if offset >= self._cursor.tip_offset:
            commits = self._judge(fd, offset, data)
        try:
            self._lay(fd, offset, data)
        except OSError as exc:
            if self._cursor.pending() is not None:
                self._resync(fd, offset, len(data))
            self._db.stop(f"{self._file}: a logged commit could not be sealed: {exc}")
            raise
        if self._cursor.pending() is not None:
            self._cursor.accept()
        txn = self._cursor.take() if commits else None
        if txn is not None and txn.last_frame == self._unsealed:
            self._cursor.advance(txn.last_frame)
            self._unsealed = 0
            self._db.sums.set_wal(self._cursor.salt1, self._cursor.salt2, self._cursor.logged_frames)

    def _log_by_position(self, fd: int, end: int) -> BigCommit | None:
        """Log the frames from the tip to *end*, whose last one is a commit frame."""
        self._gate.check()
        frame_size, first = self._frame_size, self._frames.frames + 1
        last = (end - WAL_HEADER_SIZE) // frame_size
        if last < first:
            return None
        page_size = self._cursor.page_size
        result: list[tuple[FrameSet, bytes]] = []

        def run() -> None:
            txn = frame_set(fd, first, last, page_size)
            result.append((txn, self._log_big(fd, 0, b"", txn)))

        def finish(error: Exception | None) -> None:
            if error is not None:
                raise error
            txn, new_sums = result[0]
            self._frames.add_transaction(txn.first_frame, txn.frame_pgnos, txn.pgnos, new_sums, txn.commit)
            if self._loose:
                self._loose = last
            else:
                self._unsealed = last
            self._watcher.logged(self._name)
            self._gate.confirm()

        job = BigCommit(run, finish)
        if (last - first + 1) * page_size > self.inline_bytes:
            return job
        job.run()
        job.finish(None)
        return None

    # -- checkpoints -------------------------------------------------------------------------------

    def checkpoint_write(self, fd: int, offset: int, data: bytes) -> None:
        """A write to the database file while the WAL holds logged frames; raises Refused if it is no
        checkpoint.
        """
        self.backfill.write(fd, offset, data)
        if not self.pending:
            self.complete_txid = self._db.position.txid
            # nothing is left that a publisher would have to care for
            self._db.sums.set_wal(self._cursor.salt1, self._cursor.salt2, 0)

    # -- refusals ----------------------------------------------------------------------------------

    def _unpublished(self, reason: str) -> Refused:
        self._watcher.unpublished(self._name)
        return Refused(self._file, reason)
