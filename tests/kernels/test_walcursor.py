"""The WAL cursor against a file that is scanned again from its tip after every write."""

from __future__ import annotations

import itertools
import random
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        ends = [number for number, (head, _) in enumerate(frames, 1) if head.commit]
        size = self.cursor.page_size + 24
        assert self.cursor.commit_end == self.cursor.tip_offset + max(ends, default=0) * size
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
        pending = self.cursor.pending()
        file = laid(self.file, pending[0], bytes(pending[1])) if pending else self.file
        self.scanner.advance(self.scanner.scan(file)[:count])
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
        elif kind == 11:  # one frame in pieces, in any order: the last piece completes it, whichever that is
            start = self.first_good + x % (len(self.good) // FRAME) * FRAME
            frame = bytes(self.good[start - self.first_good :][:FRAME])
            cuts = [0, FRAME_HEADER, *sorted(self.rng.choices(range(FRAME), k=y % 3)), FRAME]
            pieces = [(start + a, frame[a:b]) for a, b in itertools.pairwise(cuts) if a < b]
            self.rng.shuffle(pieces)
            for offset, piece in pieces:
                self.write(offset, piece, 0 if self.rng.random() < 0.1 else 4)


STEP = st.tuples(st.integers(0, 11), st.integers(0, 63), st.integers(0, 63), st.integers(0, 4))


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


def generation(limit: int = 8 << 20, page_size: int = PAGE) -> tuple[WalCursor, WalHeader]:
    header = WalHeader(page_size, 7, 9)
    cursor = WalCursor(limit)
    cursor.reset(header.pack())
    return cursor, header


def frames_of(
    header: WalHeader, chain: tuple[int, int], *frames: tuple[int, int], fill: int = 1
) -> tuple[bytes, tuple[int, int]]:
    """Frames of (page number, commit) with pages of one byte, and the checksum after them."""
    out = b""
    for pgno, commit in frames:
        page = bytes([(pgno * 16 + fill) % 256]) * header.page_size
        data, c1, c2 = build_frames(
            array("I", [pgno]),
            page,
            header.page_size,
            header.salt1,
            header.salt2,
            *chain,
            commit,
            header.big_endian,
        )
        out += data
        chain = (c1, c2)
    return out, chain


def test_an_old_page_with_an_equal_tail_lets_the_first_piece_complete_a_commit() -> None:
    cursor, header = generation()
    data, _ = frames_of(header, header.checksum, (3, 3))
    file = bytearray(header.pack() + bytes(FRAME - 100) + data[-100:])
    assert propose(cursor, file, 32, data[:24])[0] == 0
    cursor.accept()
    file[32:56] = data[:24]
    assert propose(cursor, file, 56, data[24:-100])[0] == 1
    cursor.reject()
    assert propose(cursor, file, 56, data[24:-101])[0] == int(file[31 + FRAME - 100] == data[-101])
    cursor.reject()
    assert (cursor.commits, cursor.valid_frames) == (0, 0)


def test_a_header_alone_completes_a_commit_whose_page_is_there() -> None:
    cursor, header = generation()
    data, chain = frames_of(header, header.checksum, (3, 0))
    more, _ = frames_of(header, chain, (4, 9))
    file = bytearray(header.pack() + bytes(24) + data[24:] + more)
    result, read = propose(cursor, file, 32, data[:24])
    assert (result, cursor.valid_frames) == (1, 2), "the frame behind it continues the chain"
    assert read == len(file) - 32 - 24


def test_headers_rewritten_after_the_commit_frame_was_written() -> None:
    """A spilled page is overwritten in place; the commit is the last of the header rewrites that follow."""
    cursor, header = generation()
    count = 12
    spilled, _ = frames_of(header, header.checksum, *((n + 1, 0) for n in range(count)))
    final, _ = frames_of(header, header.checksum, (1, 0), fill=5)
    rest, _ = frames_of(header, (FrameHeader.parse(final).c1, FrameHeader.parse(final).c2),
                        *((n + 1, count if n == count - 1 else 0) for n in range(1, count)))  # fmt: skip
    final += rest
    file = bytearray(header.pack())

    def write(offset: int, data: bytes, commits: int) -> None:
        nonlocal file
        assert propose(cursor, file, offset, data)[0] == commits
        cursor.accept()
        file = laid(file, offset, data)

    write(32, spilled, 0)
    write(32 + FRAME_HEADER, final[FRAME_HEADER:FRAME], 0)
    assert cursor.valid_frames == 0
    last = 32 + (count - 1) * FRAME
    write(last, final[-FRAME:], 0)
    for k in range(count - 1):
        write(32 + k * FRAME, final[k * FRAME : k * FRAME + FRAME_HEADER], int(k == count - 2))
    assert cursor.valid_frames == count


def test_old_bytes_are_not_read_when_they_cannot_matter() -> None:
    cursor, header = generation()
    data, chain = frames_of(header, header.checksum, (1, 0), (2, 2))
    file = bytearray(header.pack())
    for offset in range(0, len(data), 100):
        result, read = propose(cursor, file, 32 + offset, data[offset : offset + 100])
        assert read == 0, "the file has nothing beyond the write"
        cursor.accept()
        file = laid(file, 32 + offset, data[offset : offset + 100])
    assert result == 1
    cursor.advance(2)
    file += bytes(100 * FRAME)
    more, _ = frames_of(header, chain, (5, 0))
    assert propose(cursor, file, 32 + 2 * FRAME + 500, b"x" * 100)[1] > 0, "the frame at the tip is unknown"
    cursor.accept()
    for k in range(3, 90):  # zeros at the tip cannot be a frame, whatever is written behind it
        assert propose(cursor, file, 32 + k * FRAME, more)[1] == 0
        cursor.accept()


def test_after_a_restart_each_old_byte_is_read_once() -> None:
    cursor, header = generation()
    rng = random.Random(3)
    file = bytearray(header.pack() + rng.randbytes(300 * FRAME))
    chain, total = header.checksum, 0
    for k in range(300):
        data, chain = frames_of(header, chain, (k % 9 + 1, 9))
        at = 32 + k * FRAME
        for low, high in ((0, 24), (24, 400), (400, FRAME)):
            result, read = propose(cursor, file, at + low, data[low:high])
            total += read
            if result:
                taken = cursor.take()
                assert taken is not None
                cursor.advance(taken.last_frame)
            cursor.accept()
            file[at + low : at + high] = data[low:high]
    assert cursor.logged_frames == 300
    assert total <= 300 * FRAME


def test_memory_is_bounded_and_a_rewind_far_back_still_judged() -> None:
    limit = 20 * FRAME
    cursor, header = generation(limit)
    count = 400
    data, _ = frames_of(
        header, header.checksum, *((n % 50 + 1, 50 if n == count - 1 else 0) for n in range(count))
    )
    file = bytearray(header.pack())
    for at in range(0, len(data), FRAME):
        assert propose(cursor, file, 32 + at, data[at : at + FRAME])[0] == int(at == len(data) - FRAME)
        taken = cursor.take()
        cursor.accept()
        file += data[at : at + FRAME]
        assert cursor.buffered <= limit
    assert taken is not None
    assert taken.images is None
    assert len(taken.offsets) == 50 * 8
    assert propose(cursor, file, 32 + 7 * FRAME + 100, b"!")[0] == 0
    assert cursor.valid_frames == 7
    cursor.accept()
    file[32 + 7 * FRAME + 100] = ord("!")
    right = data[7 * FRAME + 100 : 7 * FRAME + 101]
    assert propose(cursor, file, 32 + 7 * FRAME + 100, right)[0] == 1
    assert cursor.valid_frames == count
    cursor.reject()
    assert (cursor.valid_frames, cursor.commits) == (7, 0)
    assert propose(cursor, file, 32 + 7 * FRAME + 100, right)[0] == 1
    cursor.accept()
    file[32 + 7 * FRAME + 100] = right[0]


def test_a_rejected_write_before_the_window_leaves_nothing_behind() -> None:
    cursor, header = generation(20 * FRAME)
    count = 45
    data, _ = frames_of(
        header, header.checksum, *((n + 1, 50 if n == count - 1 else 0) for n in range(count)), fill=3
    )
    file = bytearray(header.pack())
    for at in range(0, len(data), FRAME):
        assert propose(cursor, file, 32 + at, data[at : at + FRAME])[0] == int(at == len(data) - FRAME)
        cursor.accept()
        file += data[at : at + FRAME]
    assert 0 < cursor.buffered < count * FRAME, "the window begins beyond the tip, and is not empty"
    assert propose(cursor, file, 32 + 3 * FRAME + 100, b"!")[0] == 0
    cursor.reject()
    assert (cursor.valid_frames, cursor.commits) == (count, 1)
    other = 3 * FRAME + 200
    assert propose(cursor, file, 32 + other, data[other : other + 1])[0] == 1, "the rejected byte is gone"
    cursor.accept()
    assert propose(cursor, file, 32 + (count - 1) * FRAME, b"!")[0] == 0
    cursor.reject()
    assert propose(cursor, file, 32 + count * FRAME, data[:FRAME])[0] == 1


def zero_tailed(header: WalHeader, count: int) -> bytes:
    """Commit frames whose pages end in zeros, so that a hole in the file can complete them."""
    pages = b"".join(bytes([k + 1]) * 100 + bytes(PAGE - 100) for k in range(count))
    frames, chain = b"", header.checksum
    for k in range(count):
        page = pages[k * PAGE : (k + 1) * PAGE]
        frame, *sums = build_frames(array("I", [k + 1]), page, PAGE, 7, 9, *chain, 9, False)
        chain = (sums[0], sums[1])
        frames += frame
    return frames


def test_a_hole_completes_a_frame_that_ends_in_zeros() -> None:
    cursor, header = generation()
    data = zero_tailed(header, 1)[: FRAME_HEADER + 100]
    file = bytearray(header.pack())
    assert propose(cursor, file, 32, data)[0] == 0
    cursor.accept()
    file += data
    assert propose(cursor, file, 32 + FRAME - 1, b"")[0] == 0
    cursor.reject()
    assert propose(cursor, file, 32 + FRAME + 24, b"?")[0] == 1
    check_transaction(cursor, Scanner(header), laid(file, 32 + FRAME + 24, b"?"))
    cursor.reject()
    assert (cursor.commits, cursor.valid_frames) == (0, 0)
    assert propose(cursor, file + bytes(FRAME), 32 + FRAME + 24, b"?")[0] == 1, (
        "a file made longer does so too"
    )


@pytest.mark.parametrize("rewritten", [(FRAME + 290, FRAME + 300), (0, FRAME)])
def test_a_cut_file_cuts_the_chain_and_a_hole_then_mends_it(rewritten: tuple[int, int]) -> None:
    low, high = rewritten
    cursor, header = generation()
    data = zero_tailed(header, 2)
    file = bytearray(header.pack() + bytes(9 * FRAME))
    assert propose(cursor, file, 32, data)[0] == 2
    cursor.accept()
    file[32 : 32 + len(data)] = data
    del file[32 + FRAME + 300 :]
    assert propose(cursor, file, 32 + low, data[low:high])[0] == 1
    cursor.accept()
    assert cursor.valid_frames == 1
    assert propose(cursor, file, 32 + 5 * FRAME, b"?")[0] == 2


def test_the_same_frame_written_again_leaves_the_end_of_the_chain_open_to_a_hole() -> None:
    cursor, header = generation()
    data = zero_tailed(header, 2)
    file = bytearray(header.pack())
    for low, high in ((0, FRAME + 200), (0, FRAME)):
        assert propose(cursor, file, 32 + low, data[low:high])[0] == 1
        cursor.accept()
        file = laid(file, 32 + low, data[low:high])
    assert propose(cursor, file, 32 + 3 * FRAME, b"?")[0] == 2


def test_a_file_shorter_than_said_ends_where_its_bytes_do() -> None:
    cursor, header = generation()
    data = zero_tailed(header, 1)
    assert cursor.propose(32, data[:24], 32 + FRAME) == NEED
    assert cursor.want() == (56, PAGE)
    assert cursor.supply(56, data[24:-1]) == 0, "the last byte is not in the file"
    cursor.accept()
    assert propose(cursor, bytearray(header.pack() + data[:-1]), 32 + FRAME - 1, b"\0")[0] == 1


def test_a_late_piece_of_an_earlier_frame_does_not_use_the_sum_of_a_later_one() -> None:
    cursor, header = generation()
    data, _ = frames_of(header, header.checksum, (1, 0), (2, 2))
    file = bytearray(header.pack() + bytes(4 * FRAME))
    for offset, piece in ((0, data[:FRAME]), (FRAME, data[FRAME : FRAME + 200])):
        assert propose(cursor, file, 32 + offset, piece)[0] == 0
        cursor.accept()
        file[32 + offset : 32 + offset + len(piece)] = piece
    assert propose(cursor, file, 32 + 400, b"!")[0] == 0
    assert cursor.valid_frames == 0
    cursor.reject()
    assert propose(cursor, file, 32 + 400, data[400:401])[0] == 0
    assert cursor.valid_frames == 1
    cursor.accept()
    assert propose(cursor, file, 32 + FRAME + 200, data[FRAME + 200 :])[0] == 1


def test_several_commits_of_one_write_are_taken_in_turn() -> None:
    cursor, header = generation()
    data, chain = frames_of(header, header.checksum, (2, 0), (1, 2), (1, 2), (1, 2), (3, 0))
    file = bytearray(header.pack())
    assert propose(cursor, file, 32, data)[0] == 3
    cursor.accept()
    ends = []
    while (taken := cursor.take()) is not None:
        ends.append((taken.first_frame, taken.last_frame))
        cursor.advance(taken.last_frame)
    assert ends == [(1, 2), (3, 3), (4, 4)]
    assert (cursor.valid_frames, cursor.tip_offset) == (1, 32 + 4 * FRAME)
    assert cursor.checksum != chain


def test_pages_beyond_the_commit_and_the_lock_page_are_left_out() -> None:
    cursor, header = generation(page_size=65536)
    lock = lock_pgno(65536)
    data, _ = frames_of(header, header.checksum, (9, 0), (lock, 0), (lock + 5, 0), (9, 0), (2, lock + 1))
    assert propose(cursor, bytearray(header.pack()), 32, data)[0] == 1
    taken = cursor.take()
    assert taken is not None
    assert array("I", taken.pgnos).tolist() == [2, 9]
    assert array("I", taken.frame_pgnos).tolist() == [9, lock, lock + 5, 9, 2]
    size = 65536 + FRAME_HEADER
    assert array("Q", taken.offsets).tolist() == [32 + 4 * size + 24, 32 + 3 * size + 24]


def test_a_rejected_proposal_after_an_advance_forgets_what_is_beyond_the_tip() -> None:
    cursor, header = generation()
    data, _ = frames_of(header, header.checksum, (1, 0), (2, 2), (1, 2))
    file = bytearray(header.pack())
    assert propose(cursor, file, 32, data[:FRAME])[0] == 0
    cursor.accept()
    file += data[:FRAME]
    assert propose(cursor, file, 32 + FRAME, data[FRAME:])[0] == 2
    cursor.advance(2)
    cursor.reject()
    assert (cursor.logged_frames, cursor.valid_frames, cursor.commits) == (2, 0, 0)
    assert propose(cursor, laid(file, 32, data), 32 + 2 * FRAME, b"")[0] == 1, "the file has it after all"


@pytest.mark.parametrize("at", [0, 3, 4, 8, 16, 24, 31])
def test_a_damaged_wal_header_changes_nothing(at: int) -> None:
    cursor, header = generation()
    damaged = bytearray(header.pack())
    damaged[at] ^= 0x40
    with pytest.raises(ValueError, match="WAL header"):
        cursor.reset(bytes(damaged))
    assert (cursor.active, cursor.salt1) == (True, 7)


def test_calls_out_of_order_are_refused() -> None:
    cursor, header = generation()
    data, _ = frames_of(header, header.checksum, (1, 1))
    for call in (cursor.accept, cursor.reject, cursor.want, lambda: cursor.supply(32, b"")):
        with pytest.raises(ValueError, match=r"propos|wanted"):
            call()
    with pytest.raises(ValueError, match="tip 32"):
        cursor.propose(31, b"x", 32)
    assert cursor.propose(32, data[:24], 32 + FRAME) == NEED
    for again in (cursor.accept, cursor.take, lambda: cursor.advance(1)):
        with pytest.raises(ValueError, match=r"wanted|judged|chain"):
            again()
    with pytest.raises(ValueError, match="pending True"):
        cursor.propose(32, data, 32)
    cursor.reject()
    with pytest.raises(ValueError, match="not in the valid chain"):
        cursor.advance(1)
    cursor.deactivate()
    with pytest.raises(ValueError, match="active False"):
        cursor.propose(32, data, 32)
