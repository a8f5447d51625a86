"""The WAL cursor against a file that is scanned again from its tip after every write."""

from __future__ import annotations

import random
import struct
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs._core import walcursor
from litefs._core.walcursor import NEED, WalCursor, build_frames
from litefs.sqlite.locks import lock_pgno
from litefs.sqlite.wal import FRAME_HEADER, HEADER_SIZE, FrameHeader, WalHeader, wal_checksum

PAGE = 512
FRAME = FRAME_HEADER + PAGE


@dataclass
class Scanner:
    """The reference: knows the tip only, and reads everything beyond it each time."""

    header: WalHeader
    tip: int = HEADER_SIZE
    checksum: tuple[int, int] = (0, 0)
    logged: int = 0

    def __post_init__(self) -> None:
        self.checksum = self.header.checksum

    def scan(self, file: bytes | bytearray) -> list[tuple[FrameHeader, bytes]]:
        """The frames of the valid chain."""
        frames = []
        chain, offset = self.checksum, self.tip
        size = FRAME_HEADER + self.header.page_size
        while offset + size <= len(file):
            frame = bytes(file[offset : offset + size])
            head = FrameHeader.parse(frame)
            if head.pgno == 0 or (head.salt1, head.salt2) != (self.header.salt1, self.header.salt2):
                break
            big = self.header.big_endian
            chain = wal_checksum(frame[FRAME_HEADER:], *wal_checksum(frame[:8], *chain, big), big)
            if chain != (head.c1, head.c2):
                break
            frames.append((head, frame[FRAME_HEADER:]))
            offset += size
        return frames

    def advance(self, frames: list[tuple[FrameHeader, bytes]]) -> None:
        self.tip += len(frames) * (FRAME_HEADER + self.header.page_size)
        self.logged += len(frames)
        self.checksum = (frames[-1][0].c1, frames[-1][0].c2)


def commits_of(frames: list[tuple[FrameHeader, bytes]]) -> int:
    return sum(head.commit != 0 for head, _ in frames)


def laid(file: bytearray, offset: int, data: bytes) -> bytearray:
    """The file after a write."""
    result = bytearray(file)
    if data and offset > len(result):
        result.extend(bytes(offset - len(result)))
    result[offset : offset + len(data)] = data
    return result


def propose(cursor: WalCursor, file: bytearray, offset: int, data: bytes) -> tuple[int, int]:
    """(commits, bytes read) of a proposal, with its questions answered from the file."""
    result = cursor.propose(offset, data, len(file))
    read = 0
    while result == NEED:
        at, length = cursor.want()
        assert length > 0
        answer = bytes(file[at : at + length])
        read += len(answer)
        result = cursor.supply(at, answer)
    return result, read


def check_transaction(cursor: WalCursor, scanner: Scanner, file: bytearray) -> None:
    """``take`` gives the first commit of the chain in ``file`` (with the pending write laid on it)."""
    taken = cursor.take()
    frames = scanner.scan(file)
    if not commits_of(frames):
        assert taken is None
        return
    assert taken is not None
    end = next(i for i, (head, _) in enumerate(frames) if head.commit) + 1
    commit = frames[end - 1][0].commit
    newest = {head.pgno: i for i, (head, _) in enumerate(frames[:end]) if head.pgno <= commit}
    newest.pop(lock_pgno(scanner.header.page_size), None)
    pages = sorted(newest)
    size = FRAME_HEADER + scanner.header.page_size
    assert (taken.commit, taken.first_frame, taken.last_frame) == (
        commit,
        scanner.logged + 1,
        scanner.logged + end,
    )
    assert array("I", taken.frame_pgnos).tolist() == [head.pgno for head, _ in frames[:end]]
    assert array("I", taken.pgnos).tolist() == pages
    offsets = [scanner.tip + newest[p] * size + FRAME_HEADER for p in pages]
    assert array("Q", taken.offsets).tolist() == offsets
    if taken.images is not None:
        assert bytes(taken.images) == b"".join(frames[newest[p]][1] for p in pages)
    else:
        read = b"".join(bytes(file[o : o + scanner.header.page_size]) for o in offsets)
        assert read == b"".join(frames[newest[p]][1] for p in pages)


@dataclass
class World:
    """A WAL file, its cursor and the reference, and a run of good frames from which writes take pieces."""

    rng: random.Random
    limit: int
    big_endian: bool
    file: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.cursor = WalCursor(self.limit)
        self.restart()

    def restart(self) -> None:
        header = WalHeader(PAGE, self.rng.getrandbits(32), self.rng.getrandbits(32), 1, self.big_endian)
        packed = header.pack()
        self.file[:HEADER_SIZE] = packed
        self.cursor.reset(packed)
        self.scanner = Scanner(header)
        self.good: bytearray = bytearray()
        self.chains = [self.scanner.checksum]
        self.first_good = HEADER_SIZE
        self.plan(0)

    def plan(self, keep: int) -> None:
        """New good frames after the first ``keep``."""
        self.chains = self.chains[: keep + 1]
        frames = self.good[: keep * FRAME]
        for _ in range(self.rng.randint(1, 6)):
            commit = self.rng.choice([0, 0, self.rng.randint(1, 6)])
            pgno = array("I", [self.rng.randint(1, 6)])
            header = self.scanner.header
            frame, *chain = build_frames(
                pgno,
                self.rng.randbytes(PAGE),
                PAGE,
                header.salt1,
                header.salt2,
                *self.chains[-1],
                commit,
                self.big_endian,
            )
            frames += frame
            self.chains.append((chain[0], chain[1]))
        self.good = frames

    def cut_point(self, x: int) -> int:
        """An offset into the good frames, most often one where writes really are split."""
        frame, where = divmod(x, 8)
        within = (0, 0, 8, FRAME_HEADER, FRAME_HEADER + 256, FRAME - 24, FRAME - 3, self.rng.randrange(FRAME))
        return min(len(self.good), frame % (len(self.good) // FRAME + 1) * FRAME + within[where])

    def write(self, offset: int, data: bytes, fate: int) -> None:
        """Propose, compare, then accept, reject, or take and accept."""
        if offset < self.scanner.tip:
            data = data[self.scanner.tip - offset :]
            offset = self.scanner.tip
        before = (self.cursor.valid_frames, self.cursor.commits)
        after = laid(self.file, offset, data)
        result, _ = propose(self.cursor, self.file, offset, data)
        frames = self.scanner.scan(after)
        assert result == commits_of(frames) == self.cursor.commits
        assert self.cursor.valid_frames == len(frames)
        pending = self.cursor.pending()
        assert pending is not None
        assert pending == (offset, data)
        check_transaction(self.cursor, self.scanner, after)
        if fate == 0:
            self.cursor.reject()
            if len(self.file) >= self.scanner.tip + before[0] * FRAME:
                assert (self.cursor.valid_frames, self.cursor.commits) == before
            return
        if fate == 1 and result:
            self.log()
            self.cursor.accept()
            self.file = after
        else:
            self.cursor.accept()
            self.file = after
            if fate == 2 and result:
                self.log()
        assert self.cursor.buffered <= max(self.limit, 0)

    def log(self) -> None:
        """Move the tip past the first commit."""
        taken = self.cursor.take()
        assert taken is not None
        count = taken.last_frame - self.scanner.logged
        self.cursor.advance(taken.last_frame)
        heads = [
            (FrameHeader.parse(frame), frame)
            for frame in (
                bytes(laid(self.file, *self.cursor.pending())[o : o + FRAME])  # type: ignore[arg-type,misc]
                if self.cursor.pending()
                else bytes(self.file[o : o + FRAME])
                for o in range(self.scanner.tip, self.scanner.tip + count * FRAME, FRAME)
            )
        ]
        self.scanner.advance(heads)
        # Keep the plan if the logged frames are its first ones, else start a new one behind the tip.
        planned = self.scanner.tip - self.first_good
        chain = self.chains[planned // FRAME] if planned <= len(self.good) else None
        if chain == self.scanner.checksum:
            self.good = self.good[planned:]
            self.chains = self.chains[planned // FRAME :]
        else:
            self.good, self.chains = bytearray(), [self.scanner.checksum]
        self.first_good = self.scanner.tip
        if not self.good:
            self.plan(0)
        assert self.cursor.tip_offset == self.scanner.tip
        assert self.cursor.checksum == self.scanner.checksum
        assert self.cursor.logged_frames == self.scanner.logged

    def step(self, kind: int, x: int, y: int, fate: int) -> None:
        low, high = sorted((self.cut_point(x), self.cut_point(y)))
        at = self.first_good + low
        if kind <= 4:
            self.write(at, bytes(self.good[low:high]), fate)
        elif kind == 5:
            self.write(at, self.rng.randbytes(high - low), fate)
        elif kind == 6:
            self.plan(x % (len(self.good) // FRAME + 1))
        elif kind == 7:
            end = at + high - low
            self.write(at, bytes(self.file[at:end]), fate)
        elif kind == 8:
            del self.file[max(self.scanner.tip, at) :]
        elif kind == 9 and x % 3 == 0:
            self.restart()
        elif kind == 10:  # a whole good frame or two at once, the way it mostly goes
            low = x % (len(self.good) // FRAME) * FRAME
            self.write(self.first_good + low, bytes(self.good[low : low + FRAME * (1 + y % 2)]), fate)


STEP = st.tuples(st.integers(0, 10), st.integers(0, 63), st.integers(0, 63), st.integers(0, 4))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    limit=st.sampled_from([0, 700, 2 * FRAME, 8 << 20]),
    big_endian=st.booleans(),
    steps=st.lists(STEP, min_size=1, max_size=40),
)
def test_judges_as_a_scan_of_the_file_would(
    seed: int, limit: int, big_endian: bool, steps: list[tuple[int, int, int, int]]
) -> None:
    world = World(random.Random(seed), limit, big_endian)
    for step in steps:
        world.step(*step)
