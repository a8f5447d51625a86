"""WAL mode: client writes to ``-wal`` and checkpoints to the database file, judged against the log (DESIGN
§3).

A commit is captured at the write that completes its chain of salts and checksums, before that write is
acknowledged: invariants I2, I3 and I4 of ``docs/concurrency.md`` are held here.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterator

from litefs._core.pagesums import checksums_of, page_checksum
from litefs._core.walcursor import NEED, LoggedFrames, Transaction, WalCursor
from litefs.capture.commit import BIG_COMMIT, BigCommit, Gate, Refused, Watcher
from litefs.errors import LiteFSError
from litefs.ltx.format import lock_pgno
from litefs.sqlite.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litefs.store import fileops
from litefs.store.database import Database

PREALLOCATE = 1 << 20
"""Bytes of WAL that are secured ahead of a completing write, so that most commits need no call for it."""


class WalCapture:
    """The WAL of one database on the primary. Not thread safe; owned by the request loop."""

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
        self._size = 0
        self._secured = 0

    @property
    def holds_logged_frames(self) -> bool:
        """Whether database writes have to be checkpoints."""
        return self._frames.frames > 0

    @property
    def pending(self) -> int:
        """Pages whose newest logged image has not reached the database file."""
        return self._frames.pending

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
        if offset < cursor.tip_offset:
            same = min(len(data), cursor.tip_offset - offset)
            if os.pread(fd, same, offset) != data[:same]:
                raise self._unpublished("write over a frame that is in the log")
            if same == len(data):
                return None
            offset, data = offset + same, data[same:]
        commits = self._judge(fd, offset, data)
        if commits:
            return self._commit(fd, offset, data)
        try:
            self._lay(fd, offset, data)
        except OSError:
            self._resync(fd, offset, len(data))
            raise
        cursor.accept()
        return None

    def truncate(self, fd: int, size: int) -> None:
        """Cut the WAL to *size* bytes (0: checkpoint TRUNCATE; otherwise journal_size_limit)."""
        cursor = self._cursor
        if cursor.active and size < cursor.tip_offset:
            if self._frames.pending:
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
        if self._frames.pending:
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
        self._db.sums.set_wal(0, 0, 0)

    def _write_header(self, fd: int, offset: int, data: bytes) -> BigCommit | None:
        old = os.pread(fd, WAL_HEADER_SIZE, 0)
        head, rest = data[: WAL_HEADER_SIZE - offset], data[WAL_HEADER_SIZE - offset :]
        new = bytearray(old.ljust(WAL_HEADER_SIZE, b"\0"))
        new[offset : offset + len(head)] = head
        if bytes(new) != old or not self._cursor.active:
            if self._frames.pending:
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
        cursor = self._cursor
        commits = cursor.propose(offset, data, self._size)
        while commits == NEED:
            at, length = cursor.want()
            commits = cursor.supply(at, os.pread(fd, length, at))
        return commits

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
            if txn.images is None or len(txn.images) > BIG_COMMIT:
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
        if prepared.position.checksum != db.sums.checksum or txn.commit != db.sums.page_count:
            db.append(prepared)
        if prepared.pgnos is txn.pgnos:
            return prepared.new_sums
        return checksums_of(txn.pgnos, images, page_size)

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

    def _log_big(self, fd: int, offset: int, data: bytes, txn: Transaction) -> bytes:
        """Append a transaction of any size, read from the WAL; returns the checksums of ``txn.pgnos``."""
        page_size = self._cursor.page_size
        batches = FrameBatches(fd, page_size, txn, offset, data, self._grown(txn), self._read_page)
        new_sums = self._db.commit_stream(batches.pgnos, batches, txn.commit, now_ms(), page_size)
        return batches.sums_of_frames(new_sums)

    def _grown(self, txn: Transaction) -> list[int]:
        """Pages that the database grows by and that SQLite did not write, because they are on its free list.
        """
        old = self._db.sums.page_count
        if txn.commit <= old:
            return []
        given = {pgno for pgno in memoryview(txn.pgnos).cast("I") if pgno > old}
        given.add(lock_pgno(self._cursor.page_size))
        return [pgno for pgno in range(old + 1, txn.commit + 1) if pgno not in given]

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
        if end <= self._secured:
            return
        start = max(self._size, self._secured)
        try:
            fileops.fallocate(fd, start, end + PREALLOCATE - start)
            self._secured = end + PREALLOCATE
        except OSError:
            fileops.fallocate(fd, start, end - start)
            self._secured = end

    # -- checkpoints -------------------------------------------------------------------------------

    def checkpoint_write(self, fd: int, offset: int, data: bytes) -> None:
        """A write to the database file while the WAL holds logged frames. Raises Refused if it is no
        checkpoint.

        Log first (I5): what it overwrites must be recoverable.
        """
        page_size = self._db.page_size
        self._db.sync()
        end = offset + len(data)
        marks: list[int] = []
        for pgno in range(offset // page_size + 1, (end - 1) // page_size + 2):
            start = (pgno - 1) * page_size
            piece = data[max(0, start - offset) : start + page_size - offset]
            if len(piece) == page_size:
                page = piece
            else:
                page = self._overlaid(fd, pgno, max(offset, start) - start, piece)
            total = page_checksum(pgno, page)
            if total == self._db.sums.get(pgno):
                marks.append(pgno)
            elif not self._frames.knows(pgno, total):
                raise Refused(
                    self._name,
                    f"write to page {pgno} that is no checkpoint while the WAL holds logged frames",
                )
        fileops.pwrite_all(fd, data, offset)
        for pgno in marks:
            self._frames.backfilled(pgno)

    def _overlaid(self, fd: int, pgno: int, at: int, piece: bytes) -> bytes:
        """The page as it would be after a write that covers it only in part."""
        page_size = self._db.page_size
        page = bytearray(os.pread(fd, page_size, (pgno - 1) * page_size).ljust(page_size, b"\0"))
        page[at : at + len(piece)] = piece
        return bytes(page)

    def checkpoint_truncate(self, size: int) -> None:
        """Whether a checkpoint may cut the database to *size* bytes.

        Raises Refused if logged pages would be lost.
        """
        kept = size // self._db.page_size
        for pgno in range(kept + 1, self._db.sums.page_count + 1):
            if not self._frames.is_pending(pgno):
                raise Refused(
                    self._name, f"truncation to {kept} pages, page {pgno} is only in the database file"
                )

    # -- refusals ----------------------------------------------------------------------------------

    def _unpublished(self, reason: str) -> Refused:
        self._watcher.unpublished(self._name)
        return Refused(self._file, reason)


class FrameBatches:
    """The page images of a big transaction, read from the WAL with the write that completes it laid over.

    Iterable more than once; yields ``(pgnos, images)``: native u32 ascending, and their contiguous pages.
    ``grown`` pages come from the database file.
    """

    PAGES = 256

    def __init__(
        self,
        fd: int,
        page_size: int,
        txn: Transaction,
        offset: int,
        data: bytes,
        grown: list[int],
        read_page: Callable[[int, int], bytes],
    ) -> None:
        self._fd = fd
        self._page_size = page_size
        self._offset = offset
        self._data = data
        self._read_page = read_page
        pages = list(zip(memoryview(txn.pgnos).cast("I"), memoryview(txn.offsets).cast("Q"), strict=True))
        self._pages = sorted(pages + [(pgno, 0) for pgno in grown]) if grown else pages

    @property
    def pgnos(self) -> bytes:
        return array("I", (pgno for pgno, _ in self._pages)).tobytes()

    def sums_of_frames(self, sums: bytes) -> bytes:
        """Of the checksums of all pages (native u64) those of pages that have a frame."""
        of_all = memoryview(sums).cast("Q")
        return array("Q", (of_all[i] for i, (_, offset) in enumerate(self._pages) if offset)).tobytes()

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for first in range(0, len(self._pages), self.PAGES):
            part = self._pages[first : first + self.PAGES]
            numbers = array("I", (pgno for pgno, _ in part)).tobytes()
            yield numbers, b"".join(self._page(pgno, offset) for pgno, offset in part)

    def _page(self, pgno: int, offset: int) -> bytes:
        if not offset:
            return self._read_page(pgno, self._page_size)
        page = os.pread(self._fd, self._page_size, offset)
        low, high = max(offset, self._offset), min(offset + self._page_size, self._offset + len(self._data))
        if low >= high:
            return page
        whole = bytearray(page.ljust(self._page_size, b"\0"))
        whole[low - offset : high - offset] = self._data[low - self._offset : high - self._offset]
        return bytes(whole)


def now_ms() -> int:
    """Unix milliseconds, the LTX timestamp."""
    return time.time_ns() // 1_000_000
