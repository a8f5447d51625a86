"""LTX records: decoded whole, as a stream and page by page, all of which must agree."""

from __future__ import annotations

import io
import random
from array import array

import lz4.block
import lz4.frame

from litefs.errors import FormatError
from litefs.ltx import (
    FLAG_NO_CHECKSUM,
    HEADER_SIZE,
    TRAILER_SIZE,
    Decoder,
    Header,
    decode,
    encode,
    index_of,
    parse_index,
    read_page,
)
from litefs.types import CHECKSUM_FLAG
from tests.fuzz.target import Target, exact
from tests.kernels.reference_ltx import legacy_frame, seal

_PAGE = 512
_MAX_PAGES = 64
"""Of a record that is accepted, pages that are read one by one."""
_rng = random.Random(4)


def record(
    first: int, last: int, pgnos: list[int], commit: int, *, flags: int = 0, page_size: int = _PAGE
) -> bytes:
    """A record with pages that compress well, badly, and not at all."""
    images = b"".join(
        _rng.randbytes(page_size) if pgno % 3 == 0 else bytes([pgno & 255]) * page_size for pgno in pgnos
    )
    known = not flags & FLAG_NO_CHECKSUM
    pre = CHECKSUM_FLAG | first if known and first > 1 else 0
    header = Header(flags, page_size, commit, first, last, 1_700_000_000_000, pre)
    return encode(header, array("I", pgnos), images, CHECKSUM_FLAG | last if known else 0)


def legacy_record() -> bytes:
    """With one LZ4 frame per page, as ltx 0.5.0 wrote."""
    frames = []
    for pgno in (1, 4):
        page = bytes([pgno]) * _PAGE
        frame, head = legacy_frame(pgno, page)
        frames.append((pgno, frame, head, page))
    header = Header(0, _PAGE, 4, 2, 2, 0, CHECKSUM_FLAG | 7).pack()
    return seal(header, frames, CHECKSUM_FLAG | 9)


def reseal(data: bytes) -> bytes:
    """With the right file checksum, if frames can be found at all; index and frames stay as they are."""
    page_size = int.from_bytes(data[8:12], "big")
    if len(data) < HEADER_SIZE + TRAILER_SIZE or not 512 <= page_size <= 65536:
        return data
    parts = [data[:HEADER_SIZE]]
    at = HEADER_SIZE
    try:
        while at + 6 <= len(data) and data[at : at + 4] != bytes(4):
            if data[at + 4 : at + 6] == b"\0\1":
                size = int.from_bytes(data[at + 6 : at + 10], "big")
                head, body = data[at : at + 10], data[at + 10 : at + 10 + size]
                page = lz4.block.decompress(body, uncompressed_size=page_size)
            else:
                decompressor = lz4.frame.LZ4FrameDecompressor()
                head, rest = data[at : at + 6], data[at + 6 : at + 6 + 2 * page_size]
                page = decompressor.decompress(rest, max_length=page_size)
                size = len(rest) - len(decompressor.unused_data or b"")
            parts += (head, page)
            at += len(head) + size
    except Exception:
        return data  # not even the frames are readable: the checksum does not matter
    # The kernel is right about checksums (tests/kernels); the reference would take most of the time.
    from litefs._core.crc64 import crc64

    crc = 0
    for part in (*parts, data[at:-8]):
        crc = crc64(part, crc)
    return data[:-8] + (crc | CHECKSUM_FLAG).to_bytes(8, "big")


def _whole(data: bytes) -> tuple[Header, list[tuple[int, bytes]]] | str:
    try:
        found = decode(exact(data))
    except FormatError as error:
        return str(error)
    size = found.header.page_size
    numbers = memoryview(found.pgnos).cast("I")
    return found.header, [
        (pgno, bytes(found.images[at * size : at * size + size])) for at, pgno in enumerate(numbers)
    ]


def _streamed(data: bytes) -> tuple[Header, list[tuple[int, bytes]]] | str:
    source = io.BytesIO(data)
    rng = random.Random(len(data))
    pieces = (1, 7, 100, 4096) if len(data) < 4096 else (len(data) // 40, 1 << 20)
    try:
        decoder = Decoder(lambda n: source.read(min(n, rng.choice(pieces))))
        pages: list[tuple[int, bytes]] = []
        for pgnos, images in decoder:
            size = decoder.header.page_size
            numbers = memoryview(pgnos).cast("I")
            pages += ((pgno, bytes(images[at * size : at * size + size])) for at, pgno in enumerate(numbers))
    except FormatError as error:
        return str(error)
    return decoder.header, pages


def _run(data: bytes) -> None:
    whole, streamed = _whole(data), _streamed(data)
    if isinstance(whole, str) or isinstance(streamed, str):
        assert isinstance(whole, str) == isinstance(streamed, str), f"{whole!r} but {streamed!r}"
        assert isinstance(streamed, str)
        assert "byte" in streamed, streamed
        for pgno, offset, size in index_of(exact(data))[:_MAX_PAGES]:
            read_page(exact(data[offset : offset + size]), 0, size, _PAGE, pgno)
        raise FormatError(str(whole))
    assert whole == streamed
    header, pages = whole
    entries = index_of(data)
    assert [pgno for pgno, _, _ in entries] == [pgno for pgno, _ in pages]
    for (pgno, offset, size), (_, page) in list(zip(entries, pages, strict=True))[:_MAX_PAGES]:
        assert read_page(data, offset, size, header.page_size, pgno) == page


def _run_index(data: bytes) -> None:
    entries = parse_index(exact(data), 1000)
    assert all(0 < pgno <= 0xFFFFFFFF for pgno, _, _ in entries)


_RECORDS = (
    record(1, 1, [1, 2, 3], 3),
    record(2, 2, [2, 5], 9),
    record(3, 9, list(range(1, 40)), 60),
    record(4, 4, [], 3),
    record(5, 5, [1, 7], 8, flags=FLAG_NO_CHECKSUM),
    record(6, 6, [0x40000000 // 65536, 0x40000000 // 65536 + 2], 20000, page_size=65536),
    legacy_record(),
)


def _index(data: bytes) -> bytes:
    length = int.from_bytes(data[-TRAILER_SIZE - 8 : -TRAILER_SIZE], "big")
    return data[-TRAILER_SIZE - 8 - length : -TRAILER_SIZE - 8]


TARGETS = (
    Target("ltx", _RECORDS, _run, (FormatError,), r"byte \d+", reseal),
    Target("ltx-index", tuple(_index(data) for data in _RECORDS), _run_index, (FormatError,), r"byte \d+"),
)
