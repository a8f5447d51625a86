"""On the primary: who has the HALT lock of which database, until when, and what they ship."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from litefs.apply.hold import WriteHold
from litefs.apply.records import reader_of
from litefs.errors import (
    CommitRefused,
    DatabaseBusy,
    FormatError,
    HaltRefused,
    LiteFSError,
    NotSupported,
    PositionMismatch,
)
from litefs.server.view import HaltGrant
from litefs.store.paths import DataDir
from litefs.stream.protocols import Identity
from litefs.stream.spool import Spool
from litefs.types import Position

log = logging.getLogger("litefs.node")

HALT_SECONDS = 30.0
"""How long the lock is held after it was asked for last."""

ACQUIRE_SECONDS = 10.0
"""How long to wait for a database's writers, for another holder, and for a replica to catch up."""


@dataclass(slots=True, eq=False)
class Held:
    """A lock that the primary holds for a replica. ``deadline`` on trio's clock."""

    name: str
    lock_id: int
    node_id: int
    term: int
    hold: WriteHold
    deadline: float
    busy: trio.Lock = field(default_factory=trio.Lock)


class PrimaryHalts:
    """The HALT locks that this node, as primary, holds for replicas."""

    def __init__(self, data: DataDir, mount: Path, identity: Callable[[], Identity]) -> None:
        self._data = data
        self._mount = mount
        self._identity = identity
        self._held: dict[str, Held] = {}
        self._taking: set[str] = set()
        self._voided = 0
        """How often all locks were given up."""
        self._changed = trio.Event()

    async def run(self) -> None:
        """Give up locks that nobody renewed; until cancelled."""
        while True:
            first = min((held.deadline for held in self._held.values()), default=float("inf"))
            with trio.move_on_at(first):
                await self._changed.wait()
            for held in list(self._held.values()):
                if held.deadline <= trio.current_time():
                    await self._expire(held)

    async def halt(self, name: str, lock_id: int, peer: Identity, *, renew: bool) -> HaltGrant:
        """Take the lock for a replica, or renew it; with ``renew`` it must be held.

        Raises DatabaseNotFound, DatabaseBusy, HaltRefused, LiteFSError, OSError.
        """
        self._check_peer(peer)
        held = self._held.get(name)
        if held is not None and (held.lock_id, held.node_id) == (lock_id, peer.node_id):
            held.deadline = trio.current_time() + HALT_SECONDS
        elif renew:
            raise HaltRefused(f"{name}: the HALT lock is not held under this id")
        else:
            held = await self._take(name, lock_id, peer)
        return HaltGrant(held.hold.position, time.time() + HALT_SECONDS)

    async def _take(self, name: str, lock_id: int, peer: Identity) -> Held:
        with trio.move_on_after(ACQUIRE_SECONDS):
            while name in self._held or name in self._taking:
                await self._changed.wait()
        if name in self._held or name in self._taking:
            raise DatabaseBusy(f"{name}: another node has the HALT lock")
        self._taking.add(name)
        voided = self._voided
        try:
            sums = self._data.database_dir(name).sums
            hold = await trio.to_thread.run_sync(WriteHold, self._mount / name, sums, ACQUIRE_SECONDS)
            try:
                await trio.lowlevel.checkpoint_if_cancelled()  # nobody waits for it any more
                self._check_peer(peer)
                if voided != self._voided:
                    raise HaltRefused(f"{name}: the role has changed meanwhile")
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(hold.close)
                raise
            deadline = trio.current_time() + HALT_SECONDS
            held = self._held[name] = Held(name, lock_id, peer.node_id, peer.term, hold, deadline)
        finally:
            self._taking.discard(name)
            self._tell()
        log.info("%s: HALT lock for node %016X", name, peer.node_id)
        return held

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _check_peer(self, peer: Identity) -> None:
        own = self._identity()
        if peer.node_id == own.node_id:
            raise FormatError("cannot remotely halt self")
        if peer.term != own.term:
            raise HaltRefused(f"this node leads term {own.term}, the replica says {peer.term}")

    async def unhalt(self, name: str, lock_id: int, peer: Identity) -> None:
        """Give the lock up, if that replica has it under that id."""
        held = self._held.get(name)
        if held is not None and (held.lock_id, held.node_id) == (lock_id, peer.node_id):
            await self._give_up(held)

    async def _give_up(self, held: Held) -> None:
        async with held.busy:  # a commit under way is completed
            await self._release(held)

    async def _expire(self, held: Held) -> None:
        async with held.busy:
            if held.deadline <= trio.current_time():  # a renewal may have come while a commit was completed
                log.warning("%s: the HALT lock was not renewed in time", held.name)
                await self._release(held)

    async def _release(self, held: Held) -> None:
        if self._held.get(held.name) is held:
            del self._held[held.name]
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(held.hold.close)
        self._tell()

    async def void(self) -> None:
        """Give all of them up: this node is not primary any more, or its mount is gone."""
        self._voided += 1
        for held in list(self._held.values()):
            await self._give_up(held)

    async def forward(
        self, name: str, lock_id: int, peer: Identity, chunks: AsyncIterable[bytes], size: int
    ) -> Position:
        """Commit a record of ``size`` bytes that the holder ships; returns the position after it.

        Raises HaltRefused, PositionMismatch, FormatError, NotSupported, CommitRefused: nothing has happened.
        OutcomeUnknown and other errors: it may have been committed; the lock is given up then.
        """
        self._check_peer(peer)
        self._holder(name, lock_id, peer)  # nobody else has room taken up
        spool = Spool(size, self._data.path)
        try:
            async for chunk in chunks:
                await spool.write(chunk)
            held = self._holder(name, lock_id, peer)
            async with held.busy:
                self._holder(name, lock_id, peer)
                if held.deadline <= trio.current_time():
                    raise HaltRefused(f"{name}: the HALT lock has expired")
                with trio.CancelScope(shield=True):
                    position = await trio.to_thread.run_sync(_apply, held.hold, spool)
        except (HaltRefused, PositionMismatch, FormatError, NotSupported, CommitRefused):
            raise
        except (LiteFSError, OSError):
            await self.unhalt(name, lock_id, peer)
            raise
        finally:
            spool.close()
        return position

    def _holder(self, name: str, lock_id: int, peer: Identity) -> Held:
        """The lock under that id. Raises HaltRefused."""
        held = self._held.get(name)
        if held is None or (held.lock_id, held.node_id, held.term) != (lock_id, peer.node_id, peer.term):
            raise HaltRefused(f"{name}: the HALT lock is not held under this id")
        return held


def _apply(hold: WriteHold, spool: Spool) -> Position:
    with spool.view() as body:
        return hold.apply(lambda: reader_of(body))
