"""WAL checksum and frames against the plain-Python format."""

from __future__ import annotations

import random
import struct
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs._core.walcursor import build_frames
from litefs._core.walcursor import wal_checksum as kernel_checksum
from litefs.sqlite.wal import FrameHeader, wal_checksum


@given(data=st.binary(max_size=400), start=st.tuples(*[st.integers(0, 2**32 - 1)] * 2), big=st.booleans())
def test_checksum_is_the_reference(data: bytes, start: tuple[int, int], big: bool) -> None:
    data = data[: len(data) // 8 * 8]
    assert kernel_checksum(data, *start, big) == wal_checksum(data, *start, big)


def test_checksum_refuses_part_of_a_word_pair() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        kernel_checksum(b"1234567", 0, 0, False)


@given(
    pgnos=st.lists(st.integers(1, 2**32 - 1), max_size=5),
    size=st.sampled_from([512, 4096, 65536]),
    commit=st.integers(0, 2**32 - 1),
    start=st.tuples(*[st.integers(0, 2**32 - 1)] * 4),
    big=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_built_frames_are_the_reference(
    pgnos: list[int], size: int, commit: int, start: tuple[int, int, int, int], big: bool, seed: int
) -> None:
    images = random.Random(seed).randbytes(len(pgnos) * size)
    salt1, salt2, c1, c2 = start
    expected = b""
    for i, pgno in enumerate(pgnos):
        page = images[i * size : (i + 1) * size]
        size_field = commit if i == len(pgnos) - 1 else 0
        c1, c2 = wal_checksum(page, *wal_checksum(struct.pack(">2I", pgno, size_field), c1, c2, big), big)
        expected += FrameHeader(pgno, size_field, salt1, salt2, c1, c2).pack() + page
    assert build_frames(array("I", pgnos), images, size, *start, commit, big) == (expected, c1, c2)


@pytest.mark.parametrize(
    ("pgnos", "length", "size"), [([1], 511, 512), ([0], 512, 512), ([1], 500, 500), ([], 8, 512)]
)
def test_built_frames_refuse_what_does_not_fit(pgnos: list[int], length: int, size: int) -> None:
    with pytest.raises(ValueError, match="page"):
        build_frames(array("I", pgnos), bytes(length), size, 1, 2, 3, 4, 5, False)
