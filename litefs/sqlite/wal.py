"""The write-ahead log file: header, frames, checksum (https://sqlite.org/fileformat2.html, section 4).

The hot path uses `litefs._core.walcursor`; this is the plain form, for cold paths and as its reference.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from litefs.errors import ChecksumMismatch, FormatError
from litefs.sqlite.header import is_page_size

HEADER_SIZE = 32
"""WAL header, bytes."""
FRAME_HEADER = 24
"""Frame header, bytes; the page follows."""
MAGIC_LITTLE = 0x377F0682
"""The words that are summed are little-endian."""
MAGIC_BIG = 0x377F0683
"""The words that are summed are big-endian."""
VERSION = 3007000

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MASK = 0xFFFFFFFF


def wal_checksum(data: bytes | bytearray | memoryview, c1: int, c2: int, big_endian: bool) -> tuple[int, int]:
    """Checksum of ``data``, continued from ``(c1, c2)``. Raises ValueError unless 8 divides its length."""
    if len(data) % 8:
        raise ValueError(f"WAL checksum over {len(data)} bytes, not a multiple of 8")
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        c1 = (c1 + first + c2) & _MASK
        c2 = (c2 + second + c1) & _MASK
    return c1, c2


@dataclass(frozen=True, slots=True)
class WalHeader:
    """The first 32 bytes of a WAL; its salts name the generation."""

    page_size: int
    """Bytes."""
    salt1: int
    salt2: int
    """As big-endian numbers; ``salt1`` goes up by one at each restart, ``salt2`` is random."""
    checkpoint_seq: int = 0
    big_endian: bool = False
    """Byte order of the words that are summed, here and in every frame."""

    def pack(self) -> bytes:
        """32 bytes with the right checksum. Raises ValueError for a bad page size."""
        if not is_page_size(self.page_size):
            raise ValueError(f"page size {self.page_size}")
        magic = MAGIC_BIG if self.big_endian else MAGIC_LITTLE
        fields = (magic, VERSION, self.page_size, self.checkpoint_seq, self.salt1, self.salt2)
        data = struct.pack(">6I", *fields)
        return data + struct.pack(">2I", *wal_checksum(data, 0, 0, self.big_endian))

    @property
    def checksum(self) -> tuple[int, int]:
        """Where the chain of the first frame starts."""
        c1, c2 = struct.unpack(">2I", self.pack()[24:])
        return c1, c2

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Self:
        """Read the first 32 bytes. Raises FormatError, or ChecksumMismatch if only the checksum is wrong."""
        if len(data) < HEADER_SIZE:
            raise FormatError(f"WAL header: {len(data)} bytes, {HEADER_SIZE} needed")
        magic, version, page_size, seq, salt1, salt2, c1, c2 = _HEADER.unpack_from(data)
        if magic not in (MAGIC_LITTLE, MAGIC_BIG):
            raise FormatError(f"WAL header: offset 0: magic {magic:#010x}")
        if version != VERSION:
            raise FormatError(f"WAL header: offset 4: version {version}")
        if not is_page_size(page_size):
            raise FormatError(f"WAL header: offset 8: page size {page_size}")
        big_endian = magic == MAGIC_BIG
        if (c1, c2) != wal_checksum(bytes(data[:24]), 0, 0, big_endian):
            raise ChecksumMismatch("WAL header: offset 24: wrong checksum")
        return cls(page_size, salt1, salt2, seq, big_endian)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The 24 bytes before each page."""

    pgno: int
    commit: int
    """Database size in pages after the transaction that this frame ends; 0 in other frames."""
    salt1: int
    salt2: int
    c1: int
    c2: int
    """Running checksum over the first 8 bytes of this header and the page."""

    def pack(self) -> bytes:
        """24 bytes."""
        return _FRAME.pack(self.pgno, self.commit, self.salt1, self.salt2, self.c1, self.c2)

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Self:
        """Read the first 24 bytes. Raises FormatError if there are fewer."""
        if len(data) < FRAME_HEADER:
            raise FormatError(f"WAL frame header: {len(data)} bytes, {FRAME_HEADER} needed")
        return cls(*_FRAME.unpack_from(data))


def frame_offset(frame: int, page_size: int) -> int:
    """File offset of the header of a frame (1-based)."""
    return HEADER_SIZE + (frame - 1) * (FRAME_HEADER + page_size)


def frame_at(offset: int, page_size: int) -> int:
    """The frame (1-based) that holds the byte at ``offset`` >= 32."""
    return (offset - HEADER_SIZE) // (FRAME_HEADER + page_size) + 1
