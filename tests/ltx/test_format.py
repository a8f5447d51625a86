"""LTX headers, trailers and page indexes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs.errors import FormatError
from litefs.ltx.format import (
    FLAG_NO_CHECKSUM,
    Header,
    Trailer,
    index_of,
    index_span,
    lock_pgno,
    page_total,
    parse_index,
)

FLAG = 1 << 63
VALID = Header(0, 4096, 4, 2, 2, 1000, FLAG | 1)

# A file that Litestream wrote: its first 100 bytes, and what follows its one page.
LITESTREAM_HEADER = bytes.fromhex(
    "4c545831000000020000100000000004"
    "00000000000000020000000000000002"
    "000001a204dfb7340000000000000000"
    "00000000000040800000000000001018"
    "015217b0b9d035bd" + "00" * 28
)
LITESTREAM_TAIL = bytes.fromhex("02647b000000000000000004" + "0000000000000000ceb67445f7617271")


def test_reads_the_header_that_litestream_wrote() -> None:
    header = Header.unpack(LITESTREAM_HEADER)
    assert header == Header(
        FLAG_NO_CHECKSUM, 4096, 4, 2, 2, 0x1A204DFB734, 0, 0x4080, 0x1018, 0x015217B0, 0xB9D035BD, 0
    )
    assert header.pack() == LITESTREAM_HEADER


def test_finds_the_index_that_litestream_wrote() -> None:
    size = 257
    assert index_span(LITESTREAM_TAIL[-24:], size) == (0xE5, 4)
    assert parse_index(LITESTREAM_TAIL[:4], 0xE5) == [(2, 100, 123)]
    assert Trailer.unpack(LITESTREAM_TAIL[-16:]) == Trailer(0, 0xCEB67445F7617271)


@settings(deadline=None)
@given(
    page_size=st.sampled_from([512 << n for n in range(8)]),
    commit=st.integers(0, 2**32 - 1),
    txids=st.lists(st.integers(1, 2**64 - 2), min_size=2, max_size=2).map(sorted),
    timestamp=st.integers(-(2**63), 2**63 - 1),
    pre=st.integers(FLAG, 2**64 - 1),
    wal=st.tuples(*[st.integers(1, 2**63 - 1)] * 2, *[st.integers(0, 2**32 - 1)] * 2),
    node=st.integers(0, 2**64 - 1),
)
def test_header_survives_packing(
    page_size: int, commit: int, txids: list[int], timestamp: int, pre: int, wal: tuple[int, ...], node: int
) -> None:
    first, last = txids
    header = Header(0, page_size, commit, first, last, timestamp, 0 if first == 1 else pre, *wal, node)
    packed = header.pack()
    assert len(packed) == 100
    assert Header.unpack(packed) == header
    assert header.is_full == (first == 1)


@pytest.mark.parametrize(
    ("change", "offset"),
    [
        ({"flags": 1}, 4),
        ({"flags": 6}, 4),
        ({"page_size": 0}, 8),
        ({"page_size": 256}, 8),
        ({"page_size": 4097}, 8),
        ({"page_size": 131072}, 8),
        ({"min_txid": 0}, 16),
        ({"max_txid": 1}, 24),
        ({"max_txid": 2**64 - 1}, 24),
        ({"min_txid": 1}, 40),
        ({"pre_apply": 0}, 40),
        ({"pre_apply": FLAG - 1}, 40),
        ({"flags": FLAG_NO_CHECKSUM}, 40),
        ({"wal_offset": -1}, 48),
        ({"wal_offset": 32, "wal_size": -1}, 48),
        ({"salt1": 1}, 48),
        ({"salt2": 1}, 48),
        ({"wal_size": 1}, 48),
    ],
)
def test_contradictions_are_refused_with_their_place(change: dict[str, int], offset: int) -> None:
    with pytest.raises(FormatError, match=rf"\(at byte {offset}\)"):
        dataclasses.replace(VALID, **change).pack()


def test_what_is_no_header() -> None:
    with pytest.raises(FormatError, match="before byte 100"):
        Header.unpack(bytes(99))
    with pytest.raises(FormatError, match=r"not an LTX file.*byte 0"):
        Header.unpack(b"SQLite format 3\0" + bytes(84))
    with pytest.raises(FormatError, match="does not fit"):
        dataclasses.replace(VALID, commit=2**32).pack()
    with pytest.raises(FormatError, match="16 bytes"):
        Trailer.unpack(bytes(15))


@pytest.mark.parametrize(
    ("header", "post", "valid"),
    [
        (VALID, FLAG, True),
        (VALID, 0, False),
        (VALID, FLAG - 1, False),
        (dataclasses.replace(VALID, commit=0), FLAG, True),
        (dataclasses.replace(VALID, commit=0), FLAG | 1, False),
        (dataclasses.replace(VALID, flags=FLAG_NO_CHECKSUM, pre_apply=0), 0, True),
        (dataclasses.replace(VALID, flags=FLAG_NO_CHECKSUM, pre_apply=0), FLAG, False),
    ],
)
def test_post_apply_checksum(header: Header, post: int, valid: bool) -> None:
    if valid:
        header.check_post_apply(post)
    else:
        with pytest.raises(FormatError, match=r"post-apply.*\(at byte 7\)"):
            header.check_post_apply(post, 7)


def test_lock_page() -> None:
    assert (lock_pgno(512), lock_pgno(4096), lock_pgno(65536)) == (0x200001, 0x40001, 0x4001)
    assert (page_total(4096, 0x40000), page_total(4096, 0x40001), page_total(4096, 0x40002)) == (
        0x40000,
        0x40000,
        0x40001,
    )


@pytest.mark.parametrize("length", [0, 1 + 257 - 24 - 100 - 6, 2**64 - 1])
def test_an_index_that_cannot_lie_in_the_record(length: int) -> None:
    with pytest.raises(FormatError, match=r"\(at byte 233\)"):
        index_span(length.to_bytes(8, "big") + bytes(16), 257)


def test_index_of_something_short() -> None:
    for size in (0, 23, 24, 130):
        with pytest.raises(FormatError):
            index_of(b"\1" * size)
