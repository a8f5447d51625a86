"""The log of one database: its single writer.

A record exists once ``append`` returned. It is one ``pwritev`` of head, body and padding into space that was
filled with zeros before, so that a full disk is met before anything of the record is in the file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path

import xxhash

from litefs.errors import LogSyncFailed, PositionMismatch
from litefs.store import fileops
from litefs.store.append import LogAppend
from litefs.store.segments import (
    LENGTH,
    PREALLOCATE_MIN,
    RECORD_HEAD,
    RECORD_HEAD_SIZE,
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    SegmentMap,
    list_segments,
    segment_path,
)
from litefs.store.tail import Cut, remove_unborn, scan
from litefs.types import Point, Position

SEGMENT_BYTES = 16 << 20
"""A segment that would grow beyond this is closed; a bigger record has one of its own."""
SEGMENT_SECONDS = 60.0
"""A segment is closed at the first append after this age, so that retention by age has something to delete.
"""
PREALLOCATE_MAX = 1 << 20
ONE_WRITE_MAX = 1 << 20
"""Bigger records are written body first, head last, without filling their space with zeros before."""

_PADS = tuple(bytes(n) for n in range(8))
_COPY = 1 << 20
_BLOCK = 4096


class Log:
    """The writer. Not for use by two threads at once; other processes read with ``LogReader`` at any time."""

    def __init__(self, directory: Path, fd: int, header: SegmentHeader, tip: Point, end: int) -> None:
        """Use ``create`` or ``open``. ``end``: where the next record goes in the segment open as ``fd``."""
        self.directory = directory
        self.tip = tip
        """The last transaction in the log."""
        self.page_size = header.page_size
        self.cut: Cut | None = None
        """What opening the log removed, if anything."""
        self._fd = fd
        self._header = header
        self._end = end
        self._allocated = max(end, os.fstat(fd).st_size)
        self._synced = header.base
        self._synced_end = SEGMENT_HEADER_SIZE
        self._sync_failed = False
        self._directory_dirty = False
        self._inherited = (0, 0)
        """From where to where the segment holds what the process before did not sync. If that one tried
        and failed, the page cache has it, and the disk may not, but a sync would tell of success."""
        self._expires = time.monotonic() + SEGMENT_SECONDS
        self._open_append: LogAppend | None = None

    @classmethod
    def create(cls, directory: Path, base: Point, page_size: int) -> Log:
        """Start a log whose first record follows ``base``. Durable on return.

        Raises FileExistsError, OSError.
        """
        fileops.make_dir(directory)
        if list_segments(directory):
            raise FileExistsError(f"{directory}: there is a log already")
        header = SegmentHeader(base, page_size)
        path = segment_path(directory, header.first_txid)
        fileops.write_file_atomic(path, header.pack())
        return cls(directory, os.open(path, os.O_RDWR | os.O_CLOEXEC), header, base, SEGMENT_HEADER_SIZE)

    @classmethod
    def open(cls, directory: Path, *, synced_txid: int = 0, trusted: Point | None = None) -> Log:
        """Open the log to append to it, removing a torn tail (then ``cut`` says what was removed).

        ``synced_txid``: records up to it are known to have reached the disk, so nothing of them is cut as a
        write lost in a power failure. ``trusted``: the tip that was stored at a clean stop; if the records
        lead to it, their bodies are not read. Raises LogCorrupt naming segment and offset, FileNotFoundError
        without a log, OSError.
        """
        for leftover in directory.glob("*.tmp"):
            fileops.unlink(leftover)
        segments = list_segments(directory)
        if not segments:
            raise FileNotFoundError(f"{directory}: no log segments")
        cut: Cut | None = None
        if len(segments) > 1 and (cut := remove_unborn(segments[-1][1], segments[-1][0])) is not None:
            segments.pop()
        path = segments[-1][1]
        tail = scan(path, synced_txid, trusted)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if tail.excess:
                cut = Cut(path, tail.end, tail.excess, tail.tip.txid)
                fileops.truncate(fd, tail.end)
                fileops.fdatasync(fd)
            log = cls(directory, fd, tail.header, tail.tip, tail.end)
        except BaseException:
            os.close(fd)
            raise
        log.cut = cut
        log._inherited = (tail.synced_end, tail.end)
        log._directory_dirty = True
        return log

    @property
    def first_txid(self) -> int:
        """The first transaction that the log still holds, or would hold."""
        segments = list_segments(self.directory)
        return segments[0][0] if segments else self.tip.txid + 1

    @property
    def synced(self) -> Point:
        """``sync`` succeeded up to here (in this process; what is before this process's segment counts as
        synced).
        """
        return self._synced

    @property
    def synced_txid(self) -> int:
        """The transaction of ``synced``."""
        return self._synced.txid

    def append(self, record: bytes | bytearray | memoryview, txid: int, post: int) -> None:
        """Append a whole LTX file whose last transaction is ``txid`` and whose post-apply checksum is
        ``post``.

        Raises OSError (ENOSPC and others): then the log is as before. Raises PositionMismatch if ``txid`` is
        not new.
        """
        if txid <= self.tip.txid:
            raise PositionMismatch(f"{self.directory}: TXID {txid:016x} offered after {self.tip.txid:016x}")
        length = len(record)
        if length > ONE_WRITE_MAX:
            with self.begin() as big:
                big.write(record)
                big.commit(txid, post)
            return
        size = RECORD_HEAD_SIZE + (length + 7 & ~7)
        self._make_room(size)
        offset = self._end
        state = xxhash.xxh3_64(record)
        state.update(LENGTH.pack(length))
        digest = state.intdigest()
        head = RECORD_HEAD.pack(length, digest)
        try:
            fileops.pwritev_all(self._fd, (head, record, _PADS[-length & 7]), offset)
        except OSError:
            self._erase(offset, size)
            raise
        self._end = offset + size
        self.tip = Point(txid, post, digest)

    def begin(self) -> LogAppend:
        """Start a record that comes in pieces.

        Nothing else may be appended until it is committed or aborted.
        """
        if self._open_append is not None:
            raise RuntimeError(f"{self.directory}: another record is being written")
        self._make_room(RECORD_HEAD_SIZE)
        self._open_append = LogAppend(self._fd, self._end, self.tip.txid, self._finish_append)
        return self._open_append

    def begin_segment(self, page_size: int) -> LogAppend:
        """As ``begin``, for a full record, which changes the page size: the first one of a new segment.

        The segment gets its name with the record, so that there is never one of a page size that the database
        does not have. What the log has is synced before. Raises LogSyncFailed, OSError.
        """
        if self._open_append is not None:
            raise RuntimeError(f"{self.directory}: another record is being written")
        with contextlib.suppress(LogSyncFailed):
            self.sync()
        self.sync()  # after a failure in another file
        fd, header = self._new_segment(page_size)
        finish = functools.partial(self._finish_segment, fd, header)
        self._open_append = LogAppend(fd, SEGMENT_HEADER_SIZE, self.tip.txid, finish)
        return self._open_append

    def sync(self) -> None:
        """Make every record durable. Raises LogSyncFailed; that file is then never synced again.

        The next ``append`` or ``sync`` puts all that may be missing on disk into a new segment.
        """
        if self._sync_failed:
            self._supersede()
        if self._synced != self.tip:
            self._flush()

    def _flush(self) -> None:
        tip, end = self.tip, self._end
        try:
            self._write_again()
            fileops.fdatasync(self._fd)
            if self._directory_dirty:
                fileops.sync_dir(self.directory)
        except OSError as error:
            self._sync_failed = True
            raise LogSyncFailed(f"{self._path}: {error}") from error
        self._directory_dirty = False
        self._synced, self._synced_end = tip, end

    def _write_again(self) -> None:
        """Write what was inherited once more, so that the next sync is one of it."""
        start, end = self._inherited
        if start == end:
            return
        direct = fileops.open_direct(self._path)
        try:
            # from a whole block on, as direct I/O wants it: what is before is on the disk
            for offset in range(start // _BLOCK * _BLOCK, end, _COPY):
                data = fileops.pread_all(self._fd, _COPY, offset)
                fileops.rewrite(self._fd, direct, data, offset)
        finally:
            if direct >= 0:
                os.close(direct)
        self._inherited = (0, 0)

    def retract(self, tip: Position) -> None:
        """Remove the last record, which nobody was told of, durably: the log ends at ``tip`` again.

        It is overwritten with zeros, not cut off: another process may have the segment mapped. Raises
        PositionMismatch if the log does not end with one record after ``tip``; OSError and LogSyncFailed,
        then the record may be there or not, and nothing may be appended.
        """
        if self._sync_failed:
            raise LogSyncFailed(f"{self._path}: a record cannot be taken out of a segment whose fsync failed")
        last = None
        with SegmentMap(self._path) as segment:
            before = behind = segment.header.base
            for last in segment.extents(verify=False):
                before, behind = behind, last.point
        if last is None or last.end != self._end or before.position != tip:
            raise PositionMismatch(f"{self._path}: does not end with one record after {tip}")
        fileops.write_zeros(self._fd, last.offset, last.end)
        self.tip, self._end = before, last.offset
        if self._synced.txid > tip.txid:
            self._synced, self._synced_end = before, last.offset
        self._flush()

    def close(self) -> None:
        """Give the unused space back and close, without a sync; harmless if repeated."""
        if self._open_append is not None:
            self._open_append.abort()
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                fileops.truncate(self._fd, self._end)
            os.close(self._fd)
            self._fd = -1

    @property
    def _path(self) -> Path:
        return segment_path(self.directory, self._header.first_txid)

    def _make_room(self, size: int) -> None:
        """Ensure written space for ``size`` bytes and for the zeros that mark the end behind them."""
        if self._open_append is not None:
            raise RuntimeError(f"{self.directory}: another record is being written")
        if self._sync_failed:
            self._supersede()
        if self._end > SEGMENT_HEADER_SIZE and (
            self._end + size > SEGMENT_BYTES or time.monotonic() > self._expires
        ):
            self._rotate()
        need = self._end + size + RECORD_HEAD_SIZE
        if need <= self._allocated:
            return
        ahead = max(PREALLOCATE_MIN, min(PREALLOCATE_MAX, self._allocated))
        try:
            fileops.write_zeros(self._fd, self._allocated, need + ahead)
            self._allocated = need + ahead
        except OSError:
            fileops.write_zeros(self._fd, self._allocated, need)
            self._allocated = need

    def _erase(self, offset: int, size: int) -> None:
        """Remove what a failed write left, as far as possible: it is no record, and means nothing."""
        with contextlib.suppress(OSError):
            fileops.write_zeros(self._fd, offset, offset + size)

    def _rotate(self) -> None:
        """Open the next segment; only the last one may ever be torn, so the present one is synced before."""
        try:
            self.sync()
        except LogSyncFailed:
            self._supersede()
            return
        fd, header = self._new_segment(self.page_size)
        self._enter(fd, header, PREALLOCATE_MIN)

    def _new_segment(self, page_size: int) -> tuple[int, SegmentHeader]:
        """A segment that begins after the tip, but has only its temporary name yet."""
        header = SegmentHeader(self.tip, page_size)
        temporary = _temporary(segment_path(self.directory, header.first_txid))
        fd = fileops.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            fileops.pwrite_all(fd, header.pack(), 0)
            fileops.write_zeros(fd, SEGMENT_HEADER_SIZE, PREALLOCATE_MIN)
        except BaseException:
            os.close(fd)
            raise
        return fd, header

    def _enter(self, fd: int, header: SegmentHeader, allocated: int) -> None:
        """Give a new segment its name and go on in it.

        Raises OSError; then ``fd`` is closed, and nothing else has changed.
        """
        path = segment_path(self.directory, header.first_txid)
        try:
            # A header that missed the disk while records behind it reached it would look like damage; and a
            # segment that this log does not go on in would hide the records that follow in the present one.
            fileops.fdatasync(fd)
            fileops.rename(_temporary(path), path)
        except BaseException:
            os.close(fd)
            raise
        with contextlib.suppress(OSError):
            fileops.truncate(self._fd, self._end)
        self._adopt(fd, header, SEGMENT_HEADER_SIZE, allocated)
        self._directory_dirty = True

    def _supersede(self) -> None:
        """After a failed fsync: copy the records that may not be on disk into a new segment, and sync that.

        Raises LogSyncFailed if they can no longer be read or the new segment cannot be made durable either.
        """
        header = SegmentHeader(self._synced, self.page_size)
        path = segment_path(self.directory, header.first_txid)
        temporary = _temporary(path)
        fd = fileops.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            fileops.pwrite_all(fd, header.pack(), 0)
            for start in range(self._synced_end, self._end, _COPY):
                data = fileops.pread_all(self._fd, min(_COPY, self._end - start), start)
                fileops.pwrite_all(fd, data, start - self._synced_end + SEGMENT_HEADER_SIZE)
            with SegmentMap(temporary) as copy:
                last = header.base
                for extent in copy.extents(verify=True):
                    last = extent.point
            if last != self.tip:
                raise LogSyncFailed(f"{self._path}: records after a failed fsync can no longer be read")
            fileops.fdatasync(fd)
            fileops.rename(temporary, path)
            fileops.sync_dir(self.directory)
        except OSError as error:
            os.close(fd)
            raise LogSyncFailed(f"{path}: {error}") from error
        except BaseException:
            os.close(fd)
            raise
        end = SEGMENT_HEADER_SIZE + self._end - self._synced_end
        self._adopt(fd, header, end, end)
        self._sync_failed = False

    def _adopt(self, fd: int, header: SegmentHeader, end: int, allocated: int) -> None:
        os.close(self._fd)
        self._fd, self._header, self.page_size = fd, header, header.page_size
        self._end, self._allocated = end, allocated
        self._synced, self._synced_end = self.tip, end
        self._inherited = (0, 0)
        self._expires = time.monotonic() + SEGMENT_SECONDS

    def _finish_append(self, end: int | None, tip: Point | None) -> None:
        """The record of ``begin`` ended at ``end`` and leads to ``tip``, or (None) it was given up."""
        self._open_append = None
        if end is not None and tip is not None:
            self._end, self.tip = end, tip
            self._allocated = max(self._allocated, end + RECORD_HEAD_SIZE)
        else:
            # What the record left behind its missing head must not lie under the end marks of later records.
            self._allocated = self._end
            try:
                fileops.truncate(self._fd, self._end)
            except OSError:
                self._expires = 0.0

    def _finish_segment(self, fd: int, header: SegmentHeader, end: int | None, tip: Point | None) -> None:
        """The same for that of ``begin_segment``. Raises OSError; then it was given up."""
        self._open_append = None
        if end is None or tip is None:
            os.close(fd)
            with contextlib.suppress(OSError):
                fileops.unlink(_temporary(segment_path(self.directory, header.first_txid)))
            return
        self._enter(fd, header, max(end + RECORD_HEAD_SIZE, PREALLOCATE_MIN))
        self._end, self.tip = end, tip


def _temporary(path: Path) -> Path:
    """What a segment is called until it is whole; ``Log.open`` removes it."""
    return path.with_name(path.name + ".tmp")
