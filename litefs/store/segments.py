"""Log segments: the bytes of a segment file, and walking over the records in it. Format: ARCHITECTURE.md,
"The log".

The records of a segment count only below the first TXID of the next segment: after a failed fsync the writer
puts the records that may be lost into a new segment and never touches the old file again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from litefs.errors import LogCorrupt
from litefs.types import Point

SEGMENT_HEADER_SIZE = 64
RECORD_HEAD = struct.Struct("<QQ")
"""Length of the body and XXH3-64 of body and length.

The upper half of the length is the "flags" of small records: 0.
"""
LENGTH = struct.Struct("<Q")
RECORD_HEAD_SIZE = 16
PREALLOCATE_MIN = 64 << 10
"""Zeros that a new segment is created with; a bigger file has been used."""
MIN_BODY = 100 + 6 + 1 + 8 + 16
"""An LTX file without a page: header, end of pages, empty page index, trailer."""

_MAGIC = b"LFSEG01\n"
_HEADER = struct.Struct("<8sQQIIQ16x")
_HASH = struct.Struct("<Q")
_NAME = re.compile(r"([0-9a-f]{16})\.seg\Z")
_LTX_HEADER_SIZE = 100
_LTX_PAGE_SIZE = struct.Struct(">I")
_LTX_PAGE_SIZE_AT = 8
_LTX_TXIDS = struct.Struct(">QQ")
_LTX_TXIDS_AT = 16
_LTX_CHECKSUM = struct.Struct(">Q")
_LTX_PRE_AT = 40
_PAGE_SIZES = frozenset(512 << n for n in range(8))
_SECTOR = 512
"""The least that disks write as one."""
_ZERO_TAIL = 16
"""So many zeros at the end of a sector are not what a record holds there."""
_ZERO_SCAN = 1 << 20


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says about itself: the point before its first record, and its records' page size."""

    base: Point
    page_size: int

    @property
    def first_txid(self) -> int:
        return self.base.txid + 1

    def pack(self) -> bytes:
        """The 64 bytes at the start of the file."""
        base = self.base
        head = _HEADER.pack(_MAGIC, self.first_txid, base.checksum, self.page_size, 0, base.hash)
        return head + _HASH.pack(xxhash.xxh3_64_intdigest(head))

    @staticmethod
    def is_whole(data: bytes) -> bool:
        """Whether these 64 bytes were written as a segment header, which a crash may cut short."""
        return (
            len(data) == SEGMENT_HEADER_SIZE
            and data[:8] == _MAGIC
            and _HASH.unpack_from(data, 56)[0] == xxhash.xxh3_64_intdigest(data[:56])
        )

    @classmethod
    def unpack(cls, data: bytes, path: Path) -> SegmentHeader:
        """Raises LogCorrupt naming ``path`` if these are not the 64 bytes of the header that belongs there.

        A segment must begin with the TXID in its file's name, by which readers choose it.
        """
        if not cls.is_whole(data):
            raise LogCorrupt(f"{path}: offset 0: not the header of a log segment, or its checksum is wrong")
        _, first, pre, page_size, _, digest = _HEADER.unpack_from(data)
        name = _NAME.match(path.name)
        if name is not None and int(name[1], 16) != first:
            raise LogCorrupt(f"{path}: offset 8: the header says that TXID {first:016x} is the first")
        if not first or (first == 1) != (pre == 0) or (first == 1 and digest):
            raise LogCorrupt(f"{path}: offset 8: TXID {first:016x} cannot follow checksum {pre:016x}")
        if page_size not in _PAGE_SIZES:
            raise LogCorrupt(f"{path}: offset 24: pages of {page_size} bytes")
        return cls(Point(first - 1, pre, digest), page_size)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one record lies: ``offset`` of its head in the segment, ``size`` bytes of body behind the 16 of
    the head.
    """

    path: Path
    offset: int
    size: int
    txid_min: int
    txid_max: int
    pre_apply: int
    post_apply: int
    page_size: int
    digest: int
    """XXH3-64 of body and length, from the head."""

    @property
    def point(self) -> Point:
        """Where it leads."""
        return Point(self.txid_max, self.post_apply, self.digest)

    @property
    def body_offset(self) -> int:
        return self.offset + RECORD_HEAD_SIZE

    @property
    def end(self) -> int:
        """Offset of the next record."""
        return record_end(self.offset, self.size)


def segment_path(directory: Path, first_txid: int) -> Path:
    """The file of the segment that begins with ``first_txid``."""
    return directory / f"{first_txid:016x}.seg"


def list_segments(directory: Path) -> list[tuple[int, Path]]:
    """(first TXID, path) of every segment, ascending; empty if there is no such directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [(int(match[1], 16), directory / name) for name in names if (match := _NAME.match(name))]
    return sorted(found)


def record_end(offset: int, size: int) -> int:
    """Offset behind a record with a body of ``size`` bytes and its padding to 8."""
    return offset + RECORD_HEAD_SIZE + (size + 7 & ~7)


def record_hash(body: bytes | bytearray | memoryview, size: int) -> int:
    """XXH3-64 of the body followed by its length."""
    state = xxhash.xxh3_64(body)
    state.update(LENGTH.pack(size))
    return state.intdigest()


def read_extent(
    path: Path, buffer: bytes | memoryview | mmap.mmap, at: int, size: int, offset: int, digest: int
) -> Extent:
    """The extent of a record whose body of ``size`` bytes begins at ``buffer[at]``; ``offset``: of its head
    in the file, which says ``digest``.
    """
    (page_size,) = _LTX_PAGE_SIZE.unpack_from(buffer, at + _LTX_PAGE_SIZE_AT)
    txid_min, txid_max = _LTX_TXIDS.unpack_from(buffer, at + _LTX_TXIDS_AT)
    (pre,) = _LTX_CHECKSUM.unpack_from(buffer, at + _LTX_PRE_AT)
    (post,) = _LTX_CHECKSUM.unpack_from(buffer, at + size - 16)
    return Extent(path, offset, size, txid_min, txid_max, pre, post, page_size, digest)


class SegmentMap:
    """A segment file mapped for reading, as it is at this moment."""

    def __init__(self, path: Path) -> None:
        """Raises LogCorrupt if there is no valid segment header, OSError."""
        self.path = path
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self.header = SegmentHeader.unpack(file.read(SEGMENT_HEADER_SIZE), path)
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Unmap; slices of ``view`` that still exist keep the map alive until they are gone."""
        self.view.release()
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> SegmentMap:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def is_end(self, offset: int) -> bool:
        """Whether no record begins at ``offset``: the end of the file, or a zero length."""
        tail = bytes(self.view[offset : offset + 8])
        return not any(tail)

    def used_after(self, offset: int) -> int:
        """Bytes from ``offset`` to the last one that is not zero; 0 if nothing but preallocated space
        follows.
        """
        at = self.size
        while at > offset:
            start = max(offset, at - _ZERO_SCAN)
            used = len(bytes(self.view[start:at]).rstrip(b"\0"))
            if used:
                return start + used - offset
            at = start
        return 0

    def extent_at(self, offset: int, *, verify: bool) -> Extent | None:
        """The record at ``offset``, or None if none that is whole begins there.

        ``verify``: check the hash too.
        """
        if offset + RECORD_HEAD_SIZE + MIN_BODY > self.size:
            return None
        size, digest = RECORD_HEAD.unpack_from(self.view, offset)
        body = offset + RECORD_HEAD_SIZE
        if not MIN_BODY <= size <= self.size - body:
            return None
        if verify:
            with self.view[body : body + size] as data:
                if record_hash(data, size) != digest:
                    return None
        extent = read_extent(self.path, self.view, body, size, offset, digest)
        return extent if 1 <= extent.txid_min <= extent.txid_max else None

    def extents(self, *, verify: bool, before: int | None = None) -> Iterator[Extent]:
        """The records up to the first that is not whole or does not chain, in order; ``before``: first TXID
        left out.
        """
        offset = SEGMENT_HEADER_SIZE
        at = self.header.base
        while (extent := self.extent_at(offset, verify=verify)) is not None:
            if extent.txid_min != at.txid + 1 or extent.pre_apply != at.checksum:
                return
            if before is not None and extent.txid_max >= before:
                return
            yield extent
            offset = extent.end
            at = extent.point

    def valid_after(self, offset: int) -> Extent | None:
        """Any whole record that begins behind ``offset``: then what is at ``offset`` is no torn tail."""
        at = offset + RECORD_HEAD_SIZE + 1
        while (at := self._map.find(b"LTX1", at)) >= 0:
            head = at - RECORD_HEAD_SIZE
            if head % 8 == 0 and (extent := self.extent_at(head, verify=True)) is not None:
                return extent
            at += 1
        return None

    def never_written(self, offset: int, following: int) -> bool:
        """Whether something of the record at ``offset`` was lost on its way to the disk, rather than damaged.

        After a power failure a page of the page cache may have missed the disk, or a part of it that the disk
        writes as one, while later ones reached it. Such a sector still holds the zeros of the preallocation
        from some byte of the record on; so does a head whose record came in pieces. Records are compressed:
        a flipped bit does not make one look so. ``following``: where the next whole record begins.
        """
        head = bytes(self.view[offset : offset + RECORD_HEAD_SIZE])
        if not any(head):
            return True
        (size,) = LENGTH.unpack(head[:8])
        if record_end(offset, size) > following:  # it lies in one sector, so it is right, zero or damaged
            return False
        start, end = offset, offset + RECORD_HEAD_SIZE + size
        while start < end:
            stop = min((start // _SECTOR + 1) * _SECTOR, end)
            part = bytes(self.view[start:stop])
            # The LTX header, written in one piece, ends with fields that are zero.
            in_header = stop < offset + RECORD_HEAD_SIZE + _LTX_HEADER_SIZE
            zeros = len(part) - len(part.rstrip(b"\0"))
            if zeros >= (len(part) if in_header else min(_ZERO_TAIL, len(part))):
                return True
            start = stop
        return False


def extents(
    directory: Path, after_txid: int, upto_txid: int | None = None, *, verify: bool = False
) -> Iterator[Extent]:
    """The records with ``after_txid`` < TXID <= ``upto_txid``, oldest first, across all segments.

    Raises LogCorrupt where the chain of records breaks before ``upto_txid``, or if it does not reach back to
    ``after_txid``. Without ``upto_txid`` the last segment may end anywhere. Nothing behind ``upto_txid`` is
    looked at: the log's writer may cut it off, and to read it from a map then would end the process (SIGBUS).
    """
    segments = list_segments(directory)
    at: Point | None = None
    for index, (first, path) in enumerate(segments):
        following = segments[index + 1][0] if index + 1 < len(segments) else None
        if following is not None and following <= after_txid + 1:
            continue
        with SegmentMap(path) as segment:
            if at is None and first > after_txid + 1:
                raise LogCorrupt(
                    f"{path}: the log begins with TXID {first:016x}, after {after_txid + 1:016x}"
                )
            if at is not None and segment.header.base != at:
                raise LogCorrupt(
                    f"{path}: begins at {segment.header.base}, but the segment before ends at {at}"
                )
            at = segment.header.base
            if at.txid == upto_txid:
                return
            for extent in segment.extents(verify=verify, before=following):
                if upto_txid is not None and extent.txid_max > upto_txid:
                    return
                at = extent.point
                if extent.txid_max > after_txid:
                    yield extent
                if at.txid == upto_txid:
                    return
    if upto_txid is not None and (at is None or at.txid < upto_txid):
        where = segments[-1][1] if segments else directory
        raise LogCorrupt(f"{where}: the log ends at {at}, before TXID {upto_txid:016x}")
