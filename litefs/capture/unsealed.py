"""Commits whose frames SQLite does not seal at once, or never: what the chain of checksums cannot show.

A transaction that spilled pages and then changes them again overwrites page data inside the WAL. From there
on SQLite writes frame headers without salts and checksum (16 zero bytes), and seals them all, in ascending
order, after the commit frame was written (wal.c, walRewriteChecksums). Up to SQLite 3.40 at least, a
ROLLBACK TO a savepoint below such a frame makes it forget where to begin: some headers, or all of them with
the commit frame's, stay unsealed, and the transaction is published all the same. SQLite itself would lose
it, and every later one in that WAL, if it had to recover; clients see it meanwhile. So the commit is taken
at the write that completes the unsealed commit frame. All frames between the tip and it belong to the
transaction then: SQLite appends each of them anew before it commits.
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass
from enum import Enum

from litefs.ltx.format import lock_pgno
from litefs.sqlite.wal import FRAME_HEADER, HEADER_SIZE

SEAL = slice(8, FRAME_HEADER)
"""Salts and checksum of a frame header."""

_NO_SEAL = bytes(16)
_SALTS = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class FrameSet:
    """A transaction found by position, with the fields of :class:`litefs._core.walcursor.Transaction`."""

    commit: int
    first_frame: int
    last_frame: int
    frame_pgnos: bytes
    pgnos: bytes
    offsets: bytes


class Ending(Enum):
    """What ends at the end of a write, by the header of the frame there."""

    NOTHING = 0
    UNSEALED = 1
    SEALED = 2


def ending(fd: int, end: int, frame_size: int, salts: tuple[int, int]) -> Ending:
    """Which kind of commit frame ends at offset *end*, if any does: unsealed, or sealed with *salts*."""
    if end == HEADER_SIZE or (end - HEADER_SIZE) % frame_size:
        return Ending.NOTHING
    header = os.pread(fd, FRAME_HEADER, end - frame_size)
    if header[4:8] == bytes(4) or header[:4] == bytes(4):
        return Ending.NOTHING
    if header[SEAL] == _NO_SEAL:
        return Ending.UNSEALED
    return Ending.SEALED if _SALTS.unpack_from(header, SEAL.start) == salts else Ending.NOTHING


def frame_set(fd: int, first: int, last: int, page_size: int) -> FrameSet:
    """The transaction made of the frames *first* to *last* (1-based) of the WAL behind *fd*."""
    frame_size = page_size + FRAME_HEADER
    numbers = array("I")
    newest: dict[int, int] = {}
    commit = 0
    for frame in range(first, last + 1):
        offset = HEADER_SIZE + (frame - 1) * frame_size
        header = os.pread(fd, 8, offset)
        pgno, commit = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
        numbers.append(pgno)
        newest[pgno] = offset + FRAME_HEADER
    newest.pop(lock_pgno(page_size), None)
    pages = sorted((pgno, offset) for pgno, offset in newest.items() if pgno <= commit)
    return FrameSet(
        commit,
        first,
        last,
        numbers.tobytes(),
        array("I", (pgno for pgno, _ in pages)).tobytes(),
        array("Q", (offset for _, offset in pages)).tobytes(),
    )


def only_seals(fd: int, offset: int, data: bytes, frame_size: int) -> bool:
    """Whether a write changes nothing but salts and checksums of frames."""
    old = os.pread(fd, len(data), offset)
    if len(old) != len(data):
        return False
    for index, (before, after) in enumerate(zip(old, data, strict=True)):
        if before != after and not SEAL.start <= (offset + index - HEADER_SIZE) % frame_size < SEAL.stop:
            return False
    return True
