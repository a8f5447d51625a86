"""Pages to records (LTX v3, one LZ4 block per page)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litefs._core import pagedecode
from litefs._core.crc64 import crc64
from litefs._core.pageblock import encode_pages, encode_record
from litefs.errors import FormatError
from litefs.ltx.format import HEADER_SIZE, INDEX_LENGTH_SIZE, Header, Trailer, format_error, page_total
from litefs.ltx.stored import stored_pages
from litefs.types import CHECKSUM_FLAG

if TYPE_CHECKING:
    from typing_extensions import Buffer

_END_OF_PAGES = bytes(6)
COPY_BYTES = 1 << 20
"""Uncompressed pages that ``Encoder.copy`` looks at in one call, at most."""


def encode(header: Header, pgnos: Buffer, images: Buffer, post_apply: int, *, compress: bool = True) -> bytes:
    """A whole record.

    ``pgnos``: native u32, ascending, without the lock page; ``images``: as many pages, contiguous;
    ``post_apply``: rolling checksum after it; ``compress``: as of :class:`Encoder`. Raises FormatError for an
    impossible header or checksum, ValueError if the pages do not fit it: out of order, beyond ``commit``, or
    not all of them where the first transaction is 1.
    """
    header.check_post_apply(post_apply)
    if not compress:
        encoder = Encoder(header, compress=False)
        return encoder.begin() + encoder.add(pgnos, images) + encoder.finish(post_apply)
    return encode_record(header.pack(), pgnos, images, post_apply)


class Encoder:
    """A record in pieces: ``begin``, any number of ``add`` and ``copy``, ``finish``; joined: the record.

    Memory: about 10 bytes per page, for the index. Without ``compress`` the LZ4 blocks hold the
    pages as they are.
    """

    def __init__(self, header: Header, *, compress: bool = True) -> None:
        self.header = header
        self._encode_pages = encode_pages if compress else stored_pages
        self._size = 0
        self._crc = 0
        self._last = 0
        self._count = 0
        self._index: list[bytes] = []

    def begin(self) -> bytes:
        """The header's bytes. Raises FormatError for an impossible header."""
        return self._covered(self.header.pack())

    def add(self, pgnos: Buffer, images: Buffer) -> bytes:
        """Frames of the next pages, shapes as in ``encode``.

        Raises ValueError for pages that cannot follow.
        """
        if self._size < HEADER_SIZE:
            raise ValueError("begin() comes first")
        numbers = memoryview(pgnos).cast("B").cast("I")
        if not len(numbers):
            return b""
        if numbers[0] <= self._last:
            raise ValueError(f"page {numbers[0]} does not follow page {self._last}")
        if numbers[-1] > self.header.commit:
            raise ValueError(f"page {numbers[-1]} lies beyond the database's {self.header.commit} pages")
        block, index, self._crc = self._encode_pages(
            numbers, images, self.header.page_size, self._size, self._crc
        )
        self._index.append(index)
        self._size += len(block)
        self._last = numbers[-1]
        self._count += len(numbers)
        return block

    def copy(self, frames: Buffer) -> bytes:
        """The next pages, as whole frames of another record that are not compressed again.

        Raises FormatError for frames that are damaged, or are of pages that cannot follow.
        """
        if self._size < HEADER_SIZE:
            raise ValueError("begin() comes first")
        block = bytes(frames)
        header, used = self.header, 0
        while used < len(block):
            try:
                pgnos, _, index, size, self._crc, _ = pagedecode.decode_pages(
                    block,
                    used,
                    self._size,
                    header.page_size,
                    header.commit,
                    self._last,
                    header.is_full,
                    max(1, COPY_BYTES // header.page_size),
                    self._crc,
                )
            except pagedecode.BlockError as error:
                raise format_error(error) from None
            if not pgnos:
                raise FormatError(f"no whole page frame (at byte {self._size})")
            self._index.append(index)
            self._size += size
            used += size
            self._last = memoryview(pgnos).cast("I")[-1]
            self._count += len(pgnos) // 4
        return block

    def finish(self, post_apply: int) -> bytes:
        """End mark, index and trailer.

        Raises FormatError for an impossible checksum, ValueError if pages are missing.
        """
        self.header.check_post_apply(post_apply)
        if self.header.is_full and self._count != page_total(self.header.page_size, self.header.commit):
            raise ValueError(
                f"a record from transaction 1 on must hold all {self.header.commit} pages, not {self._count}"
            )
        index = b"".join(self._index) + b"\0"
        self._index.clear()
        end = self._covered(_END_OF_PAGES + index + len(index).to_bytes(INDEX_LENGTH_SIZE, "big"))
        checksum = CHECKSUM_FLAG | crc64(post_apply.to_bytes(8, "big"), self._crc)
        return end + Trailer(post_apply, checksum).pack()

    def _covered(self, piece: bytes) -> bytes:
        self._crc = crc64(piece, self._crc)
        self._size += len(piece)
        return piece
