"""Page frames whose LZ4 blocks hold the page as it is (``data.compress: false``).

An LZ4 block may consist of literals alone (github.com/lz4/lz4, doc/lz4_Block_format.md): a token whose upper
half is 15, the rest of the length in bytes of 255 and one below, then the bytes. So every reader of LTX files
reads these records too.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from litefs._core.crc64 import crc64

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FRAME = struct.Struct(">IHI")
_HAS_SIZE = 1
_LITERALS = 0xF0
_IN_TOKEN = 15


def _prefix(size: int) -> bytes:
    """What stands before ``size`` literals, of which there are more than 15."""
    rest = size - _IN_TOKEN
    return bytes([_LITERALS]) + b"\xff" * (rest // 255) + bytes([rest % 255])


def _uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def stored_pages(
    pgnos: Buffer, images: Buffer, page_size: int, base_offset: int, crc: int
) -> tuple[bytes, bytes, int]:
    """As ``litefs._core.pageblock.encode_pages``, without compression: page frames, their index entries, and
    the file's CRC after them. Raises ValueError if numbers and images do not fit."""
    numbers, pages = memoryview(pgnos).cast("B").cast("I"), memoryview(images).cast("B")
    if len(pages) != len(numbers) * page_size:
        raise ValueError(f"{len(numbers)} page numbers do not fit {len(pages)} bytes of pages")
    prefix = _prefix(page_size)
    size = _FRAME.size + len(prefix) + page_size
    tail = _uvarint(size)
    frames: list[Buffer] = []
    index = []
    for number, pgno in enumerate(numbers):
        head = _FRAME.pack(pgno, _HAS_SIZE, len(prefix) + page_size)
        page = pages[number * page_size : (number + 1) * page_size]
        crc = crc64(page, crc64(head, crc))
        frames += (head, prefix, page)
        index.append(_uvarint(pgno) + _uvarint(base_offset + number * size) + tail)
    return b"".join(frames), b"".join(index), crc
