"""The set of logged frames against a plain list of them."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs._core.walcursor import LoggedFrames


@dataclass
class PlainFrames:
    """The reference of LoggedFrames: every frame with its checksum."""

    frames: list[tuple[int, int]] = field(default_factory=list)
    pending: set[int] = field(default_factory=set)

    def add(self, frame_pgnos: list[int], sums: dict[int, int], commit: int) -> None:
        last = {pgno: i for i, pgno in enumerate(frame_pgnos)}
        self.frames += [(p, sums.get(p, 0) if last[p] == i else 0) for i, p in enumerate(frame_pgnos)]
        self.pending = {p for p in self.pending | set(sums) if p <= commit}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), pages=st.sampled_from([3, 40, 5000]), count=st.integers(1, 60))
def test_logged_frames_are_the_reference(seed: int, pages: int, count: int) -> None:
    rng = random.Random(seed)
    kernel, plain = LoggedFrames(), PlainFrames()
    for _ in range(count):
        kind = rng.random()
        if kind < 0.03:
            kernel.clear()
            plain = PlainFrames()
        elif kind < 0.1:
            commit = rng.randint(1, pages)
            kernel.truncate(commit)
            plain.pending = {p for p in plain.pending if p <= commit}
        elif kind < 0.5:
            frame_pgnos = rng.choices(range(1, pages + 1), k=rng.choice([1, 2, 9, 700]))
            commit = rng.choice([pages, rng.randint(1, pages)])
            sums = {p: 1 << 63 | rng.randrange(4) for p in sorted(set(frame_pgnos)) if p <= commit}
            kernel.add_transaction(
                kernel.frames + 1,
                array("I", frame_pgnos),
                array("I", sums),
                array("Q", sums.values()),
                commit,
            )
            plain.add(frame_pgnos, sums, commit)
        elif plain.frames:
            pgno = rng.choice(plain.frames)[0]
            kernel.backfilled(pgno)
            plain.pending.discard(pgno)
        assert kernel.pending == len(plain.pending)
        assert kernel.frames == len(plain.frames)
        assert array("I", kernel.pending_pages()).tolist() == sorted(plain.pending)
    for pgno in {rng.randint(1, pages + 1) for _ in range(50)}:
        mine = [i for i, (p, _) in enumerate(plain.frames, 1) if p == pgno]
        assert kernel.newest(pgno) == max(mine, default=0)
        assert kernel.is_pending(pgno) == (pgno in plain.pending)
        for page_sum in (0, *(1 << 63 | k for k in range(4))):
            known = page_sum != 0 and any((pgno, page_sum) == frame for frame in plain.frames)
            assert kernel.knows(pgno, page_sum) == known


def test_logged_frames_refuse_what_does_not_follow() -> None:
    kernel = LoggedFrames()
    one = array("I", [1])
    sums = array("Q", [1 << 63])
    kernel.add_transaction(1, one, one, sums, 1)
    for arguments in (
        (1, one, one, sums, 1),
        (3, one, one, sums, 1),
        (2, one, one, b"", 1),
        (2, b"", b"", b"", 1),
    ):
        with pytest.raises(ValueError, match=r"frames from|checksums"):
            kernel.add_transaction(*arguments)
    with pytest.raises(ValueError, match="page 2 has no frame"):
        kernel.add_transaction(2, one, array("I", [2]), sums, 1)
