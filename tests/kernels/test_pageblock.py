"""The LTX page block kernels against an encoder and decoder in plain Python."""

from __future__ import annotations

import struct
from array import array

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs._core import pageblock, pagedecode
from litefs._core.crc64 import crc64
from litefs._core.pagedecode import BlockError
from tests.kernels import reference_ltx as reference
from tests.kernels.reference_crc64 import FLAG, lock_pgno

PAGE = 512
POST = FLAG | 5


def header(page_size: int = PAGE, commit: int = 9, txid: int = 2) -> bytes:
    """A header as the kernels see it; they do not look at the rest."""
    return struct.pack(">4sIIIQQ", b"LTX1", 0, page_size, commit, txid, txid) + bytes(68)


def numbers(*pgnos: int) -> array[int]:
    return array("I", pgnos)


@st.composite
def pages(draw: st.DrawFn) -> tuple[int, list[int], bytes]:
    """(page size, page numbers, images): compressible and not, numbers of one to five varint bytes."""
    page_size = draw(st.sampled_from([512, 1024, 4096, 65536]))
    count = draw(st.integers(0, 6 if page_size < 65536 else 2))
    pgnos = draw(
        st.lists(
            st.integers(1, 2**32 - 1).filter(lambda n: n != lock_pgno(page_size)), max_size=count, unique=True
        )
    )
    rng = draw(st.randoms(use_true_random=False))
    kinds = [
        rng.choice([bytes, rng.randbytes, lambda n: (b"row %d " % rng.randrange(99) * n)[:n]]) for _ in pgnos
    ]
    return page_size, sorted(pgnos), b"".join(kind(page_size) for kind in kinds)


@settings(deadline=None, max_examples=60)
@given(case=pages(), post=st.integers(0, 2**64 - 1))
def test_encoding_equals_the_reference_outside_the_blocks(
    case: tuple[int, list[int], bytes], post: int
) -> None:
    page_size, pgnos, images = case
    head = header(page_size, 2**32 - 1)
    record = pageblock.encode_record(head, numbers(*pgnos), images, post)
    assert record == reference.encode(head, pgnos, images, post, reference.replay(record))
    found, again, checksum = reference.decode(record)
    assert [pgno for pgno, _ in found] == pgnos
    assert b"".join(page for _, page in found) == images
    assert (again, checksum) == (post, int.from_bytes(record[-8:], "big"))


@settings(deadline=None, max_examples=60)
@given(case=pages(), legacy=st.booleans())
def test_decoding_equals_the_reference(case: tuple[int, list[int], bytes], legacy: bool) -> None:
    page_size, pgnos, images = case
    encode = reference.encode_legacy if legacy else reference.encode
    record = encode(header(page_size, 2**32 - 1), pgnos, images, POST)
    found, decoded, post, checksum = pagedecode.decode_record(record)
    assert list(memoryview(found).cast("I")) == pgnos
    assert (decoded, post, checksum) == (images, POST, int.from_bytes(record[-8:], "big"))


@settings(deadline=None, max_examples=40)
@given(case=pages(), cut=st.integers(0, 6), base=st.integers(100, 2**40))
def test_pieces_equal_the_whole(case: tuple[int, list[int], bytes], cut: int, base: int) -> None:
    page_size, pgnos, images = case
    whole = pageblock.encode_pages(numbers(*pgnos), images, page_size, base, 77)
    cut = min(cut, len(pgnos))
    one, index_one, crc = pageblock.encode_pages(
        numbers(*pgnos[:cut]), images[: cut * page_size], page_size, base, 77
    )
    two, index_two, crc = pageblock.encode_pages(
        numbers(*pgnos[cut:]), images[cut * page_size :], page_size, base + len(one), crc
    )
    assert (one + two, index_one + index_two, crc) == whole
    done = pagedecode.decode_pages(whole[0] + bytes(6), 0, base, page_size, 2**32 - 1, 0, False, 9, 77)
    assert done == (bytes(numbers(*pgnos)), images, whole[1], len(whole[0]), whole[2], True)
    assert pagedecode.parse_index(whole[1] + b"\0") == list(entries(base, whole[0]))


def entries(base: int, block: bytes) -> list[tuple[int, int, int]]:
    at, found = 0, []
    while at < len(block):
        pgno, _, size = struct.unpack_from(">IHI", block, at)
        found.append((pgno, base + at, 10 + size))
        at += 10 + size
    return found


@pytest.mark.parametrize("legacy", [False, True])
def test_incomplete_frames_ask_for_more(legacy: bool) -> None:
    page = b"some page " * 51 + b"12"
    frame = (
        reference.legacy_frame(3, page)[0]
        if legacy
        else reference.block_frame(3, reference.compress(page))[0]
    )
    for length in range(len(frame)):
        got = pagedecode.decode_pages(frame[:length], 0, 100, PAGE, 9, 0, False, 5, 0)
        assert got == (b"", b"", b"", 0, 0, False), length
    got = pagedecode.decode_pages(b"??" + frame, 2, 100, PAGE, 9, 2, False, 5, 0)
    assert got[:2] == (bytes(numbers(3)), page)
    assert got[3:] == (len(frame), got[4], False)


def test_batches_stop_at_the_limit() -> None:
    block = pageblock.encode_pages(numbers(1, 2, 3), bytes(3 * PAGE), PAGE, 100, 0)[0] + bytes(6)
    pgnos, images, _, used, crc, ended = pagedecode.decode_pages(block, 0, 100, PAGE, 3, 0, True, 2, 0)
    assert (pgnos, len(images), ended) == (bytes(numbers(1, 2)), 2 * PAGE, False)
    rest = pagedecode.decode_pages(block, used, 100 + used, PAGE, 3, 2, True, 2, crc)
    assert (rest[0], used + rest[3], rest[5]) == (bytes(numbers(3)), len(block) - 6, True)


@pytest.mark.parametrize("options", [{"block_linked": False}, {"block_checksum": True}, {"store_size": True}])
def test_legacy_frames_with_other_options(options: dict[str, bool]) -> None:
    page = b"legacy " * 9362
    page += bytes(65536 - len(page))
    head = struct.pack(">IH", 4, 0)
    frame = head + lz4.frame.compress(page, content_checksum=True, **options)
    assert pagedecode.decode_page(frame, 65536) == (4, page)
    with pytest.raises(BlockError, match="damaged or not one page"):
        pagedecode.decode_page(frame, 32768)


@pytest.mark.parametrize("size", [PAGE - 1, PAGE + 1, 2 * PAGE, 0])
@pytest.mark.parametrize("legacy", [False, True])
def test_pages_of_the_wrong_length_are_refused(size: int, legacy: bool) -> None:
    data = b"q" * size
    frame = (
        reference.legacy_frame(1, data)[0]
        if legacy
        else reference.block_frame(1, reference.compress(data))[0]
    )
    with pytest.raises(BlockError) as caught:
        pagedecode.decode_page(frame, PAGE)
    assert caught.value.offset in (6, 10)
    assert not caught.value.is_checksum


def test_one_page_needs_exactly_its_frame() -> None:
    frame = reference.block_frame(7, reference.compress(b"x" * PAGE))[0]
    assert pagedecode.decode_page(frame, PAGE) == (7, b"x" * PAGE)
    for wrong in (b"", frame[:-1], frame + b"\0", bytes(6), bytes(20)):
        with pytest.raises(BlockError):
            pagedecode.decode_page(wrong, PAGE)


@pytest.mark.parametrize(
    ("pgnos", "length", "reason"),
    [
        ([0], 1, "page 0 does not follow"),
        ([2, 2], 2, "does not follow"),
        ([1], 2, "do not fit"),
        ([10], 1, "beyond the database's 9 pages"),
    ],
)
def test_encoder_refuses_bad_pages(pgnos: list[int], length: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pageblock.encode_record(header(), numbers(*pgnos), bytes(length * PAGE), POST)


def test_encoder_refuses_numbers_that_are_not_aligned() -> None:
    """Compiled code may read u32 numbers in a way that needs it."""
    aside = memoryview(b"\0" + numbers(1, 2).tobytes())[1:]
    with pytest.raises(ValueError, match="not aligned"):
        pageblock.encode_pages(aside, bytes(2 * PAGE), PAGE, 100, 0)


def test_encoder_refuses_bad_headers() -> None:
    with pytest.raises(ValueError, match="header of 99 bytes"):
        pageblock.encode_record(bytes(99), b"", b"", POST)
    with pytest.raises(ValueError, match="page size 513"):
        pageblock.encode_record(header(513), b"", b"", POST)
    lock = numbers(lock_pgno(PAGE))
    with pytest.raises(ValueError, match="lock page"):
        pageblock.encode_record(header(commit=lock[0]), lock, bytes(PAGE), POST)
    with pytest.raises(ValueError, match="must hold all 9 pages, not 1"):
        pageblock.encode_record(header(txid=1), numbers(1), bytes(PAGE), POST)


@pytest.mark.parametrize(
    ("index", "offset"),
    [
        (b"", 50),
        (b"\1\2", 50),
        (b"\1\2\3", 53),
        (b"\x80" * 10 + b"\0", 50),
        (b"\0\0", 51),
        (b"\xff" * 6 + b"\1\1\0", 50),
    ],
)
def test_damaged_index_is_refused_with_its_place(index: bytes, offset: int) -> None:
    with pytest.raises(BlockError) as caught:
        pagedecode.parse_index(index, 50)
    assert caught.value.offset == offset


def test_file_checksum_continues_over_pieces() -> None:
    head = header()
    block, index, crc = pageblock.encode_pages(numbers(5), b"z" * PAGE, PAGE, 100, crc64(head))
    tail = bytes(6) + index + b"\0" + struct.pack(">QQ", len(index) + 1, POST)
    record = head + block + tail + struct.pack(">Q", FLAG | crc64(tail, crc))
    assert record == pageblock.encode_record(head, numbers(5), b"z" * PAGE, POST)
