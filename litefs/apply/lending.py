"""HALT on a replica: a database is left to the fs process, which writes log and WAL while clients may write.

The applier stays attached: its SHARED lock keeps the WAL from being removed, its WAL_CKPT the database file
from being written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from litefs.apply import locks
from litefs.apply.applier import Applier
from litefs.apply.checkpoint import Checkpointer
from litefs.apply.sink import ReplicaSink
from litefs.apply.state import DatabaseState
from litefs.apply.wal import Buffer
from litefs.errors import DatabaseNotFound, LiteFSError, PositionMismatch
from litefs.ltx import TRAILER_SIZE, Header, Trailer
from litefs.sqlite.locks import SHM_CKPT, SHM_WRITE
from litefs.store.database import Database
from litefs.store.paths import DatabaseDir
from litefs.store.segments import record_hash
from litefs.store.sums import SumsFile
from litefs.types import START, Point, Position

LEND_TIMEOUT = 5.0
"""Seconds to wait for a client that recovers the WAL, or that was writing under HALT."""

SYNC_SECONDS = 2.0
"""How long an acknowledgement waits for the fs process to sync what it logged under HALT."""

ECHO_POLL = 0.005
"""Seconds between two looks whether this node has what it wrote itself."""


@dataclass(frozen=True, slots=True)
class Lent:
    """Where the fs process takes a WAL over: its generation, the frames in it, and whether all of them are in
    the database file."""

    salt1: int
    salt2: int
    frames: int
    backfilled: bool


class LendingApplier(Applier):
    """An applier that can leave its database to the fs process for a time."""

    def __init__(self, directory: DatabaseDir, mounted: Path, **options: Any) -> None:
        super().__init__(directory, mounted, **options)
        self._lent: SumsFile | None = None
        self._durable = START
        """Of what is lent: the last transaction that was seen to be durable."""
        self._returned = False

    @property
    def point(self) -> Point:
        if self._lent is not None:
            return self._lent.read_point()
        return super().point

    @property
    def durable(self) -> Point:
        if self._lent is None:
            return super().durable
        point = self.point  # first: both go on meanwhile
        if self._lent.sums.synced_txid >= point.txid:
            self._durable = point
        return self._durable

    @property
    def is_settled(self) -> bool:
        """Whether this applier knows all that is in the WAL: not after ``take_back`` while a client, whose
        lock ended, still holds WAL_WRITE."""
        return not self._returned

    def lend(self) -> Lent:
        """Stop writing: the fs process writes log and WAL from now on, until ``take_back``. Only ``point``,
        ``durable`` and ``close`` may be used until then. Raises LiteFSError, OSError: then nothing has
        changed.
        """
        self.attach()
        if self.is_behind or self.needs_recovery:
            raise LiteFSError(f"{self.dir.name}: what the log holds is not applied yet")
        self.sync_log()
        self.checkpoint()
        writer = self._attached()
        locks.wait_exclusive(writer.shm.fd, SHM_CKPT, timeout=LEND_TIMEOUT)
        try:
            with locks.exclusive(writer.shm.fd, SHM_WRITE, timeout=LEND_TIMEOUT):
                writer.settle((0, 0, 0))
            with self._closing:
                self._durable = super().durable
                self._lent = SumsFile(self.dir.sums)
                self._database.close()  # now: it cuts the log behind what it knows of
        except BaseException:
            locks.unlock(writer.shm.fd, SHM_CKPT)
            raise
        return Lent(*writer.salt, writer.frames, writer.shm.index.backfill == writer.frames)

    def take_back(self) -> None:
        """Write log and WAL again, after the fs process has let go of them. A client may still be inside
        WAL_WRITE: what comes next waits for it. Raises LiteFSError, OSError.
        """
        with self._closing:
            self._database = Database.open(self.dir)
            self._let_go()
        self._room, self._returned = 0, True
        if self.writer is not None:
            locks.unlock(self.writer.shm.fd, SHM_CKPT)
            with contextlib.suppress(locks.LockTimeout):  # later, then
                self._settle(timeout=0)

    def _let_go(self) -> None:
        if self._lent is not None:
            self._lent.close()
            self._lent = None

    def _settle(self, timeout: float = LEND_TIMEOUT) -> None:
        """After ``take_back``: see what the others left in the WAL, and publish what its client did not."""
        writer, sums = self._attached(), self._database.sums
        with locks.exclusive(writer.shm.fd, SHM_WRITE, timeout=timeout):
            writer.settle(sums.wal())
            sums.set_wal(0, 0, 0)
        if self._checkpointer is not None:
            self._checkpointer.applied(self._database.position.txid)
        self._returned = False

    def _attach_wal(self) -> Checkpointer:
        checkpointer = super()._attach_wal()
        if self._returned:
            self._settle()
        return checkpointer

    def checkpoint(self) -> bool:
        if self._returned and self.writer is not None:
            self._settle()
        return super().checkpoint()

    def sync_database(self) -> None:
        if self._lent is None:
            super().sync_database()

    def close(self) -> None:
        with self._closing:
            self._let_go()
        super().close()


class LendingSink(ReplicaSink):
    """A replica's sink whose databases can be written under HALT."""

    applier_type = LendingApplier

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._echoed: dict[str, Callable[[Position, Buffer], Awaitable[None]]] = {}

    async def records(self, name: str, bodies: Sequence[Buffer]) -> Position:
        """As of :class:`ReplicaSink`; what this node writes under HALT comes back, perhaps too early. If the
        primary's client waits for this replica to have it, whoever lent it is told."""
        state = self._state(name)
        if state.lent is not None:
            last = _position_after(bodies[-1])
            if self.sync_at_once(name):
                await self._echoed[name](last, bodies[-1])
            while state.lent is not None and state.lent.position.txid < last.txid:  # noqa: ASYNC110 - below
                await trio.sleep(ECHO_POLL)  # the fs process appends it, and tells nobody in particular
        if state.lent is not None:
            return state.lent.position
        if state.written and state.target is None:
            bodies = _unknown(state, bodies)
        if not bodies:
            return (state.point or START).position
        return await super().records(name, bodies)

    async def sync_log(self, name: str) -> None:
        """As of :class:`ReplicaSink`; what is lent the fs process syncs, which is waited for."""
        state = self._state(name)
        with trio.move_on_after(SYNC_SECONDS):
            while state.lent is not None and state.lent.durable != state.lent.point:  # noqa: ASYNC110
                await trio.sleep(ECHO_POLL)
        if state.lent is None:
            await super().sync_log(name)

    async def lend(self, name: str, echoed: Callable[[Position, Buffer], Awaitable[None]]) -> Lent:
        """Leave a database to the fs process, to be written under HALT. ``echoed`` is told what comes back by
        the stream of a database that the primary replicates synchronously. Raises DatabaseNotFound,
        LiteFSError, OSError."""
        state = self._state(name)
        async with state.lock:
            state.check()
            applier = state.applier
            if (
                not isinstance(applier, LendingApplier)
                or state.target is not None
                or state.damage is not None
            ):
                raise DatabaseNotFound(f"{name}: not here as a whole")
            lent = await self._thread(applier.lend)
            state.applier, state.lent, self._echoed[name] = None, applier, echoed
        return lent

    async def take_back(self, name: str) -> None:
        """After ``lend``, once the fs process has let go. Raises LiteFSError, OSError: then recovery is asked
        for."""
        state = self._state(name)
        async with state.lock:
            applier = state.lent
            if not isinstance(applier, LendingApplier):
                return
            try:
                await self._thread(applier.take_back)
            except (LiteFSError, OSError) as error:
                state.broken = f"{name}: cannot be written on after HALT: {error}"
                self._need_recovery(state.broken)
                raise
            state.applier, state.lent, state.written = applier, None, applier.position.txid
        self._applied(name, applier.position)


def _position_after(body: Buffer) -> Position:
    """The position after a record. Raises FormatError."""
    view = memoryview(body)
    return Position(Header.unpack(view).max_txid, Trailer.unpack(view[-TRAILER_SIZE:]).post_apply)


def _after(body: Buffer) -> Point:
    """The point after a record, which is read whole. Raises FormatError."""
    at, view = _position_after(body), memoryview(body)
    return Point(at.txid, at.checksum, record_hash(view, len(view)))


def _unknown(state: DatabaseState, bodies: Sequence[Buffer]) -> Sequence[Buffer]:
    """The records without those that this node wrote under HALT, which come back in the stream. Only what is
    still here was: another history may have taken its place, or another database of that name.

    Raises PositionMismatch if the last of them leads elsewhere than here, FormatError.
    """
    here = state.point or START
    known, written = 0, min(state.written, here.txid)
    while known < len(bodies) and Header.unpack(bodies[known]).max_txid <= written:
        known += 1
    if known:
        there = _after(bodies[known - 1])
        if there.txid == here.txid and there != here:
            raise PositionMismatch(f"{state.directory.name}: the primary is at {there}, this node at {here}")
    return bodies[known:]
