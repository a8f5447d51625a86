"""A node's life as a replica: the primary's stream into a sink that applies it to the mount."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from litefs.apply.lending import LendingSink
from litefs.cluster.acknowledge import Acknowledger
from litefs.cluster.follow import Callbacks, follow
from litefs.cluster.giveback import give_back
from litefs.cluster.lease import PrimaryInfo
from litefs.cluster.peer import PeerSettings
from litefs.store.paths import DataDir
from litefs.stream.protocols import Identity
from litefs.types import Position

DETACH_SECONDS = 2.0
"""How long the applier may take to checkpoint and let go of the mount at a stop."""


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """``reconnect_delay``: seconds between two attempts to reach the primary. ``candidate``: this node may
    become primary."""

    data: DataDir
    mount: Path
    reconnect_delay: float
    peer: PeerSettings


@dataclass(frozen=True, slots=True)
class SinkHooks:
    """Whom a :class:`litefs.apply.sink.ReplicaSink` calls; see there."""

    on_database_ready: Callable[[str], Awaitable[None]]
    on_drop: Callable[[str, bool], Awaitable[None]]
    on_applied: Callable[[str, Position], None]
    on_recovery_needed: Callable[[str], None]


class Replica:
    """Follows a primary, whichever it is told, with a new sink for each mount and each time as a replica."""

    def __init__(
        self,
        settings: ReplicaSettings,
        identity: Callable[[], Identity],
        hooks: SinkHooks,
        callbacks: Callbacks,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._hooks = hooks
        self._callbacks = callbacks
        self.end_loans: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Ends what this node's clients may write because of a lock that they have from the primary."""
        self._primary: PrimaryInfo | None = None
        self._sink: LendingSink | None = None
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        self._leaving = False
        self._at_work = trio.Lock()
        """Held while the sink is used, or let go of."""

    def follow(self, primary: PrimaryInfo | None) -> None:
        """Follow that primary from now on, by a stream of its own; nobody if it is None."""
        self._primary = primary
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._scope.cancel()

    async def run(self, caught_up: trio.Event) -> None:
        """Follow until ``leave``. ``caught_up`` is set once every database is as the primary has it."""
        while not self._leaving:
            changed = self._changed
            async with self._at_work:
                sink = self._sink
                if sink is not None and not changed.is_set():
                    with trio.CancelScope() as self._scope:
                        await self._apply(sink, caught_up)
            await changed.wait()

    async def _apply(self, sink: LendingSink, caught_up: trio.Event) -> None:
        """Until cancelled, or until the stream has to be begun anew."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run)
            if self._primary is None:
                return
            nursery.start_soon(_note, sink, caught_up)
            observe = functools.partial(
                Acknowledger,
                identity=self._identity,
                holdings=sink,
                candidate=self._settings.peer.candidate,
            )
            await follow(
                self._primary.advertise_url,
                sink,
                self._identity,
                self._callbacks,
                settings=self._settings.peer,
                reconnect_delay=self._settings.reconnect_delay,
                observe=observe,
                give_back=functools.partial(give_back, self._settings.data, self._identity),
                spool_dir=self._settings.data.path,
            )

    @property
    def primary(self) -> PrimaryInfo | None:
        """Whom this node follows."""
        return self._primary

    @property
    def sink(self) -> LendingSink | None:
        """What applies to the present mount."""
        return self._sink

    async def mounted(self) -> None:
        """The mount serves, and the logs are this process's: apply to it. Raises OSError, LiteFSError."""
        hooks = self._hooks
        sink = LendingSink(
            self._settings.data,
            self._settings.mount,
            on_database_ready=hooks.on_database_ready,
            on_drop=hooks.on_drop,
            on_applied=hooks.on_applied,
            on_recovery_needed=hooks.on_recovery_needed,
            on_damage=self._wake,
        )
        try:
            await sink.start()
        except BaseException:
            with trio.CancelScope(shield=True):
                await sink.close()
            raise
        self._sink = sink
        self._wake()

    async def _take_sink(self) -> LendingSink | None:
        """The sink, which nobody uses any more."""
        sink, self._sink = self._sink, None
        self._wake()
        async with self._at_work:
            return sink

    async def unmounted(self) -> None:
        """The mount is gone: whatever was a client of it ends."""
        sink = await self._take_sink()
        if sink is not None:
            await sink.close()

    async def release(self) -> dict[str, str]:
        """Stop applying, and let go of the logs for the fs process to write them: for which databases that
        takes a recovery, and why."""
        self._primary = None
        await self.end_loans()
        sink = await self._take_sink()
        return await sink.release() if sink is not None else {}

    async def leave(self) -> None:
        """Let go of the mount for good; bounded."""
        self._leaving = True
        sink, self._sink = self._sink, None
        self._wake()
        if sink is not None:
            with trio.move_on_after(DETACH_SECONDS):
                await sink.close()

    def positions(self) -> Mapping[str, Position]:
        """What this replica holds; nothing while it applies nothing."""
        return self._sink.positions() if self._sink is not None else {}

    def lag(self) -> tuple[int, int] | None:
        """(ms behind the primary, the primary's clock in Unix ms as last heard); None if it was not heard."""
        sink = self._sink
        if sink is None or not sink.primary_time_ms:
            return None
        return max(0, int(time.time() * 1000) - sink.primary_time_ms), sink.primary_time_ms


async def _note(sink: LendingSink, caught_up: trio.Event) -> None:
    await sink.caught_up.wait()
    caught_up.set()
