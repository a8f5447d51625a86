"""Records to pages: LTX v3 with LZ4 blocks, or with one LZ4 frame per page as ltx 0.5.0 and 0.5.1 wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from litefs._core import pagedecode
from litefs._core.crc64 import crc64
from litefs.errors import ChecksumMismatch, FormatError
from litefs.ltx.format import (
    HEADER_SIZE,
    INDEX_LENGTH_SIZE,
    TRAILER_SIZE,
    Header,
    Trailer,
    format_error,
)
from litefs.types import CHECKSUM_FLAG

if TYPE_CHECKING:
    from typing_extensions import Buffer

BATCH_BYTES = 1 << 20
"""Uncompressed pages that a Decoder hands out at a time, at most."""
READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded record. ``pgnos``: native u32, ascending; ``images``: as many pages, contiguous."""

    header: Header
    pgnos: bytes
    images: bytearray
    trailer: Trailer


def decode(record: Buffer, verify: bool = True) -> Record:
    """Decode a whole record held in memory.

    ``verify`` False leaves out the file checksum; everything else is checked always. Raises ChecksumMismatch
    for that checksum, FormatError for all else; both name the byte offset.
    """
    header = Header.unpack(record)
    try:
        pgnos, images, post_apply, checksum = pagedecode.decode_record(record, verify)
    except pagedecode.BlockError as error:
        raise format_error(error) from None
    header.check_post_apply(post_apply, memoryview(record).nbytes - TRAILER_SIZE)
    return Record(header, pgnos, images, Trailer(post_apply, checksum))


def read_page(record: Buffer, offset: int, size: int, page_size: int, pgno: int | None = None) -> bytes:
    """One page by its index entry, without reading the rest.

    Raises FormatError unless it is a whole frame of ``size`` bytes and page ``pgno`` (None: any page).
    """
    try:
        found, page = pagedecode.decode_page(memoryview(record)[offset : offset + size], page_size)
    except pagedecode.BlockError as error:
        raise FormatError(f"page frame at byte {offset}: {error}") from None
    if pgno is not None and found != pgno:
        raise FormatError(f"page frame at byte {offset}: page {found} instead of {pgno}")
    return page


class Decoder:
    """Decodes a record of any size from a function that reads it, in memory bounded by the batch.

    ``read(n)`` returns up to ``n`` bytes, none at the end of the record; it is asked for more than the record
    has, so it must end where the record ends. ``header`` is there at once, then iterate (once) for ``(pgnos,
    images)`` batches as in ``Record``; ``trailer`` is set, and everything verified, when the iteration ends.
    A batch must not be trusted before. Raises FormatError and ChecksumMismatch as ``decode`` does, in the
    constructor and while iterating.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = bytearray()
        self._start = 0
        self._offset = 0
        raw = self._take(HEADER_SIZE)
        self.header = Header.unpack(raw)
        self._crc = crc64(raw)
        self._trailer: Trailer | None = None

    @property
    def trailer(self) -> Trailer:
        """Raises ValueError before the iteration has ended."""
        if self._trailer is None:
            raise ValueError("the record has not been read to its end")
        return self._trailer

    def __iter__(self) -> Iterator[tuple[bytes, bytearray]]:
        for pgnos, images, _, _ in self._batches():
            yield pgnos, images

    def frames(self) -> Iterator[tuple[list[int], list[bytes]]]:
        """Iterate (once) over the pages as the record has them: numbers and, for each, its whole frame.

        Nothing differs from iterating over images but what is handed out: all is decoded and verified.
        """
        for pgnos, _, index, raw in self._batches(raw=True):
            base = self._offset - len(raw)
            entries = pagedecode.parse_index(index + b"\0")
            yield (
                memoryview(pgnos).cast("I").tolist(),
                [raw[offset - base : offset - base + size] for _, offset, size in entries],
            )

    def _batches(self, raw: bool = False) -> Iterator[tuple[bytes, bytearray, bytes, bytes]]:
        """(page numbers, images, their index entries, with ``raw`` their frames) until all is verified."""
        page_size = self.header.page_size
        limit = max(1, BATCH_BYTES // page_size)
        last = 0
        index_length = index_crc = 0
        while True:
            try:
                pgnos, images, index, used, self._crc, ended = pagedecode.decode_pages(
                    self._buffer,
                    self._start,
                    self._offset,
                    page_size,
                    self.header.commit,
                    last,
                    self.header.is_full,
                    limit,
                    self._crc,
                )
            except pagedecode.BlockError as error:
                raise format_error(error) from None
            frames = bytes(memoryview(self._buffer)[self._start : self._start + used]) if raw else b""
            self._skip(used)
            if pgnos:
                last = memoryview(pgnos).cast("I")[-1]
                index_length += len(index)
                index_crc = crc64(index, index_crc)
                yield pgnos, images, index, frames
            if ended:
                break
            if not pgnos and not self._fill():
                raise FormatError(f"the record ends inside its pages (at byte {self._offset})")
        self._read_end(index_length, index_crc)

    def _read_end(self, index_length: int, index_crc: int) -> None:
        """End mark, index, trailer, and nothing after them."""
        self._crc = crc64(self._take(6), self._crc)
        start, left, found = self._offset, index_length, 0
        while left:
            piece = self._take(min(left, READ_BYTES))
            found = crc64(piece, found)
            self._crc = crc64(piece, self._crc)
            left -= len(piece)
        if found != index_crc:
            raise FormatError(f"the page index does not fit the pages (at byte {start})")
        rest = self._take(1 + INDEX_LENGTH_SIZE)
        if rest[0] or int.from_bytes(rest[1:], "big") != index_length + 1:
            raise FormatError(f"wrong end or length of the page index (at byte {self._offset - len(rest)})")
        self._crc = crc64(rest, self._crc)
        end = self._take(TRAILER_SIZE)
        trailer = Trailer.unpack(end)
        if trailer.file_checksum != CHECKSUM_FLAG | crc64(end[:8], self._crc):
            raise ChecksumMismatch(f"wrong checksum of the record (at byte {self._offset - 8})")
        self.header.check_post_apply(trailer.post_apply, self._offset - TRAILER_SIZE)
        if self._start < len(self._buffer) or self._fill():
            raise FormatError(f"bytes after the record (at byte {self._offset})")
        self._trailer = trailer

    def _take(self, n: int) -> bytes:
        while len(self._buffer) - self._start < n:
            if not self._fill():
                end = self._offset + len(self._buffer) - self._start
                raise FormatError(f"the record ends early (at byte {end})")
        piece = bytes(memoryview(self._buffer)[self._start : self._start + n])
        self._skip(n)
        return piece

    def _skip(self, n: int) -> None:
        self._start += n
        self._offset += n

    def _fill(self) -> bool:
        """Read more behind what is left of the buffer; False at the end."""
        piece = self._read(READ_BYTES)
        del self._buffer[: self._start]
        self._start = 0
        self._buffer += piece
        return bool(piece)
