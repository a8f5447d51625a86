"""The kernel that lays page indexes over one another, against plain Python."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs._core.pagedecode import BlockError, parse_index
from litefs._core.pagemap import lay_index

START = 100


def uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def index_of(frames: list[tuple[int, int]]) -> tuple[bytes, int]:
    """The index of frames of (page number, size), and its offset in the file."""
    offset, out = START, b""
    for pgno, size in frames:
        out += uvarint(pgno) + uvarint(offset) + uvarint(size)
        offset += size
    return out + b"\0", offset + 6


class Arrays:
    def __init__(self, pages: int) -> None:
        self.offsets, self.sizes = array("Q", bytes(8 * pages)), array("I", bytes(4 * pages))
        self.pieces = array("I", bytes(4 * pages))

    def lay(self, index: bytes, offset: int, piece: int, limit: int) -> int:
        return lay_index(index, offset, self.offsets, self.sizes, self.pieces, piece, limit)

    def noted(self) -> dict[int, tuple[int, int, int]]:
        return {
            at + 1: (offset, size, piece)
            for at, (offset, size, piece) in enumerate(
                zip(self.offsets, self.sizes, self.pieces, strict=True)
            )
            if size
        }


frames = st.dictionaries(st.integers(1, 40) | st.integers(1, 2**32 - 1), st.integers(7, 100000), max_size=20)


@settings(deadline=None, max_examples=100)
@given(files=st.lists(frames, max_size=5), limits=st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_the_newest_image_of_each_page_is_noted(files: list[dict[int, int]], limits: list[int]) -> None:
    arrays, expected = Arrays(40), dict[int, tuple[int, int, int]]()
    for piece, (file, limit) in enumerate(zip(files, limits, strict=False)):
        index, offset = index_of(sorted(file.items()))
        new = {
            pgno: (at, size, piece)
            for pgno, at, size in parse_index(index, offset)
            if pgno <= limit and pgno not in expected
        }
        assert arrays.lay(index, offset, piece, limit) == len(new)
        expected |= new
    assert arrays.noted() == expected


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"\x01",
        b"\x01\x64",
        b"\x01\x64\x0a",
        b"\x01\x64\x0a\x00\x00",
        b"\x02\x64\x0a\x01\x6e\x0a\x00",
        b"\x01\x64\x0a\x02\x6f\x0a\x00",
        b"\x01\x63\x0a\x00",
        b"\x01\x64\x06\x00",
        b"\x01\x64\xff\xff\x7f\x00",
        b"\xff\xff\xff\xff\x7f\x64\x0a\x00",
    ],
)
def test_a_damaged_index_is_refused(index: bytes) -> None:
    with pytest.raises(BlockError):
        Arrays(10).lay(index, 1000, 1, 10)


def test_arrays_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        Arrays(10).lay(b"\0", 106, 1, 11)
