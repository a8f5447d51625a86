"""Reading the log, in any process and without a lock, while its writer goes on.

The writer publishes a transaction in the ``sums`` file after the append, so whatever lies at or below that
TXID is whole; a reader is told how far it may read and never judges what is beyond.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from litefs.errors import LogCorrupt, PositionMismatch
from litefs.ltx.decoder import read_page
from litefs.ltx.format import INDEX_LENGTH_SIZE, TRAILER_SIZE, index_span, parse_index
from litefs.store import fileops
from litefs.store.segments import (
    LENGTH,
    MIN_BODY,
    RECORD_HEAD,
    RECORD_HEAD_SIZE,
    SEGMENT_HEADER_SIZE,
    Extent,
    SegmentHeader,
    extents,
    list_segments,
    read_extent,
    record_end,
    record_hash,
)
from litefs.types import START, Point

if TYPE_CHECKING:
    from typing_extensions import Buffer

STREAM_BYTES = 8 << 20
"""Bodies above this are not read into memory by ``read``; take ``Entry.open``."""

_SMALL_READ = 16 << 10
_OPEN_SEGMENTS = 64
_BIG_READ = 256 << 10
_PREFIX = 100
_SUFFIX = TRAILER_SIZE
_INDEX_TAIL = INDEX_LENGTH_SIZE + TRAILER_SIZE


@dataclass(frozen=True, slots=True)
class Entry:
    """One record."""

    extent: Extent
    body: bytes
    """The LTX file; empty if it is bigger than ``STREAM_BYTES``: then take ``open``."""

    @property
    def txid_min(self) -> int:
        return self.extent.txid_min

    @property
    def txid_max(self) -> int:
        return self.extent.txid_max

    @property
    def size(self) -> int:
        """Bytes of the LTX file."""
        return self.extent.size

    @property
    def point(self) -> Point:
        """Where this record leads."""
        return self.extent.point

    def open(self) -> io.BufferedReader:
        """The LTX file as a stream from its first byte. Raises FileNotFoundError if retention removed it,
        OSError.

        The stream raises LogCorrupt when its end is reached and the bytes were not those that were appended.
        """
        return io.BufferedReader(_BodyStream(self.extent), _BIG_READ)


class _BodyStream(io.RawIOBase):
    """The body of a record, hashed as it is read."""

    def __init__(self, extent: Extent) -> None:
        super().__init__()
        self._extent = extent
        self._fd = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC)
        self._done = 0
        self._state = xxhash.xxh3_64()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._extent.size - self._done)
        if size == 0:
            return 0
        got = os.preadv(self._fd, [view[:size]], self._extent.body_offset + self._done)
        if got == 0:
            raise LogCorrupt(f"{self._extent.path}: offset {self._extent.offset}: the record is cut off")
        self._state.update(view[:got])
        self._done += got
        if self._done == self._extent.size:
            self._state.update(LENGTH.pack(self._done))
            if self._state.intdigest() != self._extent.digest:
                raise LogCorrupt(
                    f"{self._extent.path}: offset {self._extent.offset}: record checksum is wrong"
                )
        return got

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


@dataclass(frozen=True, slots=True)
class Image:
    """Where the log holds a page: ``size`` bytes of page frame at ``offset`` of the segment at ``path``."""

    path: Path
    offset: int
    size: int


class ImageReader:
    """Reads logged page images, keeping segments open between reads. A context."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}

    def page(self, pgno: int, image: Image, page_size: int) -> bytes:
        """The page.

        Raises FormatError if the image is damaged, FileNotFoundError if retention removed it, OSError.
        """
        fd = self._fds.get(image.path)
        if fd is None:
            if len(self._fds) >= _OPEN_SEGMENTS:
                self.close()
            fd = self._fds[image.path] = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC)
        frame = fileops.pread_all(fd, image.size, image.offset)
        return read_page(frame, 0, len(frame), page_size, pgno)

    def close(self) -> None:
        """Close the segments; a later read opens them again."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class LogReader:
    """A cursor into a log. Holds one segment open, which stays readable if retention unlinks it."""

    def __init__(self, directory: Path) -> None:
        """Needs ``seek`` before the first ``read``."""
        self.directory = directory
        self.point = START
        """The transaction that the next record follows."""
        self._fd = -1
        self._path = directory
        self._inode = 0
        self._offset = 0
        self._following: int | None = None
        self._chunk = _SMALL_READ

    @property
    def first_txid(self) -> int:
        """The first transaction that the log still holds, or would hold; 0 without a log."""
        segments = list_segments(self.directory)
        return segments[0][0] if segments else 0

    def seek(self, after: Point) -> bool:
        """Go to the record that follows ``after``; False if this log does not know that point.

        That is: it no longer reaches back that far, never reached it, or came there by another history.
        """
        if not self._open_segment(after.txid + 1):
            return False
        while self.point.txid < after.txid:
            entries = self._scan(_BIG_READ, after.txid, strict=False)
            if not entries:
                return False
        return self.point == after

    def point_at(self, txid: int) -> Point | None:
        """The point after transaction ``txid``, or None if this log does not know it. Moves the cursor."""
        if not self._open_segment(txid + 1):
            return None
        while self.point.txid < txid:
            if not self._scan(_BIG_READ, txid, strict=False):
                return None
        return self.point if self.point.txid == txid else None

    def tip(self) -> Point:
        """The point after the last whole record; START without a log. Moves the cursor."""
        segments = list_segments(self.directory)
        if not segments or not self._open_segment(segments[-1][0]):
            return START
        while self._scan(_BIG_READ, sys.maxsize, strict=False):
            pass
        return self.point

    def read(self, upto_txid: int, max_bytes: int = 1 << 20) -> list[Entry]:
        """The next records, up to ``upto_txid``, which must be published: about ``max_bytes`` of bodies, at
        least one record.

        Empty once the cursor is there. Raises LogCorrupt if a record at or below ``upto_txid`` is not whole,
        PositionMismatch if retention removed it (the reader must start again from a snapshot).
        """
        entries: list[Entry] = []
        while self.point.txid < upto_txid and max_bytes > 0:
            found = self._scan(max_bytes, upto_txid, strict=True)
            if found:
                entries += found
                max_bytes -= sum(entry.size for entry in found)
            elif not self._open_following(upto_txid):
                raise LogCorrupt(
                    f"{self._path}: offset {self._offset}: no record after TXID {self.point.txid:016x}, "
                    f"though {upto_txid:016x} was published"
                )
        return entries

    def close(self) -> None:
        """Harmless if repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _open_segment(self, txid: int) -> bool:
        """Open the segment that holds ``txid`` or would; False if the log does not reach back to it."""
        segments = list_segments(self.directory)
        index = sum(first <= txid for first, _ in segments) - 1
        if index < 0:
            return False
        path = segments[index][1]
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            header = SegmentHeader.unpack(os.pread(fd, SEGMENT_HEADER_SIZE, 0), path)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._path, self._inode = fd, path, os.fstat(fd).st_ino
        self._offset = SEGMENT_HEADER_SIZE
        self._following = segments[index + 1][0] if index + 1 < len(segments) else None
        self.point = header.base
        return True

    def _open_following(self, upto_txid: int) -> bool:
        """Go on in the segment that holds the next record; False if it is the one that is open."""
        wanted, inode, at = self.point, self._inode, self._offset
        if not self._open_segment(wanted.txid + 1):
            raise PositionMismatch(f"{self.directory}: the log no longer holds TXID {wanted.txid + 1:016x}")
        if self._inode == inode:
            self._offset, self.point = at, wanted
            return False
        while self.point.txid < wanted.txid:
            if not self._scan(_BIG_READ, min(wanted.txid, upto_txid), strict=True):
                break
        if self.point != wanted:
            raise LogCorrupt(f"{self._path}: continues at {self.point}, but the log was at {wanted}")
        return True

    def _scan(self, max_bytes: int, upto_txid: int, *, strict: bool) -> list[Entry]:
        """The records in one read of the open segment; empty where it ends.

        ``strict``: damage raises LogCorrupt.
        """
        chunk = os.pread(self._fd, min(self._chunk, max(max_bytes, _SMALL_READ)), self._offset)
        entries: list[Entry] = []
        at = 0
        while at + RECORD_HEAD_SIZE <= len(chunk) and self.point.txid < upto_txid and max_bytes > 0:
            size, digest = RECORD_HEAD.unpack_from(chunk, at)
            if size == 0:
                break
            start = at + RECORD_HEAD_SIZE
            if start + size > len(chunk):
                self._chunk = _BIG_READ
                if entries:
                    return entries
                entry = self._read_single(size, digest)
            else:
                entry = self._entry(chunk, start, size, digest)
            if entry is None:
                if strict and not self._superseded():
                    raise LogCorrupt(
                        f"{self._path}: offset {self._offset}: record is damaged or out of order"
                    )
                return entries
            if self._following is not None and entry.txid_max >= self._following:
                return entries
            entries.append(entry)
            self.point = entry.point
            self._offset = entry.extent.end
            at = record_end(at, size)
            max_bytes -= size
        if at < len(chunk) // 2:
            self._chunk = _SMALL_READ
        return entries

    def _superseded(self) -> bool:
        """Whether a later segment holds the next record, so that what this one has in its place counts for
        nothing: its sync failed."""
        begun = [path for first, path in list_segments(self.directory) if first <= self.point.txid + 1]
        return bool(begun) and begun[-1] != self._path

    def _entry(self, buffer: bytes, start: int, size: int, digest: int) -> Entry | None:
        """The record with its body at ``buffer[start:]``, if it is whole and follows what was read before."""
        if size < MIN_BODY:
            return None
        extent = read_extent(self._path, buffer, start, size, self._offset, digest)
        body = buffer[start : start + size]
        if not self._follows(extent) or record_hash(body, size) != digest:
            return None
        return Entry(extent, body)

    def _follows(self, extent: Extent) -> bool:
        return (
            extent.txid_min == self.point.txid + 1
            and extent.txid_max >= extent.txid_min
            and extent.pre_apply == self.point.checksum
        )

    def _read_single(self, size: int, digest: int) -> Entry | None:
        """The record at the cursor, too big for one read; its body only up to ``STREAM_BYTES``."""
        at = self._offset + RECORD_HEAD_SIZE
        if not MIN_BODY <= size <= os.fstat(self._fd).st_size - at:
            return None
        if size <= STREAM_BYTES:
            return self._entry(fileops.pread_all(self._fd, size, at), 0, size, digest)
        ends = os.pread(self._fd, _PREFIX, at) + os.pread(self._fd, _SUFFIX, at + size - _SUFFIX)
        extent = replace(read_extent(self._path, ends, 0, len(ends), self._offset, digest), size=size)
        return Entry(extent, b"") if self._follows(extent) else None


def newest_images(
    directory: Path,
    after_txid: int,
    upto_txid: int | None = None,
    *,
    page_size: int,
    images: dict[int, Image] | None = None,
) -> dict[int, Image]:
    """By page number, where the newest image logged after ``after_txid`` is; found through the records' page
    indexes.

    ``page_size``: of the database at ``upto_txid``. A record of another one voids all images before it: the
    next record holds every page anew. With ``images``, a map that an earlier call returned is brought up to
    date instead. Pages that a later transaction cut off are in it too. Raises LogCorrupt if the log does not
    reach from ``after_txid`` to ``upto_txid``.
    """
    found = {} if images is None else images
    for extent in extents(directory, after_txid, upto_txid):
        if extent.page_size != page_size:
            found.clear()
            continue
        for pgno, offset, size in page_index(extent):
            found[pgno] = Image(extent.path, extent.body_offset + offset, size)
    return found


def page_index(extent: Extent) -> list[tuple[int, int, int]]:
    """The page index of a record, reading only its end."""
    fd = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        tail = fileops.pread_all(fd, _INDEX_TAIL, extent.body_offset + extent.size - _INDEX_TAIL)
        offset, length = index_span(tail, extent.size)
        return parse_index(fileops.pread_all(fd, length, extent.body_offset + offset), offset)
    finally:
        os.close(fd)
