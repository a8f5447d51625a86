"""Frames of the replication stream, sans-IO: their values, and the encoders for the primary.

A frame is u8 type, u8 flags, u16 database handle, u32 payload length (big-endian), payload of at most 1 MiB.
Handles are given out by DATABASE frames and are valid until DROP; handle 0 is the stream itself.

===============  ======================================================================================
DATABASE         name (UTF-8)
RECORDS          whole LTX records, each behind its u32 length; or with PIECE a part of one big record:
                 the first part begins with the u64 size of the whole, MORE says that another follows
SNAPSHOT_BEGIN   u32 page size, u32 page count, u64 TXID, u64 checksum, u64 hash of the last record,
                 i64 timestamp (Unix ms)
SNAPSHOT_PAGES   u32 pages, u32 size of the images, page numbers (u32 each), images: an LZ4 block, or
                 with STORED the images themselves
SNAPSHOT_END     u64 TXID, u64 checksum, u64 hash: the point that pages and records in between lead to
SNAPSHOT_ABORT   reason (UTF-8); what was begun, a snapshot or a record in pieces, does not go on;
                 a snapshot follows later
READY            every database has caught up once
HEARTBEAT        i64 Unix ms of the primary; all that was committed before has been sent
DROP             the primary does not hold this database; with DELIBERATE somebody removed it
END              reason (UTF-8); the stream ends
===============  ======================================================================================
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from sys import byteorder
from typing import TypeAlias

import lz4.block  # type: ignore[import-untyped]

from litefs.errors import FormatError
from litefs.stream.handshake import Hello
from litefs.stream.protocols import Buffer
from litefs.types import Point

MAX_PAYLOAD = 1 << 20
MAX_RECORD = 1 << 40
"""Largest record that is believed to be one; beyond it a length is taken for damage."""
MAX_PAGE_SIZE = 65536
MAX_TEXT = 1024

FRAME_HEAD = struct.Struct(">BBHI")
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
I64 = struct.Struct(">q")
SNAPSHOT_HEAD = struct.Struct(">IIQQQq")
POINT = struct.Struct(">QQQ")
PAGES_HEAD = struct.Struct(">II")


class FrameType(enum.IntEnum):
    """Frame types on the wire."""

    DATABASE = 1
    RECORDS = 2
    SNAPSHOT_BEGIN = 3
    SNAPSHOT_PAGES = 4
    SNAPSHOT_END = 5
    SNAPSHOT_ABORT = 6
    READY = 7
    HEARTBEAT = 8
    DROP = 9
    END = 10


PIECE = 1
MORE = 2
STORED = 1
DELIBERATE = 1


@dataclass(frozen=True, slots=True)
class Database:
    """From now on ``handle`` means the database ``name``."""

    handle: int
    name: str


@dataclass(frozen=True, slots=True)
class Records:
    """Whole LTX records in order."""

    handle: int
    bodies: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RecordPiece:
    """``data`` lies at ``offset`` of a record of ``size`` bytes; pieces of one record follow each other."""

    handle: int
    size: int
    offset: int
    data: bytes

    @property
    def last(self) -> bool:
        """True for the piece that completes the record."""
        return self.offset + len(self.data) == self.size


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """Pages of a snapshot follow: ``commit`` pages when the walk began, ``at`` this point."""

    handle: int
    page_size: int
    commit: int
    at: Point
    timestamp: int


@dataclass(frozen=True, slots=True)
class SnapshotPages:
    """Some pages, still packed: see :func:`unpack_pages`."""

    handle: int
    payload: bytes
    stored: bool
    where: str = field(default="snapshot pages", compare=False)
    """Frame and offset in the stream, for messages."""


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The database is now exactly ``at`` this point."""

    handle: int
    at: Point


@dataclass(frozen=True, slots=True)
class SnapshotAbort:
    """The primary gave up what it had begun to send, a snapshot or a record in pieces."""

    handle: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Every database has caught up once."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """All that was committed before ``timestamp`` (Unix ms of the primary) has been sent."""

    timestamp: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The primary does not hold this database; ``deliberate``: because it was removed there."""

    handle: int
    deliberate: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The primary ends the stream on purpose."""

    reason: str


Frame: TypeAlias = (
    Hello
    | Database
    | Records
    | RecordPiece
    | SnapshotBegin
    | SnapshotPages
    | SnapshotEnd
    | SnapshotAbort
    | Ready
    | Heartbeat
    | Drop
    | End
)


def _frame(kind: FrameType, payload: bytes = b"", handle: int = 0, flags: int = 0) -> bytes:
    return FRAME_HEAD.pack(kind, flags, handle, len(payload)) + payload


def encode_database(handle: int, name: str) -> bytes:
    """Give ``handle`` (1 to 65535) to a database."""
    return _frame(FrameType.DATABASE, name.encode(), handle)


def encode_records(handle: int, bodies: Sequence[Buffer]) -> bytes:
    """Whole records in one frame. The caller keeps their sum, with 4 bytes each, within MAX_PAYLOAD."""
    parts: list[Buffer] = [b""]
    size = 0
    for body in bodies:
        parts += (U32.pack(len(body)), body)
        size += 4 + len(body)
    if size > MAX_PAYLOAD:
        raise ValueError(f"{size} bytes of records do not fit into one frame")
    parts[0] = FRAME_HEAD.pack(FrameType.RECORDS, 0, handle, size)
    return b"".join(parts)


def encode_piece(handle: int, size: int, offset: int, data: Buffer) -> bytes:
    """A part of one record of ``size`` bytes. ``data`` is at most MAX_PAYLOAD - 8 bytes and never empty."""
    prefix = U64.pack(size) if offset == 0 else b""
    flags = PIECE if offset + len(data) == size else PIECE | MORE
    return b"".join(
        (FRAME_HEAD.pack(FrameType.RECORDS, flags, handle, len(prefix) + len(data)), prefix, data)
    )


def encode_snapshot_begin(handle: int, page_size: int, commit: int, at: Point, timestamp: int) -> bytes:
    """Begin a snapshot."""
    payload = SNAPSHOT_HEAD.pack(page_size, commit, at.txid, at.checksum, at.hash, timestamp)
    return _frame(FrameType.SNAPSHOT_BEGIN, payload, handle)


def encode_snapshot_pages(handle: int, pgnos: Buffer, images: Buffer) -> bytes:
    """Some pages: ``pgnos`` native u32, ``images`` one page for each. Compresses with the GIL released."""
    if len(images) > MAX_PAYLOAD // 2:
        raise ValueError(f"{len(images)} bytes of pages do not fit into one frame")
    numbers = _swapped(pgnos)
    packed = lz4.block.compress(images, mode="fast", acceleration=4, store_size=False)
    flags = STORED if len(packed) >= len(images) else 0
    payload = images if flags else packed
    head = FRAME_HEAD.pack(
        FrameType.SNAPSHOT_PAGES, flags, handle, PAGES_HEAD.size + len(numbers) + len(payload)
    )
    return b"".join((head, PAGES_HEAD.pack(len(numbers) // 4, len(images)), numbers, payload))


def unpack_pages(frame: SnapshotPages) -> tuple[bytes, bytes]:
    """(page numbers as native u32, images). Raises FormatError; decompresses with the GIL released."""
    count, size = PAGES_HEAD.unpack_from(frame.payload)
    start = PAGES_HEAD.size + 4 * count
    images = frame.payload[start:]
    if not frame.stored:
        try:
            images = lz4.block.decompress(images, uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise FormatError(f"{frame.where}: {error}") from error
    if len(images) != size:
        raise FormatError(f"{frame.where}: {len(images)} bytes of images, expected {size}")
    return _swapped(frame.payload[PAGES_HEAD.size : start]), images


def encode_snapshot_end(handle: int, point: Point) -> bytes:
    """End a snapshot."""
    return _frame(FrameType.SNAPSHOT_END, POINT.pack(point.txid, point.checksum, point.hash), handle)


def encode_snapshot_abort(handle: int, reason: str) -> bytes:
    """Give up a snapshot, or a record in pieces."""
    return _frame(FrameType.SNAPSHOT_ABORT, reason.encode()[:MAX_TEXT], handle)


def encode_ready() -> bytes:
    """Every database has caught up once."""
    return _frame(FrameType.READY)


def encode_heartbeat(timestamp: int) -> bytes:
    """A sign of life with the clock in Unix ms."""
    return _frame(FrameType.HEARTBEAT, I64.pack(timestamp))


def encode_drop(handle: int, *, deliberate: bool = False) -> bytes:
    """The database is gone here, or was even removed on purpose; frees the handle."""
    return _frame(FrameType.DROP, handle=handle, flags=DELIBERATE if deliberate else 0)


def encode_end(reason: str) -> bytes:
    """Last frame of a stream that ends on purpose."""
    return _frame(FrameType.END, reason.encode()[:MAX_TEXT])


def _swapped(numbers: Buffer) -> bytes:
    """u32 numbers from native to big-endian order or back."""
    values = array("I")
    values.frombytes(numbers)
    if byteorder == "little":
        values.byteswap()
    return values.tobytes()
