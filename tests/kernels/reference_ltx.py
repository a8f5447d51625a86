"""LTX v3 encoder and decoder in plain Python, with the lz4 package, written from the format's description."""

from __future__ import annotations

import struct
from collections.abc import Callable

import lz4.block
import lz4.frame

from tests.kernels.reference_crc64 import FLAG, crc64

Pages = list[tuple[int, bytes]]


def uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_uvarint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def compress(page: bytes) -> bytes:
    return lz4.block.compress(page, store_size=False)


def block_frame(pgno: int, data: bytes) -> tuple[bytes, bytes]:
    """(frame, what the file checksum covers of it apart from the page)."""
    head = struct.pack(">IHI", pgno, 1, len(data))
    return head + data, head


def legacy_frame(pgno: int, page: bytes, **options: object) -> tuple[bytes, bytes]:
    """The page format of ltx 0.5.0 and 0.5.1."""
    head = struct.pack(">IH", pgno, 0)
    return head + lz4.frame.compress(page, content_checksum=True, store_size=False, **options), head


def seal(header: bytes, frames: list[tuple[int, bytes, bytes, bytes]], post: int) -> bytes:
    """A record from (pgno, frame, covered head, page) tuples."""
    record = bytearray(header)
    crc = crc64(header)
    index = b""
    for pgno, frame, head, page in frames:
        index += uvarint(pgno) + uvarint(len(record)) + uvarint(len(frame))
        record += frame
        crc = crc64(page, crc64(head, crc))
    index += b"\0"
    end = bytes(6) + index + struct.pack(">QQ", len(index), post)
    record += end
    return bytes(record) + struct.pack(">Q", FLAG | crc64(end, crc))


def encode(
    header: bytes, pgnos: list[int], images: bytes, post: int, compress: Callable[[bytes], bytes] = compress
) -> bytes:
    size = struct.unpack_from(">I", header, 8)[0]
    frames = []
    for n, pgno in enumerate(pgnos):
        page = images[n * size : (n + 1) * size]
        frame, head = block_frame(pgno, compress(page))
        frames.append((pgno, frame, head, page))
    return seal(header, frames, post)


def encode_legacy(header: bytes, pgnos: list[int], images: bytes, post: int, **options: object) -> bytes:
    size = struct.unpack_from(">I", header, 8)[0]
    frames = []
    for n, pgno in enumerate(pgnos):
        page = images[n * size : (n + 1) * size]
        frame, head = legacy_frame(pgno, page, **options)
        frames.append((pgno, frame, head, page))
    return seal(header, frames, post)


def blocks(record: bytes) -> dict[int, bytes]:
    """The LZ4 block of each page of a record in block format."""
    found, at = {}, 100
    while True:
        pgno, flags = struct.unpack_from(">IH", record, at)
        if pgno == 0:
            return found
        assert flags == 1
        size = struct.unpack_from(">I", record, at + 6)[0]
        found[pgno] = record[at + 10 : at + 10 + size]
        at += 10 + size


def decode(record: bytes) -> tuple[Pages, int, int]:
    """(pages, post-apply checksum, file checksum) of a record in block format; asserts that it is valid."""
    page_size = struct.unpack_from(">I", record, 8)[0]
    pages: Pages = []
    for pgno, block in blocks(record).items():
        page = lz4.block.decompress(block, uncompressed_size=page_size)
        assert len(page) == page_size
        pages.append((pgno, page))
    post, checksum = struct.unpack_from(">QQ", record, len(record) - 16)
    again = encode(
        record[:100],
        [pgno for pgno, _ in pages],
        b"".join(page for _, page in pages),
        post,
        replay(record),
    )
    assert again == record
    return pages, post, checksum


def replay(record: bytes) -> Callable[[bytes], bytes]:
    """A compressor that hands out the blocks of ``record`` in turn."""
    queue = iter(blocks(record).values())
    return lambda page: next(queue)
