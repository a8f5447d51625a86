"""A replica's loop: connect to the primary, receive, and connect again, for as long as it is a replica."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from litefs.cluster.peer import READ_IDLE_SECONDS, Peer, PeerSettings, TailsWanted
from litefs.errors import (
    ChecksumMismatch,
    ClusterMismatch,
    FormatError,
    LiteFSError,
    NotSupported,
    NotTrusted,
    PeerError,
    ProtocolMismatch,
)
from litefs.stream.handshake import Hello
from litefs.stream.protocols import Identity, Observer, Sink
from litefs.stream.receiver import DatabaseFailed, Receiver
from litefs.tokens import matches
from litefs.types import ZERO, Position

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.05
RECONNECT_DELAY = 1.0
DATABASE_FIRST_DELAY = 0.2
DATABASE_DELAY = 30.0
"""Longest time until a database that failed is tried again (doubled from the first delay on); meanwhile the
others go on."""
SLOW_DELAY = 10.0
"""Between attempts that can succeed only after someone changed a configuration."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the node wants to know; all are called in the follower's task.

    ``adopt_cluster_id`` is awaited when this node has none and the primary does; it must store it.
    """

    adopt_cluster_id: Callable[[str], Awaitable[None]]
    connected: Callable[[Hello], None] = lambda hello: None
    disconnected: Callable[[LiteFSError | None], None] = lambda error: None


class GiveBack(Protocol):
    """Sends a primary what it lost."""

    async def __call__(self, peer: Peer, after: Mapping[str, Position], held: Mapping[str, Position]) -> None:
        """Send what this replica, which is at ``held``, has after where the primary is. Raises PeerError."""


async def _keep(peer: Peer, after: Mapping[str, Position], held: Mapping[str, Position]) -> None:
    """Send nothing."""


class Backoff:
    """Delays that double from ``first`` up to ``limit`` seconds, each shortened by up to half at random."""

    def __init__(self, limit: float, rng: random.Random | None = None, *, first: float = FIRST_DELAY) -> None:
        self._limit = limit
        self._rng = rng or random.Random()
        self._first = self._next = first

    def reset(self) -> None:
        """Begin again with the shortest delay."""
        self._next = self._first

    def delay(self) -> float:
        """Seconds to wait now."""
        value = min(self._next, self._limit)
        self._next = min(2 * self._next, self._limit)
        return value * (0.5 + self._rng.random() / 2)


def check_primary(own: Identity, hello: Hello) -> None:
    """May this primary be followed? Raises ClusterMismatch, ProtocolMismatch or PeerError."""
    peer = hello.identity
    if peer.node_id == own.node_id:
        raise PeerError("the primary's address leads to this node itself")
    if own.cluster_id and peer.cluster_id and own.cluster_id != peer.cluster_id:
        raise ClusterMismatch(
            f"the primary belongs to cluster {peer.cluster_id}, this node to {own.cluster_id}"
        )
    if not peer.cluster_id:
        raise ProtocolMismatch("the primary names no cluster")
    if peer.term < own.term:
        raise PeerError(f"the peer leads term {peer.term}, but term {own.term} has begun")


class Follower:
    """Follows the primary at ``url``; see :func:`follow`."""

    def __init__(
        self,
        url: str,
        sink: Sink,
        identity: Callable[[], Identity],
        callbacks: Callbacks,
        *,
        settings: PeerSettings | None = None,
        reconnect_delay: float = RECONNECT_DELAY,
        read_idle: float = READ_IDLE_SECONDS,
        observe: Callable[[Peer], Observer] = lambda peer: Observer(),
        give_back: GiveBack = _keep,
        spool_dir: Path | None = None,
    ) -> None:
        self._observe = observe
        self._give_back = give_back
        self._url = url
        self._settings = settings or PeerSettings()
        self._sink = sink
        self._identity = identity
        self._callbacks = callbacks
        self._backoff = Backoff(reconnect_delay)
        self._read_idle = read_idle
        self._spool_dir = spool_dir
        self._distrusted: set[str] = set()
        self._delays: dict[str, Backoff] = {}
        """Of the databases that failed and have not been seen to do well since."""
        self._failed: set[str] = set()
        """Databases that failed in the present stream."""
        self._unwanted: set[str] = set()
        """Databases that are here and not in the filter, of which the log was told."""
        self._logged = ""
        self._connected = False

    async def run(self) -> None:
        """Connect, receive, connect again; returns only by cancellation."""
        try:
            await self._follow()
        finally:
            self._disconnect(None)

    async def _follow(self) -> None:
        while True:
            error: LiteFSError | None = None
            try:
                reason = await self._once()
                if reason is None:
                    continue  # no change for whoever watches the connection, unless the next attempt fails
                self._log(logging.INFO, f"the primary ended the stream: {reason}")
            except LiteFSError as caught:
                error = caught
                self._log(logging.WARNING, f"replication from {self._url}: {error}")
            except Exception as caught:
                # a mistake of ours, or the disk's: a node that goes on serving what it has is worth more
                logger.exception("unexpected error in replication from %s", self._url)
                error = FormatError(f"unexpected error: {caught!r}")
            self._disconnect(error)
            await trio.sleep(self._delay(error))

    def _disconnect(self, error: LiteFSError | None) -> None:
        if self._connected:
            self._connected = False
            self._callbacks.disconnected(error)

    def _database_failed(self, error: DatabaseFailed) -> float:
        """Tell of it; returns the seconds until it is tried again."""
        self._failed.add(error.name)
        if isinstance(error.cause, FormatError | NotSupported):
            # Asking again from the same position would bring the same record: ask for a snapshot instead.
            self._distrusted.add(error.name)
        backoff = self._delays.setdefault(error.name, Backoff(DATABASE_DELAY, first=DATABASE_FIRST_DELAY))
        delay = backoff.delay()
        logger.warning("replication from %s: %s; tried again in %.1f s", self._url, error, delay)
        return delay

    def _delay(self, error: LiteFSError | None) -> float:
        lasting = isinstance(error, ClusterMismatch | ProtocolMismatch | NotTrusted) or (
            isinstance(error, FormatError) and not isinstance(error, ChecksumMismatch)
        )
        return SLOW_DELAY * (0.5 + random.random() / 2) if lasting else self._backoff.delay()

    async def _once(self) -> str | None:
        """One stream to its end; returns the primary's reason, None if it was left to try databases again."""
        self._failed.clear()
        peer = Peer(self._url, self._settings, read_idle=self._read_idle)
        receiver = Receiver(
            self._sink,
            on_hello=self._hello,
            on_ready=self._ready,
            on_failed=self._database_failed,
            observer=self._observe(peer),
            spool_dir=self._spool_dir,
        )
        held = self._positions()
        async with peer:
            try:
                async with peer.stream(self._identity(), held) as chunks:
                    reason = await receiver.run(chunks)
            except TailsWanted as wanted:
                await self._give_back(peer, wanted.after, held)
                raise
        return None if receiver.left_to_retry else reason

    def _positions(self) -> Mapping[str, Position]:
        positions = dict(self._sink.positions())
        for name in self._distrusted & positions.keys():
            positions[name] = ZERO
        return {name: position for name, position in positions.items() if self._wanted(name)}

    def _wanted(self, name: str) -> bool:
        if not self._settings.databases or matches(self._settings.databases, name):
            return True
        if name not in self._unwanted:
            self._unwanted.add(name)
            logger.warning("%s: not in lease.databases; what is here stays as it is", name)
        return False

    def _ready(self) -> None:
        self._backoff.reset()
        self._distrusted &= self._failed
        for name in self._delays.keys() - self._failed:
            del self._delays[name]

    async def _hello(self, hello: Hello) -> None:
        own = self._identity()
        check_primary(own, hello)
        if not own.cluster_id:
            try:
                await self._callbacks.adopt_cluster_id(hello.identity.cluster_id)
            except OSError as error:
                raise LiteFSError(f"cannot store the cluster id: {error}") from error
        self._connected = True
        self._log(logging.INFO, f"following primary {hello.identity.hostname or self._url}")
        self._callbacks.connected(hello)

    def _log(self, level: int, message: str) -> None:
        """Log changes, not repetitions."""
        if message != self._logged:
            self._logged = message
            logger.log(level, message)


async def follow(
    url: str,
    sink: Sink,
    identity: Callable[[], Identity],
    callbacks: Callbacks,
    *,
    settings: PeerSettings | None = None,
    reconnect_delay: float = RECONNECT_DELAY,
    read_idle: float = READ_IDLE_SECONDS,
    observe: Callable[[Peer], Observer] = lambda peer: Observer(),
    give_back: GiveBack = _keep,
    spool_dir: Path | None = None,
) -> None:
    """Keep ``sink`` up to date with the primary at ``url`` until cancelled.

    ``identity`` is asked at each attempt. After a failure the next attempt comes after 50 ms, doubled each
    time up to ``reconnect_delay`` seconds; what only a change of configuration can mend is tried about every
    10 s. ``read_idle`` seconds without a byte count as a failure. ``observe`` gives each stream its observer,
    ``give_back`` is asked for what the primary lost.
    """
    follower = Follower(
        url,
        sink,
        identity,
        callbacks,
        settings=settings,
        reconnect_delay=reconnect_delay,
        read_idle=read_idle,
        observe=observe,
        give_back=give_back,
        spool_dir=spool_dir,
    )
    await follower.run()
