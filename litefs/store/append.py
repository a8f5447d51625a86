"""One record on its way into the log, in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import xxhash

from litefs.errors import PositionMismatch
from litefs.store import fileops
from litefs.store.segments import LENGTH, RECORD_HEAD, RECORD_HEAD_SIZE
from litefs.types import Point

PIECE = 1 << 20
"""Bytes that are read back at a time."""


class Finish(Protocol):
    """What the log does when a record is whole, which ends at byte ``end`` and leads to ``tip``, or is given
    up (None)."""

    def __call__(self, end: int | None, tip: Point | None) -> None: ...


class LogAppend:
    """A record written in pieces; its head, which makes it exist, comes last.

    As a context it aborts unless committed.
    """

    def __init__(self, fd: int, offset: int, after_txid: int, finish: Finish) -> None:
        """Use ``Log.begin`` or ``Log.begin_segment``.

        ``offset``: of the record in the segment open as ``fd``; ``after_txid``: the last transaction before
        it.
        """
        self._fd = fd
        self._offset = offset
        self._after_txid = after_txid
        self._finish = finish
        self._at = self._furthest = offset + RECORD_HEAD_SIZE
        self._state = xxhash.xxh3_64()
        self._done = False

    @property
    def size(self) -> int:
        """Bytes of the body so far."""
        return self._at - self._offset - RECORD_HEAD_SIZE

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Add to the body. Raises OSError; abort then."""
        fileops.pwrite_all(self._fd, chunk, self._at)
        self._state.update(chunk)
        self._at += len(chunk)

    def read_back(self) -> Iterator[bytes]:
        """The body so far, in pieces. Raises OSError."""
        at = self._offset + RECORD_HEAD_SIZE
        while at < self._at:
            piece = fileops.pread_all(self._fd, min(PIECE, self._at - at), at)
            at += len(piece)
            yield piece

    def rewind(self) -> None:
        """Begin the body anew, in the same space."""
        self._furthest = max(self._furthest, self._at)
        self._at = self._offset + RECORD_HEAD_SIZE
        self._state.reset()

    def commit(self, txid: int, post: int) -> None:
        """End the body and make the record exist. Raises OSError; then the log is as before ``begin``."""
        if self._done:
            raise RuntimeError("the record is finished already")
        if txid <= self._after_txid:
            raise PositionMismatch(f"TXID {txid:016x} offered after {self._after_txid:016x}")
        size = self.size
        self._state.update(LENGTH.pack(size))
        digest = self._state.intdigest()
        end = self._at + (-size & 7)
        try:
            # The end mark behind it; inside the preallocated space it may hold no bytes of this record.
            fileops.write_zeros(self._fd, self._at, max(end + RECORD_HEAD_SIZE, self._furthest))
            fileops.pwrite_all(self._fd, RECORD_HEAD.pack(size, digest), self._offset)
        except OSError:
            self.abort()
            raise
        self._done = True
        self._finish(end, Point(txid, post, digest))

    def abort(self) -> None:
        """Give the record up; harmless after ``commit``."""
        if not self._done:
            self._done = True
            self._finish(None, None)

    def __enter__(self) -> LogAppend:
        return self

    def __exit__(self, *args: object) -> None:
        self.abort()
