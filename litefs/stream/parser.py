"""The replica's side of the stream's bytes, sans-IO: an incremental parser with limits on everything."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from litefs.errors import FormatError, ProtocolMismatch
from litefs.stream.frames import (
    DELIBERATE,
    FRAME_HEAD,
    I64,
    MAX_PAGE_SIZE,
    MAX_PAYLOAD,
    MAX_RECORD,
    MAX_TEXT,
    MORE,
    PAGES_HEAD,
    PIECE,
    POINT,
    SNAPSHOT_HEAD,
    STORED,
    U32,
    U64,
    Database,
    Drop,
    End,
    Frame,
    FrameType,
    Heartbeat,
    Ready,
    RecordPiece,
    Records,
    SnapshotAbort,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotPages,
)
from litefs.stream.handshake import MAX_NAME, decode_hello, decode_name
from litefs.stream.protocols import Buffer
from litefs.types import CHECKSUM_FLAG, MAX_TXID, Point

_FLAGS = {
    FrameType.RECORDS: (0, PIECE, PIECE | MORE),
    FrameType.SNAPSHOT_PAGES: (0, STORED),
    FrameType.DROP: (0, DELIBERATE),
}
_BREAKING_OFF = (FrameType.SNAPSHOT_ABORT, FrameType.DROP)
_STREAM_FRAMES = (FrameType.READY, FrameType.HEARTBEAT, FrameType.END)


class Parser:
    """Bytes in, frames out; the first frame is the :class:`~litefs.stream.handshake.Hello`.

    After an error the parser must not be fed again. Holds at most one incomplete frame.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0
        self.greeted = False
        self._names: dict[int, str] = {}
        self._pieces: dict[int, tuple[int, int]] = {}
        self._ended = False

    def feed(self, data: Buffer) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes; the iterator must be exhausted before the next call.

        Raises ProtocolMismatch if this is no stream of this version, FormatError for a frame that breaks its
        rules; both name the offset in the stream.
        """
        self._buffer += data
        at = 0
        if not self.greeted:
            greeting = decode_hello(self._buffer)
            if greeting is None:
                return
            self.greeted = True
            yield greeting[0]
            at = greeting[1]
        buffer = self._buffer
        while len(buffer) - at >= FRAME_HEAD.size:
            kind, flags, handle, length = FRAME_HEAD.unpack_from(buffer, at)
            place = self._offset + at
            self._check_head(kind, flags, length, place)
            end = at + FRAME_HEAD.size + length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                payload = bytes(view[at + FRAME_HEAD.size : end])
            at = end
            yield self._decode(FrameType(kind), flags, handle, payload, place)
        del buffer[:at]
        self._offset += at

    def _check_head(self, kind: int, flags: int, length: int, place: int) -> None:
        if self._ended:
            raise FormatError(f"stream offset {place}: data after END")
        if not FrameType.DATABASE <= kind <= FrameType.END:
            raise ProtocolMismatch(f"stream offset {place}: unknown frame type {kind}")
        if length > MAX_PAYLOAD:
            raise FormatError(
                f"stream offset {place}: {FrameType(kind).name} of {length} bytes, at most {MAX_PAYLOAD}"
            )
        if flags not in _FLAGS.get(FrameType(kind), (0,)):
            raise FormatError(f"stream offset {place}: {FrameType(kind).name} with flags {flags:#x}")

    def _decode(self, kind: FrameType, flags: int, handle: int, payload: bytes, place: int) -> Frame:
        where = f"stream offset {place}: {kind.name}"
        try:
            if kind in _STREAM_FRAMES:
                if handle:
                    raise FormatError(f"{where} with handle {handle}")
                return self._decode_stream(kind, payload)
            if kind is FrameType.DATABASE:
                return self._database(handle, payload, where)
            if handle not in self._names:
                raise FormatError(f"{where} for handle {handle}, which was never given")
            if kind is FrameType.RECORDS:
                return (
                    self._piece(handle, flags, payload, where)
                    if flags
                    else self._records(handle, payload, where)
                )
            if self._pieces.pop(handle, None) and kind not in _BREAKING_OFF:
                raise FormatError(f"{where} inside a record in pieces")
            return self._decode_database(kind, flags, handle, payload, where)
        except struct.error as error:
            raise FormatError(f"{where}: payload of {len(payload)} bytes: {error}") from error

    def _decode_stream(self, kind: FrameType, payload: bytes) -> Frame:
        if kind is FrameType.HEARTBEAT:
            return Heartbeat(I64.unpack(payload)[0])
        if kind is FrameType.READY:
            struct.unpack("", payload)
            return Ready()
        self._ended = True
        return End(payload[:MAX_TEXT].decode(errors="replace"))

    def _database(self, handle: int, payload: bytes, where: str) -> Database:
        if not handle or handle in self._names or len(payload) > MAX_NAME:
            raise FormatError(f"{where}: handle {handle} is taken, or the name is too long")
        name = decode_name(payload, where)
        if name in self._names.values():
            raise FormatError(f"{where}: {name!r} has a handle already")
        self._names[handle] = name
        return Database(handle, name)

    def _records(self, handle: int, payload: bytes, where: str) -> Records:
        if handle in self._pieces:
            raise FormatError(f"{where} inside a record in pieces")
        bodies = []
        at = 0
        while at < len(payload):
            (size,) = U32.unpack_from(payload, at)
            at += 4
            if not size or size > len(payload) - at:
                raise FormatError(f"{where}: record of {size} bytes at {at} of {len(payload)}")
            bodies.append(payload[at : at + size])
            at += size
        if not bodies:
            raise FormatError(f"{where}: no record")
        return Records(handle, tuple(bodies))

    def _piece(self, handle: int, flags: int, payload: bytes, where: str) -> RecordPiece:
        if handle in self._pieces:
            size, offset = self._pieces[handle]
            data = payload
        else:
            (size,) = U64.unpack_from(payload)
            offset, data = 0, payload[U64.size :]
        done = offset + len(data)
        if not data or done > size or size > MAX_RECORD or (done == size) == bool(flags & MORE):
            raise FormatError(f"{where}: piece of {len(data)} bytes at {offset} of a record of {size}")
        if done == size:
            self._pieces.pop(handle, None)
        else:
            self._pieces[handle] = (size, done)
        return RecordPiece(handle, size, offset, data)

    def _decode_database(self, kind: FrameType, flags: int, handle: int, payload: bytes, where: str) -> Frame:
        if kind is FrameType.SNAPSHOT_PAGES:
            count, size = PAGES_HEAD.unpack_from(payload)
            page_size = size // count if count else 0
            if size > MAX_PAYLOAD or page_size * count != size or not _is_page_size(page_size):
                raise FormatError(f"{where}: {size} bytes of images for {count} pages")
            if len(payload) < PAGES_HEAD.size + 4 * count:
                raise FormatError(f"{where}: {len(payload)} bytes do not hold {count} page numbers")
            return SnapshotPages(handle, payload, bool(flags & STORED), where)
        if kind is FrameType.SNAPSHOT_BEGIN:
            page_size, commit, *at, timestamp = SNAPSHOT_HEAD.unpack(payload)
            if not _is_page_size(page_size) or not commit:
                raise FormatError(f"{where}: {commit} pages of {page_size} bytes")
            return SnapshotBegin(handle, page_size, commit, _point(*at, where=where), timestamp)
        if kind is FrameType.SNAPSHOT_END:
            return SnapshotEnd(handle, _point(*POINT.unpack(payload), where=where))
        if kind is FrameType.SNAPSHOT_ABORT:
            return SnapshotAbort(handle, payload[:MAX_TEXT].decode(errors="replace"))
        struct.unpack("", payload)
        del self._names[handle]
        return Drop(handle, bool(flags & DELIBERATE))


def _point(txid: int, checksum: int, digest: int, *, where: str) -> Point:
    """Where a snapshot is: there is none of a database without a transaction."""
    point = Point(txid, checksum, digest)
    if not 1 <= txid <= MAX_TXID or not checksum & CHECKSUM_FLAG:
        raise FormatError(f"{where}: {point} is not the position of a snapshot")
    return point


def _is_page_size(size: int) -> bool:
    return 512 <= size <= MAX_PAGE_SIZE and not size & (size - 1)
