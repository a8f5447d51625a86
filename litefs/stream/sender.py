"""The primary's end: the chunks of bytes that one replica is sent, pulled from the logs as it takes them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType

import trio

from litefs.errors import LiteFSError
from litefs.stream.feed import Feed, State
from litefs.stream.frames import encode_database, encode_drop, encode_end, encode_heartbeat, encode_ready
from litefs.stream.handshake import MAX_DATABASES, Hello, encode_hello
from litefs.stream.protocols import Catalog, Identity, Source
from litefs.stream.wakeup import Wakeup
from litefs.types import START, Point

HEARTBEAT_SECONDS = 1.0
PACE_SECONDS = 0.001
"""At least this long between two small chunks: at thousands of commits a second each wake-up, frame and apply
on the replica then serves several of them, and both nodes' CPUs are left to the commits."""
LOOK_SECONDS = 2e-6
"""Added to that for each database: a few times what it costs to see that it has nothing to send."""
SMALL_CHUNK = 64 << 10
MAX_SNAPSHOTS = 4
"""Snapshots on their way to one replica at a time; each holds at most two chunks in memory."""


class Sender:
    """``async with Sender(...) as chunks: async for chunk in chunks`` — one replica's stream.

    Nothing is queued for a slow replica: a chunk is read from the log when the one before was taken. The
    stream ends with an END frame once ``active()`` is false (checked at each wake-up and each heartbeat).
    """

    def __init__(
        self,
        catalog: Catalog,
        identity: Identity,
        positions: Mapping[str, Point],
        *,
        active: Callable[[], bool] = lambda: True,
        snapshot_seconds: float = math.inf,
    ) -> None:
        """``snapshot_seconds``: as of :class:`Feed`."""
        self._snapshot_seconds = snapshot_seconds
        self._catalog = catalog
        self._active = active
        self._wakeup = Wakeup()
        self._positions = dict(positions)
        self._generation = -1
        self._feeds: dict[str, Feed] = {}
        self._turns: deque[Feed] = deque()
        self._scopes: dict[Feed, trio.CancelScope] = {}
        self._next_handle = 0
        self._outbox: deque[bytes] = deque([encode_hello(Hello(identity, _now_ms()))])
        self._ready_sent = False
        self._ended = False
        self._last_chunk, self._last_size = trio.current_time(), 0
        self.sources: dict[int, Source] = {}
        """The databases of the stream, by handle."""
        self.bytes_sent = 0

    async def __aenter__(self) -> Sender:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._unlisten = self._catalog.listen(self._wakeup.notify)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unlisten()
        self._nursery.cancel_scope.cancel()
        try:
            if isinstance(error, trio.Cancelled):
                await self._manager.__aexit__(kind, error, trace)
            else:  # the body's own error goes on as it is, not in a group
                await self._manager.__aexit__(None, None, None)
        finally:
            for feed in self._feeds.values():
                feed.close()

    def __aiter__(self) -> Sender:
        return self

    async def __anext__(self) -> bytes:
        """The next chunk. Raises StopAsyncIteration after END."""
        if self._last_size < SMALL_CHUNK and not self._outbox:
            await trio.sleep_until(self._last_chunk + PACE_SECONDS + LOOK_SECONDS * len(self._turns))
        while not self._outbox:
            if self._ended:
                raise StopAsyncIteration
            await self._fill()
        chunk = self._outbox.popleft()
        self._last_chunk, self._last_size = trio.current_time(), len(chunk)
        self.bytes_sent += len(chunk)
        return chunk

    async def _fill(self) -> None:
        """Put at least one chunk into the outbox, or wait a while for a change."""
        seen, timestamp = self._wakeup.revision, _now_ms()
        if not self._active():
            self._end("this node is no longer primary")
            return
        self._follow_catalog()
        if self._outbox:
            return
        if await self._take_turn():
            return
        if not self._ready_sent and all(feed.settled for feed in self._turns):
            self._ready_sent = True
            self._outbox.append(encode_ready())
            return
        deadline = self._last_chunk + HEARTBEAT_SECONDS
        if trio.current_time() >= deadline:
            in_sync = all(feed.state is State.LIVE for feed in self._turns)
            self._outbox.append(encode_heartbeat(timestamp if in_sync else 0))
            return
        with trio.move_on_at(deadline):
            await self._wakeup.wait_change(seen)

    async def _take_turn(self) -> bool:
        """Ask each database in turn until one has a chunk; the one that had goes to the end of the line."""
        for _ in range(len(self._turns)):
            feed = self._turns[0]
            if feed.is_idle:
                self._turns.rotate(-1)
                continue
            chunk = await feed.turn()
            if feed.state is State.WANTS_SNAPSHOT and chunk is None:
                self._start_snapshot(feed)
            self._turns.rotate(-1)
            if chunk is not None:
                self._outbox.append(chunk)
                return True
        return False

    def _start_snapshot(self, feed: Feed) -> None:
        if len(self._scopes) >= MAX_SNAPSHOTS or feed in self._scopes or trio.current_time() < feed.retry_at:
            return
        scope = self._scopes[feed] = trio.CancelScope()
        self._nursery.start_soon(self._run_snapshot, feed, scope)

    async def _run_snapshot(self, feed: Feed, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await feed.run_snapshot()
        finally:
            self._scopes.pop(feed, None)
            self._wakeup.notify()

    def _follow_catalog(self) -> None:
        """Databases come and go: give handles to new ones, drop what is gone or was replaced."""
        if self._generation == self._catalog.generation:
            return
        first = self._generation < 0
        self._generation = self._catalog.generation
        sources = self._catalog.sources()
        for name in [name for name, feed in self._feeds.items() if sources.get(name) is not feed.source]:
            self._remove(name)
        if first:
            self._drop_missed(sources)
        for name, source in sources.items():
            if name not in self._feeds:
                self._add(name, source)
        self._positions.clear()

    def _drop_missed(self, sources: Mapping[str, Source]) -> None:
        """What the replica holds, and this node does not or was made to remove while the replica was away."""
        for name, position in sorted(self._positions.items()):
            deliberate = self._catalog.dropped(name) >= max(position.txid, 1)
            if deliberate or name not in sources:
                handle = self._handle()
                self._outbox += (encode_database(handle, name), encode_drop(handle, deliberate=deliberate))
                del self._positions[name]

    def _add(self, name: str, source: Source) -> None:
        handle = self._handle()
        feed = Feed(
            source, handle, self._positions.get(name, START), self._wakeup.notify, self._snapshot_seconds
        )
        self._feeds[name] = feed
        self.sources[handle] = source
        self._turns.append(feed)
        self._outbox.append(encode_database(handle, name))

    def _remove(self, name: str) -> None:
        feed = self._feeds.pop(name)
        self._turns.remove(feed)
        if feed in self._scopes:
            self._scopes[feed].cancel()
        feed.close()
        del self.sources[feed.handle]
        deliberate = self._catalog.dropped(name) >= max(feed.at.txid, 1)
        self._outbox.append(encode_drop(feed.handle, deliberate=deliberate))

    def _handle(self) -> int:
        used = {feed.handle for feed in self._feeds.values()}
        if len(used) >= MAX_DATABASES:
            raise LiteFSError(f"a stream carries at most {MAX_DATABASES} databases")
        self._next_handle = self._next_handle % MAX_DATABASES + 1
        while self._next_handle in used:
            self._next_handle = self._next_handle % MAX_DATABASES + 1
        return self._next_handle

    def _end(self, reason: str) -> None:
        self._outbox.append(encode_end(reason))
        self._ended = True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
