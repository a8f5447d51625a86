"""The replica's acknowledgements: what it holds of the stream that is open, told to the primary."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import trio

from litefs.cluster.peer import Peer, Refused
from litefs.errors import LiteFSError
from litefs.link.rules import SyncRules
from litefs.stream.acks import Ack, Held
from litefs.stream.protocols import Identity, Observer
from litefs.types import Point

log = logging.getLogger(__name__)

LAZY_SECONDS = 0.5
"""Between two acknowledgements that no commit waits for."""
RETRY_SECONDS = 1.0
"""After one that the primary refused."""


class Holdings(Protocol):
    """What a replica has, as :class:`litefs.apply.sink.ReplicaSink` offers it."""

    sync_at_once: Callable[[str], bool]
    """Whether the log of that database is to be synced with each batch of records."""

    def held(self, name: str) -> tuple[Point, Point] | None:
        """The last transaction in its log, and the last durable one; None if there is nothing of it."""

    async def sync_log(self, name: str) -> None:
        """Make its log durable. Raises LiteFSError, OSError."""


class Acknowledger(Observer):
    """Of one stream: one acknowledgement at a time, which has all that changed since the one before."""

    def __init__(
        self, peer: Peer, identity: Callable[[], Identity], holdings: Holdings, *, candidate: bool
    ) -> None:
        self._peer = peer
        self._identity = identity
        self._holdings = holdings
        self._candidate = candidate
        self._rules = SyncRules()
        self._names: dict[int, str] = {}
        self._chained: set[int] = set()
        self._changed: set[int] = set()
        self._any, self._urgent = trio.Event(), trio.Event()

    def begins(self, handle: int, name: str) -> None:
        self._names[handle] = name
        self._change(handle)

    def holds(self, handle: int) -> None:
        self._chained.add(handle)
        self._change(handle)

    def ends(self, handle: int) -> None:
        del self._names[handle]
        self._chained.discard(handle)
        self._changed.discard(handle)

    def _change(self, handle: int) -> None:
        if (name := self._names.get(handle)) is not None:
            self._changed.add(handle)
            self._any.set()
            if self._rules.required(name):
                self._urgent.set()

    async def run(self) -> None:
        """Acknowledge until the stream ends. Raises PeerError of the connection."""
        self._holdings.sync_at_once = lambda name: self._rules.required(name) > 0
        self._any.set()  # the first one says whether this node may become primary
        while True:
            await self._any.wait()
            told, self._changed = self._changed, set()
            self._any, self._urgent = trio.Event(), trio.Event()
            try:
                await self._tell(told)
            except Refused as error:
                log.warning("acknowledgement: %s", error)
                for handle in told:
                    self._change(handle)
                self._any.set()
                await trio.sleep(RETRY_SECONDS)
                continue
            with trio.move_on_after(LAZY_SECONDS):
                await self._urgent.wait()

    async def _tell(self, handles: set[int]) -> None:
        held = []
        for handle in sorted(handles):
            if (one := await self._held(handle)) is not None:
                held.append(one)
        answer = await self._peer.acknowledge(self._identity(), Ack(self._candidate, tuple(held)))
        rules = answer.sync or SyncRules()
        if rules != self._rules:
            self._rules = rules
            for handle in self._names:
                self._change(handle)

    async def _held(self, handle: int) -> Held | None:
        name = self._names.get(handle)
        if name is None or (held := self._holdings.held(name)) is None:
            return None
        chained = handle in self._chained  # before the wait: what is read after it holds more
        if held[0] != held[1] and self._rules.required(name):
            try:
                await self._holdings.sync_log(name)
            except (LiteFSError, OSError) as error:
                log.warning("%s: its log could not be synced: %s", name, error)
            held = self._holdings.held(name)
        if held is None:
            return None
        tip, durable = held
        return Held.of(handle, tip, durable, chained=chained)
