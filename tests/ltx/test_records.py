"""Whole records: golden bytes, both decoders, damage of every kind."""

from __future__ import annotations

import io
import random
import struct
from array import array
from collections.abc import Callable

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs.errors import ChecksumMismatch, FormatError
from litefs.ltx import (
    Decoder,
    Encoder,
    Header,
    Record,
    Trailer,
    decode,
    encode,
    index_of,
    lock_pgno,
    read_page,
)
from litefs.ltx.decoder import BATCH_BYTES
from tests.kernels import reference_ltx as reference
from tests.kernels.reference_crc64 import FLAG, crc64, database_checksum

PAGE = 512

# Written by ltx (Go): page size 512, two pages filled with their number, transaction 1, timestamp 1000.
GOLDEN_HEADER = Header(0, 512, 2, 1, 1, 1000, 0, node_id=0xAABB)
GOLDEN_BODY = bytes.fromhex(
    "000000010001000000181f010100ffda000200000200b00101010101010101010101"
    "000000020001000000181f020100ffda000200000200b00202020202020202020202"
    "000000000000" + "016422" + "02860122" + "00" + "0000000000000008"
    "ad2dffe333333333" + "8f94d8c9e5a40c94"
)
GOLDEN = GOLDEN_HEADER.pack() + GOLDEN_BODY
GOLDEN_IMAGES = b"\1" * 512 + b"\2" * 512


def numbers(*pgnos: int) -> array[int]:
    return array("I", pgnos)


def stream(record: bytes, piece: int = 1 << 20) -> Record:
    """Decode through the streaming decoder, which gets at most ``piece`` bytes at a time."""
    file = io.BytesIO(record)
    decoder = Decoder(lambda n: file.read(min(n, piece)))
    batches = list(decoder)
    images = bytearray().join(images for _, images in batches)
    return Record(decoder.header, b"".join(pgnos for pgnos, _ in batches), images, decoder.trailer)


BOTH = pytest.mark.parametrize("read", [decode, stream])
Read = Callable[[bytes], Record]


@BOTH
def test_golden_record(read: Read) -> None:
    record = read(GOLDEN)
    assert record.header == GOLDEN_HEADER
    assert record.pgnos == bytes(numbers(1, 2))
    assert record.images == GOLDEN_IMAGES
    assert record.trailer == Trailer(0xAD2DFFE333333333, 0x8F94D8C9E5A40C94)
    assert record.trailer.post_apply == database_checksum({1: b"\1" * 512, 2: b"\2" * 512}, 512)


def test_golden_record_by_its_index() -> None:
    assert index_of(GOLDEN) == [(1, 100, 34), (2, 134, 34)]
    assert read_page(GOLDEN, 134, 34, 512, 2) == b"\2" * 512
    with pytest.raises(FormatError, match="page 2 instead of 1"):
        read_page(GOLDEN, 134, 34, 512, 1)
    for offset, size in ((134, 33), (134, 35), (133, 34), (500, 34), (166, 6)):
        with pytest.raises(FormatError, match=f"page frame at byte {offset}"):
            read_page(GOLDEN, offset, size, 512)


def test_encoding_equals_the_golden_bytes_outside_the_blocks() -> None:
    record = encode(GOLDEN_HEADER, numbers(1, 2), GOLDEN_IMAGES, 0xAD2DFFE333333333)
    # With the blocks of the Go library in the place of ours, not a byte may differ.
    golden_blocks = reference.replay(GOLDEN)
    assert (
        reference.encode(GOLDEN_HEADER.pack(), [1, 2], GOLDEN_IMAGES, 0xAD2DFFE333333333, golden_blocks)
        == GOLDEN
    )
    ours = reference.replay(record)
    assert reference.encode(GOLDEN_HEADER.pack(), [1, 2], GOLDEN_IMAGES, 0xAD2DFFE333333333, ours) == record


@st.composite
def cases(draw: st.DrawFn) -> tuple[Header, list[int], bytes, int]:
    """(header, page numbers, images, post-apply checksum)."""
    page_size = draw(st.sampled_from([512, 4096]))
    txid = draw(st.integers(1, 9))
    commit = draw(st.integers(1, 30))
    pgnos = list(range(1, commit + 1)) if txid == 1 else sorted(draw(st.sets(st.integers(1, commit))))
    rng = draw(st.randoms(use_true_random=False))
    images = b"".join(rng.choice([rng.randbytes, bytes])(page_size) for _ in pgnos)
    header = Header(
        0, page_size, commit, txid, txid, 5, 0 if txid == 1 else FLAG | 3, node_id=draw(st.integers(0, 9))
    )
    return header, pgnos, images, FLAG | draw(st.integers(0, 2**63 - 1))


@settings(deadline=None, max_examples=60)
@given(case=cases(), cuts=st.sets(st.integers(0, 30)), piece=st.integers(1, 3000))
def test_every_way_in_and_out_agrees(
    case: tuple[Header, list[int], bytes, int], cuts: set[int], piece: int
) -> None:
    header, pgnos, images, post = case
    record = encode(header, numbers(*pgnos), images, post)
    decoded = decode(record)
    assert (decoded.header, decoded.pgnos, decoded.images) == (header, bytes(numbers(*pgnos)), images)
    assert decoded.trailer.post_apply == post
    assert stream(record, piece) == decoded
    encoder = Encoder(header)
    out = [encoder.begin()]
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut <= len(pgnos)), len(pgnos)]:
        out.append(
            encoder.add(numbers(*pgnos[at:cut]), images[at * header.page_size : cut * header.page_size])
        )
        at = cut
    out.append(encoder.finish(post))
    assert b"".join(out) == record
    for n, (pgno, offset, size) in enumerate(index_of(record)):
        page = images[n * header.page_size : (n + 1) * header.page_size]
        assert read_page(record, offset, size, header.page_size, pgno) == page


@BOTH
def test_legacy_pages(read: Read) -> None:
    head = Header(0, PAGE, 9, 2, 2, 5, FLAG | 3)
    images = random.Random(3).randbytes(PAGE) + bytes(PAGE)
    record = reference.encode_legacy(head.pack(), [3, 9], images, FLAG)
    assert read(record).images == images
    mixed = reference.seal(
        head.pack(),
        [
            (3, *reference.legacy_frame(3, images[:PAGE]), images[:PAGE]),
            (9, *reference.block_frame(9, reference.compress(images[PAGE:])), images[PAGE:]),
        ],
        FLAG,
    )
    assert read(mixed).images == images
    assert read_page(mixed, *index_of(mixed)[0][1:], PAGE, 3) == images[:PAGE]


@BOTH
def test_dropped_database_and_litestream_flags(read: Read) -> None:
    dropped = encode(Header(0, PAGE, 0, 7, 7, 5, FLAG | 3), b"", b"", FLAG)
    assert read(dropped).pgnos == b""
    unchecked = encode(Header(2, PAGE, 2, 7, 7, 5, 0, 32), numbers(2), bytes(PAGE), 0)
    assert read(unchecked).trailer.post_apply == 0


def test_first_record_around_the_lock_page() -> None:
    """65536-byte pages put it at page 16385: a full record has all others, and its absence is not a gap."""
    lock = lock_pgno(65536)
    for commit in (lock - 1, lock, lock + 1):
        header = Header(0, 65536, commit, 1, 1, 0, 0)
        pgnos = numbers(*(n for n in range(1, commit + 1) if n != lock))
        encoder, page_block, at = Encoder(header), bytes(65536 * 512), 0
        out = [encoder.begin()]
        while at < len(pgnos):
            some = pgnos[at : at + 512]
            out.append(encoder.add(some, page_block[: len(some) * 65536]))
            at += 512
        out.append(encoder.finish(FLAG))
        file = io.BytesIO(b"".join(out))
        count = 0
        for got, images in (decoder := Decoder(file.read)):
            assert len(images) <= BATCH_BYTES
            count += len(got) // 4
        assert decoder.trailer.post_apply == FLAG
        assert count == len(pgnos)


SMALL_HEADER = Header(0, PAGE, 9, 2, 2, 5, FLAG | 3)
SMALL_IMAGES = random.Random(11).randbytes(100) + bytes(2 * PAGE - 100)
SMALL = encode(SMALL_HEADER, numbers(4, 8), SMALL_IMAGES, FLAG | 6)


@BOTH
def test_any_flipped_bit_is_found(read: Read) -> None:
    rng = random.Random(1)
    for at in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises(FormatError, match="byte"):
            read(bytes(damaged))


@BOTH
def test_any_missing_tail_is_found(read: Read) -> None:
    for size in range(len(SMALL)):
        with pytest.raises(FormatError, match="byte"):
            read(SMALL[:size])


@BOTH
@pytest.mark.parametrize("extra", [b"\0", bytes(16), SMALL])
def test_bytes_after_the_record_are_found(read: Read, extra: bytes) -> None:
    with pytest.raises(FormatError, match="byte"):
        read(SMALL + extra)


@BOTH
def test_only_a_wrong_checksum_is_a_checksum_mismatch(read: Read) -> None:
    with pytest.raises(ChecksumMismatch, match=f"at byte {len(SMALL) - 8}"):
        read(SMALL[:-1] + bytes([SMALL[-1] ^ 1]))
    reserved = bytearray(SMALL)
    reserved[90] ^= 1
    with pytest.raises(ChecksumMismatch):
        read(bytes(reserved))
    assert decode(bytes(reserved), verify=False).images == SMALL_IMAGES


Frame = tuple[int, bytes, bytes, bytes]


def frame(pgno: int, page: bytes = bytes(PAGE), data: bytes | None = None, flags: int = 1) -> Frame:
    block = reference.compress(page) if data is None else data
    head = struct.pack(">IHI", pgno, flags, len(block))
    return pgno, head + block, head, page


FRAME = 10 + len(reference.compress(bytes(PAGE)))
SHORT = reference.compress(bytes(PAGE - 1))


@BOTH
@pytest.mark.parametrize(
    ("frames", "txid", "reason", "offset"),
    [
        ([frame(5), frame(5)], 2, "does not ascend", 100 + FRAME),
        ([frame(5), frame(4)], 2, "does not ascend", 100 + FRAME),
        ([frame(10)], 2, "beyond the database size", 100),
        ([frame(1), frame(3)], 1, "a page is missing", 100 + FRAME),
        ([frame(1), frame(2)], 1, "missing at the end", 100 + 2 * FRAME),
        ([frame(2)], 1, "a page is missing", 100),
        ([frame(1, flags=3)], 2, "unknown page flags", 104),
        ([frame(1, flags=2)], 2, "unknown page flags", 104),
        ([frame(0)], 2, "page number 0", 100),
        ([frame(1, data=b"")], 2, "impossible size", 106),
        ([frame(1, data=bytes(5000))], 2, "impossible size", 106),
        ([frame(1, data=b"\xff" * 40)], 2, "LZ4 block is damaged", 110),
        ([frame(1, data=SHORT)], 2, "shorter than a page", 110),
        ([frame(1, data=reference.compress(bytes(PAGE + 1)))], 2, "LZ4 block is damaged", 110),
        ([(1, struct.pack(">IH", 1, 0) + bytes(60), b"", b"")], 2, "not an LZ4 frame", 106),
    ],
)
def test_sealed_nonsense_is_refused_with_its_place(
    read: Read, frames: list[Frame], txid: int, reason: str, offset: int
) -> None:
    """The checksum is right: only the check itself can find these."""
    head = Header(0, PAGE, 9, txid, txid, 5, 0 if txid == 1 else FLAG | 3)
    with pytest.raises(FormatError, match=rf"{reason}.*\(at byte {offset}\)"):
        read(reference.seal(head.pack(), frames, FLAG))


@BOTH
def test_the_lock_page_is_refused(read: Read) -> None:
    lock = lock_pgno(65536)
    head = Header(0, 65536, lock + 1, 2, 2, 5, FLAG | 3)
    with pytest.raises(FormatError, match=r"lock page is present \(at byte 100\)"):
        read(reference.seal(head.pack(), [frame(lock, bytes(65536))], FLAG))


@BOTH
@pytest.mark.parametrize(
    "index",
    [
        b"\4\x64\x21\0",
        b"\4\x65\x22\0",
        b"\5\x64\x22\0",
        b"\4\x64\x22\4",
        b"\4\x64\x22",
        b"\4\x64\x22\0\0",
        b"\0",
        b"",
        b"\4\x64\xa2\x80\x80\x80\x80\x80\x80\x80\x80\x80\0\0",
    ],
)
def test_a_wrong_index_is_refused_though_sealed(read: Read, index: bytes) -> None:
    # 24 bytes of block, so 34 (0x22) of frame, from byte 100 (0x64) on.
    block = bytes.fromhex("1f010100ffda000200000200b00101010101010101010101")
    _, data, head, page = frame(4, b"\1" * PAGE, block)
    header = SMALL_HEADER.pack()
    end = bytes(6) + index + struct.pack(">QQ", len(index), FLAG)
    record = header + data + end
    record += struct.pack(">Q", FLAG | crc64(end, crc64(page, crc64(head, crc64(header)))))
    with pytest.raises(FormatError, match="index"):
        read(record)


@BOTH
@pytest.mark.parametrize("post", [0, 5, FLAG - 1])
def test_an_impossible_post_apply_checksum_is_refused(read: Read, post: int) -> None:
    record = reference.encode(SMALL_HEADER.pack(), [4], bytes(PAGE), post)
    with pytest.raises(FormatError, match=rf"post-apply.*\(at byte {len(record) - 16}\)"):
        read(record)
    with pytest.raises(FormatError, match="post-apply"):
        encode(SMALL_HEADER, numbers(4), bytes(PAGE), post)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_random_damage_never_gets_through(data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(SMALL) - 1))
        damaged[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    if damaged == SMALL:
        return
    for read in (decode, stream):
        with pytest.raises(FormatError):
            read(bytes(damaged))


@settings(deadline=None, max_examples=150)
@given(body=st.binary(max_size=300), page_size=st.sampled_from([512, 65536]))
def test_random_bodies_agree_between_the_decoders(body: bytes, page_size: int) -> None:
    """Unverified, anything may follow a header; it must not be read beyond, and errors must be ours."""
    record = Header(0, page_size, 2**32 - 1, 2, 2, 5, FLAG | 3).pack() + body
    for read in (decode, stream):
        with pytest.raises(FormatError):
            read(record)


def test_streaming_memory_is_bounded() -> None:
    header = Header(0, 4096, 8192, 1, 1, 5, 0)
    encoder = Encoder(header)
    noise = random.Random(5).randbytes(4096 * 256)
    record = encoder.begin()
    record += b"".join(encoder.add(numbers(*range(n + 1, n + 257)), noise) for n in range(0, 8192, 256))
    record += encoder.finish(FLAG)
    file, largest = io.BytesIO(record), 0
    asked: list[int] = []

    def read(n: int) -> bytes:
        asked.append(n)
        return file.read(n)

    decoder = Decoder(read)
    for _, images in decoder:
        largest = max(largest, len(images))
    assert largest <= BATCH_BYTES
    assert max(asked) <= BATCH_BYTES
    assert decoder.trailer.post_apply == FLAG


def test_misuse_of_the_encoder() -> None:
    encoder = Encoder(SMALL_HEADER)
    with pytest.raises(ValueError, match="begin"):
        encoder.add(numbers(1), bytes(PAGE))
    encoder.begin()
    encoder.add(numbers(4), bytes(PAGE))
    with pytest.raises(ValueError, match="page 4 does not follow page 4"):
        encoder.add(numbers(4), bytes(PAGE))
    with pytest.raises(ValueError, match="page 10 lies beyond"):
        encoder.add(numbers(10), bytes(PAGE))
    full = Encoder(Header(0, PAGE, 3, 1, 1, 5, 0))
    full.begin()
    full.add(numbers(1, 2), bytes(2 * PAGE))
    with pytest.raises(ValueError, match="must hold all 3 pages, not 2"):
        full.finish(FLAG)


def test_trailer_is_there_only_after_the_last_batch() -> None:
    decoder = Decoder(io.BytesIO(SMALL).read)
    with pytest.raises(ValueError, match="not been read"):
        _ = decoder.trailer


@pytest.mark.parametrize("page_size", [512 << n for n in range(8)])
@BOTH
def test_records_without_compression(read: Read, page_size: int) -> None:
    rng = random.Random(page_size)
    pages = {pgno: rng.randbytes(page_size // 2) + bytes(page_size // 2) for pgno in (1, 2, 7, 300)}
    header = Header(0, page_size, 300, 5, 5, 1000, FLAG | 5, node_id=1)
    images, post = b"".join(pages.values()), FLAG | 77
    whole = encode(header, numbers(*pages), images, post, compress=False)
    encoder = Encoder(header, compress=False)
    parts = [encoder.begin()]
    parts += [encoder.add(numbers(pgno), page) for pgno, page in pages.items()]
    assert b"".join([*parts, encoder.finish(post)]) == whole
    record = read(whole)
    assert (record.header, bytes(record.images)) == (header, images)
    assert (record.pgnos, record.trailer.post_apply) == (bytes(numbers(*pages)), post)
    assert images[:page_size] in whole
    for pgno, offset, size in index_of(whole):
        assert read_page(whole, offset, size, page_size, pgno) == pages[pgno]
        assert lz4.block.decompress(whole[offset + 10 : offset + size], page_size) == pages[pgno]
    compressed = encode(header, numbers(*pages), images, post)
    assert len(compressed) < len(whole) < len(images) + len(images) // 255 + 4 * 40 + 200


def test_what_does_not_fit_is_refused_without_compression() -> None:
    header = Header(0, 512, 3, 2, 2, 1000, FLAG | 5)
    for pgnos, images in (((1, 2), bytes(512)), ((4,), bytes(512))):
        with pytest.raises(ValueError, match=r"fit|beyond"):
            encode(header, numbers(*pgnos), images, FLAG | 1, compress=False)
