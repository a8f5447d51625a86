"""What a moment is made of: LTX files and records of bundles, of which the page index is read here."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from litefs._core.pagedecode import decode_record
from litefs.backup.target import Target
from litefs.errors import ArchiveCorrupt, FormatError
from litefs.ltx.format import (
    HEADER_SIZE,
    INDEX_LENGTH_SIZE,
    TRAILER_SIZE,
    Header,
    index_span,
)

WHOLE_BYTES = 64 << 10
"""A record up to this size is read whole, and its checksum verified, instead of header and index alone."""
JOINED_BYTES = 16 << 20
"""Records that lie one behind the other are read in one request up to this size."""
CONCURRENT = 4
"""Requests for indexes at a time."""

_TAIL = INDEX_LENGTH_SIZE + TRAILER_SIZE


@dataclass(frozen=True, slots=True)
class Piece:
    """One LTX record: ``size`` bytes at ``offset`` of an object."""

    key: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Indexed:
    """The header and the page index (to its terminating 0, at ``offset`` of the record) of a piece."""

    piece: Piece
    header: Header
    index: bytes
    offset: int


def read_header(target: Target, piece: Piece) -> Header:
    """Raises ArchiveCorrupt, and as the target."""
    try:
        return Header.unpack(target.read(piece.key, piece.offset, HEADER_SIZE))
    except FormatError as error:
        raise _corrupt(target, piece, error) from None


def read_indexes(target: Target, pieces: Sequence[Piece]) -> Generator[Indexed, None, None]:
    """The indexes of ``pieces`` in order, several requests at a time; the generator may be left early.

    Memory: CONCURRENT groups, each of one index or of JOINED_BYTES. Raises ArchiveCorrupt, and as the target.
    """
    groups = iter(_groups(pieces))
    waiting: deque[Future[list[Indexed]]] = deque()
    pool = ThreadPoolExecutor(CONCURRENT, "index")
    try:
        for group in groups:
            waiting.append(pool.submit(_read_group, target, group))
            if len(waiting) == CONCURRENT:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _groups(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Neighbours in one object together, in whatever direction they come."""
    group: list[Piece] = []
    low = high = 0
    for piece in pieces:
        start, end = piece.offset, piece.offset + piece.size
        joins = group and piece.key == group[0].key and (end == low or start == high)
        if joins and max(high, end) - min(low, start) <= JOINED_BYTES:
            low, high = min(low, start), max(high, end)
            group.append(piece)
            continue
        if group:
            yield group
        group, low, high = [piece], start, end
    if group:
        yield group


def _read_group(target: Target, group: list[Piece]) -> list[Indexed]:
    if len(group) == 1 and group[0].size > WHOLE_BYTES:
        return [_read_ends(target, group[0])]
    low = min(piece.offset for piece in group)
    high = max(piece.offset + piece.size for piece in group)
    data = memoryview(target.read(group[0].key, low, high - low))
    return [
        _whole(target, piece, data[piece.offset - low : piece.offset - low + piece.size]) for piece in group
    ]


def _whole(target: Target, piece: Piece, record: memoryview) -> Indexed:
    """From all bytes of a record, whose checksum is verified."""
    try:
        if len(record) < HEADER_SIZE + _TAIL:
            raise FormatError(f"the record ends at byte {len(record)}")
        try:
            decode_record(record, True)
        except ValueError as error:
            raise FormatError(str(error)) from None
        offset, length = index_span(record[-_TAIL:], len(record))
        return Indexed(piece, Header.unpack(record), bytes(record[offset : offset + length]), offset)
    except FormatError as error:
        raise _corrupt(target, piece, error) from None


def _read_ends(target: Target, piece: Piece) -> Indexed:
    """From the header and the end of a record alone."""
    header = read_header(target, piece)
    start = max(0, piece.size - WHOLE_BYTES)
    tail = target.read(piece.key, piece.offset + start, piece.size - start)
    try:
        if len(tail) < piece.size - start:
            raise FormatError("the object is shorter than it was listed")
        offset, length = index_span(tail[-_TAIL:], piece.size)
        if offset >= start:
            index = tail[offset - start : offset - start + length]
        else:
            index = target.read(piece.key, piece.offset + offset, length)
        return Indexed(piece, header, index, offset)
    except FormatError as error:
        raise _corrupt(target, piece, error) from None


def _corrupt(target: Target, piece: Piece, error: Exception) -> ArchiveCorrupt:
    return ArchiveCorrupt(f"{target.name}/{piece.key}: {error}")
