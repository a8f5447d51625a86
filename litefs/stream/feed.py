"""One database on its way to one replica: what to send next, from the log or from a snapshot."""

from __future__ import annotations

import enum
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO

import trio

from litefs.errors import LiteFSError
from litefs.meters import METERS
from litefs.stream.frames import (
    MAX_PAYLOAD,
    encode_piece,
    encode_records,
    encode_snapshot_abort,
    encode_snapshot_begin,
    encode_snapshot_end,
    encode_snapshot_pages,
)
from litefs.stream.protocols import Entry, Pages, RecordReader, RecordStream, Source
from litefs.types import Point

logger = logging.getLogger(__name__)

TURN_BYTES = 256 << 10
"""Bytes of one turn of one database, so that no database waits long for another."""
RETRY_FIRST = 1.0
RETRY_LAST = 30.0
"""Seconds before a database whose log or pages could not be read is tried again (doubled each time)."""
STALL_SECONDS = 60.0
"""A replica that takes nothing of a snapshot for this long loses it: retention may not delete what a snapshot
needs, and a frozen replica must not fill the primary's disk."""


class State(enum.Enum):
    """What a feed does in its next turn."""

    LIVE = "live"
    """Follow the log from ``at``."""
    WANTS_SNAPSHOT = "wants snapshot"
    """The log does not reach back to the replica; waits for a free snapshot slot."""
    PAGES = "pages"
    TAIL = "tail"
    """Records from the snapshot's beginning to its end."""


class Walk:
    """A snapshot iterated step by step in worker threads, closed only while no step runs."""

    def __init__(self, source: Source, handle: int) -> None:
        self._source = source
        self._handle = handle
        self._lock = threading.Lock()
        self._closed = False
        self.pages: Pages | None = None

    def begin(self) -> bytes:
        """Open the snapshot; its first frame. Runs in a worker thread."""
        with self._lock:
            pages = self.pages = self._source.snapshot()
            if self._closed:
                pages.close()
            self._batches = iter(pages)
            return encode_snapshot_begin(
                self._handle, pages.page_size, pages.commit, pages.at, pages.timestamp
            )

    def step(self) -> bytes | None:
        """The next frame of pages, None after the last. Runs in a worker thread."""
        with self._lock:
            if self._closed:
                return None
            batch = next(self._batches, None)
        return None if batch is None else encode_snapshot_pages(self._handle, *batch)

    def close(self) -> None:
        """Close the snapshot, in a thread of its own if a step is still running."""
        if self._lock.acquire(blocking=False):
            self._close_locked()
        else:
            threading.Thread(target=self._close_later, name="snapshot-close", daemon=True).start()

    def _close_later(self) -> None:
        self._lock.acquire()
        self._close_locked()

    def _close_locked(self) -> None:
        try:
            if not self._closed and self.pages is not None:
                self.pages.close()
            self._closed = True
        finally:
            self._lock.release()


class Feed:
    """The state machine of one database for one replica.

    ``turn`` gives the next chunk; snapshot pages come from the task of :meth:`run_snapshot`, through a
    slot for one chunk. ``wake`` is called when that slot fills. ``settled`` is true once the replica has
    caught up or the database could not be read: one damaged database must not keep a replica from getting
    ready.
    """

    def __init__(
        self,
        source: Source,
        handle: int,
        at: Point,
        wake: Callable[[], None],
        snapshot_seconds: float = math.inf,
    ) -> None:
        """``snapshot_seconds``: how long the pages of a snapshot may take; then it is begun anew."""
        self.source = source
        self._snapshot_seconds = snapshot_seconds
        self.handle = handle
        self.at = at
        self.state = State.LIVE
        self.settled = False
        self.retry_at = 0.0
        self._delay = RETRY_FIRST
        self._wake = wake
        self._reader: RecordReader | None = None
        self._entries: deque[Entry] = deque()
        self._big: tuple[RecordStream, int] | None = None
        self._behind = False
        self._slot: bytes | None = None
        self._slot_free = trio.Event()
        self._walk: Walk | None = None
        self._end: Point | None = None

    @property
    def is_idle(self) -> bool:
        """Whether ``turn`` would find nothing to do; among thousands of databases most are so at any time."""
        return (
            self.settled
            and self.state is State.LIVE
            and self._slot is None
            and self._big is None
            and not self._entries
            and self.source.is_at(self.at)
        )

    async def turn(self) -> bytes | None:
        """The next chunk, at most about ``TURN_BYTES``, or None if there is nothing to send now.

        Suspends only to read from the disk what a replica far behind needs.
        """
        if self._slot is not None:
            chunk, self._slot = self._slot, None
            self._slot_free.set()
            return chunk
        if self.state in (State.PAGES, State.WANTS_SNAPSHOT):
            return None
        try:
            return await self._from_log()
        except (LiteFSError, OSError) as error:
            return self._fail(error)

    async def _from_log(self) -> bytes | None:
        tip = self._end or self.source.point()
        if self._big is None and not self._entries:
            if tip.txid == self.at.txid:
                return self._at_tip(tip)
            if tip.txid == 0:
                self.settled = True
                return None
            if not self._open(tip):
                self.state = State.WANTS_SNAPSHOT
                return None
            await self._read(tip)
        chunk = await self._pack()
        if self._big is None and not self._entries and self.at.txid == tip.txid:
            self.at = tip
            self._behind = False
            self.settled = self.settled or self.state is State.LIVE
        return chunk

    def _at_tip(self, tip: Point) -> bytes | None:
        if self.state is State.TAIL:
            self.state, self._end, self.at = State.LIVE, None, tip
            METERS.snapshots_sent[self.source.name] += 1
            self._delay = RETRY_FIRST
            return encode_snapshot_end(self.handle, tip)
        if tip != self.at:
            self.state = State.WANTS_SNAPSHOT
        else:
            self.settled = True
        return None

    def _open(self, tip: Point) -> bool:
        """Place a reader behind ``at``; False if the log does not hold that position."""
        if self._reader is None:
            if self.state is State.LIVE and (self.at.txid == 0 or self.at.txid > tip.txid):
                return False
            reader = self.source.reader()
            if not reader.seek(self.at):
                reader.close()
                return False
            self._reader = reader
        return True

    async def _read(self, tip: Point) -> None:
        assert self._reader is not None
        read = partial(self._reader.read, tip.txid, TURN_BYTES)
        entries: Sequence[Entry] = await trio.to_thread.run_sync(read) if self._behind else read()
        if not entries or entries[0].txid_min != self.at.txid + 1:
            raise LiteFSError(
                f"the log gives no record after {self.at.txid:016x}, its tip is {tip.txid:016x}"
            )
        self._entries.extend(entries)
        self._behind = entries[-1].txid_max != tip.txid

    async def _pack(self) -> bytes:
        """One chunk of what has been read: whole records in one frame, or a piece of a big one."""
        first = self._entries[0]
        if self._big is None and first.size > TURN_BYTES:
            stream = BytesIO(first.body) if first.body else await trio.to_thread.run_sync(first.open)
            self._big = (stream, 0)
        if self._big is not None:
            return await self._pack_piece(*self._big)
        bodies: list[bytes] = []
        room = MAX_PAYLOAD
        while self._entries and first.size <= min(TURN_BYTES, room - 4):
            bodies.append(first.body)
            room -= 4 + first.size
            self.at = Point(first.txid_max)
            self._entries.popleft()
            first = self._entries[0] if self._entries else first
        METERS.sent[self.source.name] += len(bodies)
        return encode_records(self.handle, bodies)

    async def _pack_piece(self, file: RecordStream, offset: int) -> bytes:
        entry = self._entries[0]
        size = min(TURN_BYTES, entry.size - offset)
        data = file.read(size) if entry.body else await trio.to_thread.run_sync(file.read, size)
        if not data:
            raise LiteFSError(f"record {entry.txid_max:016x} ends after {offset} of {entry.size} bytes")
        chunk = encode_piece(self.handle, entry.size, offset, data)
        if offset + len(data) < entry.size:
            self._big = (file, offset + len(data))
            return chunk
        file.close()
        self._big = None
        self._entries.popleft()
        self.at = Point(entry.txid_max)
        METERS.sent[self.source.name] += 1
        return chunk

    def _fail(self, error: Exception) -> bytes | None:
        """Try again with a snapshot, a little later. The frame that tells the replica, if it must be told."""
        logger.warning("%s: cannot send from the log, a snapshot follows: %s", self.source.name, error)
        begun = self.state is State.TAIL or self._big is not None
        self._restart()
        return encode_snapshot_abort(self.handle, str(error)) if begun else None

    def _restart(self) -> None:
        self._drop_reader()
        self._end = None
        self.state = State.WANTS_SNAPSHOT
        self.settled = True
        self.retry_at = trio.current_time() + self._delay
        self._delay = min(2 * self._delay, RETRY_LAST)

    async def run_snapshot(self) -> None:
        """Send pages through the slot until the walk is done, then leave the tail to ``turn``."""
        self._drop_reader()
        self.state = State.PAGES
        walk = self._walk = Walk(self.source, self.handle)
        begun = False
        try:
            with trio.move_on_after(self._snapshot_seconds) as scope:
                await self._put(await trio.to_thread.run_sync(walk.begin, abandon_on_cancel=True))
                begun = True
                while (chunk := await trio.to_thread.run_sync(walk.step, abandon_on_cancel=True)) is not None:
                    await self._put(chunk)
            if scope.cancelled_caught:
                raise LiteFSError(f"it took longer than http.snapshot-timeout, {self._snapshot_seconds:g} s")
            assert walk.pages is not None
            self.at, self._end = walk.pages.at, self.source.point()
            if not self._open(self._end):
                raise LiteFSError(f"the log lost {self.at} while the pages were sent")
            self.state = State.TAIL
        except (LiteFSError, OSError) as error:
            logger.warning("%s: the snapshot failed, another one follows: %s", self.source.name, error)
            if begun:  # in place of pages that still wait: they are for nothing
                self._slot = encode_snapshot_abort(self.handle, str(error))
            self._restart()
        finally:
            walk.close()
            self._walk = None
            self._wake()

    async def _put(self, chunk: bytes) -> None:
        with trio.move_on_after(STALL_SECONDS) as scope:
            while self._slot is not None:
                self._slot_free = trio.Event()
                await self._slot_free.wait()
        if scope.cancelled_caught:
            raise LiteFSError(f"the replica took nothing for {STALL_SECONDS:g} s")
        self._slot = chunk
        self._wake()

    def _drop_reader(self) -> None:
        self._entries.clear()
        if self._big is not None:
            self._big[0].close()
            self._big = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Release the log; a running snapshot task must have been cancelled."""
        self._drop_reader()
