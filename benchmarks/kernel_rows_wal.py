"""Rows of ``benchmarks/kernels.py`` for the WAL kernels; 4 KiB pages."""

from __future__ import annotations

import itertools
import random
from array import array

from benchmarks.kernel_row import Row
from litefs._core.walcursor import NEED, LoggedFrames, WalCursor, build_frames, wal_checksum
from litefs._core.walindex import REGION_SIZE, WalIndex, regions_for
from litefs.sqlite import wal
from litefs.sqlite.wal import FRAME_HEADER, HEADER_SIZE, FrameHeader, WalHeader

PAGE = 4096
FRAME = FRAME_HEADER + PAGE
FRAMES = 1024
REFERENCE_FRAMES = 8
KERNEL_BLOCK = 4096
"""Bytes at which the kernel's page cache splits a write."""


def pieces_of(frames: bytes) -> list[tuple[int, bytes]]:
    """The writes that arrive through FUSE for these frames: header and page apart, split at 4 KiB."""
    pieces = []
    for start in range(0, len(frames), FRAME):
        cuts = {start, start + FRAME_HEADER, start + FRAME}
        offset = HEADER_SIZE + start
        first = -(-(offset + FRAME_HEADER) // KERNEL_BLOCK) * KERNEL_BLOCK
        cuts |= {at - HEADER_SIZE for at in range(first, offset + FRAME, KERNEL_BLOCK)}
        bounds = sorted(cuts)
        pieces += [(HEADER_SIZE + low, frames[low:high]) for low, high in itertools.pairwise(bounds)]
    return pieces


def commit_all(cursor: WalCursor, header: bytes, writes: list[tuple[int, bytes]], old: bytes) -> int:
    """Every write proposed, its commits taken; ``old``: what the file held before."""
    cursor.reset(header)
    size = max(len(old), HEADER_SIZE)
    for offset, data in writes:
        commits = cursor.propose(offset, data, size)
        while commits == NEED:
            at, length = cursor.want()
            commits = cursor.supply(at, old[at : at + length])
        while commits:
            taken = cursor.take()
            assert taken is not None
            cursor.advance(taken.last_frame)
            commits -= 1
        cursor.accept()
        size = max(size, offset + len(data))
    return cursor.logged_frames


def scan(header: WalHeader, frames: bytes) -> int:
    """The reference: the chain over a whole WAL in Python."""
    chain, count = header.checksum, 0
    for start in range(0, len(frames), FRAME):
        head = FrameHeader.parse(frames[start:])
        chain = wal.wal_checksum(frames[start : start + 8], *chain, header.big_endian)
        chain = wal.wal_checksum(frames[start + FRAME_HEADER : start + FRAME], *chain, header.big_endian)
        if chain != (head.c1, head.c2):
            break
        count += 1
    return count


def reference_frames(header: WalHeader, images: bytes) -> bytes:
    """`build_frames` in Python."""
    chain, out = header.checksum, []
    for number in range(len(images) // PAGE):
        page = images[number * PAGE : (number + 1) * PAGE]
        head = FrameHeader(number + 1, 0, header.salt1, header.salt2, 0, 0).pack()
        chain = wal.wal_checksum(page, *wal.wal_checksum(head[:8], *chain, False), False)
        out += [head[:16], chain[0].to_bytes(4, "big"), chain[1].to_bytes(4, "big"), page]
    return b"".join(out)


def rows() -> list[Row]:
    """Cursor, checksum, frames, index and the set of logged frames."""
    rng = random.Random(1)
    header = WalHeader(PAGE, 1, 2)
    packed = header.pack()
    pgnos = array("I", range(1, FRAMES + 1))
    images = rng.randbytes(FRAMES * PAGE)
    start = (PAGE, header.salt1, header.salt2, *header.checksum)
    one, *_ = build_frames(pgnos, images, *start, FRAMES, False)
    single, chain = bytearray(), header.checksum
    for number in range(FRAMES):
        page = images[number * PAGE : (number + 1) * PAGE]
        frame, *sums = build_frames(array("I", [number + 1]), page, PAGE, 1, 2, *chain, FRAMES, False)
        chain = (sums[0], sums[1])
        single += frame
    big_writes = [(HEADER_SIZE + at, one[at : at + (128 << 10)]) for at in range(0, len(one), 128 << 10)]
    small_writes = pieces_of(bytes(single))
    old = rng.randbytes(HEADER_SIZE + len(single))
    few = one[: REFERENCE_FRAMES * FRAME]
    cursor = WalCursor()

    def bulk() -> None:
        if commit_all(cursor, packed, big_writes, b"") != FRAMES:
            raise AssertionError("frames lost")

    def singles(before: bytes) -> None:
        if commit_all(cursor, packed, small_writes, before) != FRAMES:
            raise AssertionError("frames lost")

    def reference() -> None:
        if scan(header, few) != REFERENCE_FRAMES:
            raise AssertionError("frames lost")

    few_pages, few_size = images[: REFERENCE_FRAMES * PAGE], REFERENCE_FRAMES * PAGE
    total, few_total = len(one), len(few)
    return [
        Row("WAL cursor, one big commit", total, bulk, reference, few_total, bar=1000),
        Row("WAL cursor, commits of one page", total, lambda: singles(b""), reference, few_total, bar=1000),
        Row("WAL cursor, the same over old bytes", total, lambda: singles(old), reference, few_total),
        Row(
            "WAL checksum",
            len(images),
            lambda: wal_checksum(images, 0, 0, False),
            lambda: wal.wal_checksum(few_pages, 0, 0, False),
            few_size,
            bar=1000,
        ),
        Row(
            "WAL frames from pages",
            len(images),
            lambda: build_frames(pgnos, images, *start, FRAMES, False),
            lambda: reference_frames(header, few_pages),
            few_size,
        ),
        *index_rows(),
    ]


def index_rows() -> list[Row]:
    """Bytes here are those of the page numbers: 4 per frame."""
    frames = 4 * FRAMES
    pgnos = array("I", (n * 7919 % 1500 + 1 for n in range(frames)))
    plain = pgnos.tolist()
    sums = array("Q", ((1 << 63) + n for n in range(frames)))
    distinct = array("I", range(1, frames + 1))
    index = WalIndex(bytearray(REGION_SIZE * regions_for(frames)))
    logged = LoggedFrames()

    def newest() -> dict[int, int]:
        return dict(sorted({pgno: frame for frame, pgno in enumerate(plain, 1)}.items()))

    def log() -> None:
        logged.clear()
        logged.add_transaction(1, distinct, distinct, sums, frames)

    def log_plainly() -> dict[int, tuple[int, int]]:
        return {pgno: (frame, sums[frame - 1]) for frame, pgno in enumerate(distinct, 1)}

    return [
        Row("wal-index append", 4 * frames, lambda: index.append(1, pgnos), newest, 4 * frames),
        Row("wal-index newest frames", 4 * frames, lambda: index.newest(frames), newest, 4 * frames),
        Row("logged frames, add", 4 * frames, log, log_plainly, 4 * frames),
    ]
