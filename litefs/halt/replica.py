"""On a replica: gets the HALT lock for its clients, makes the database writable, and ships each commit."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, cast
from urllib.parse import quote

import trio

from litefs.apply.lending import Lent
from litefs.apply.wal import Buffer
from litefs.clock import boottime_ns
from litefs.cluster.lease import PrimaryInfo
from litefs.cluster.peer import Peer, PeerSettings, Refused
from litefs.errors import (
    DatabaseBusy,
    DatabaseNotFound,
    HaltRefused,
    LiteFSError,
    NotPrimary,
    PositionMismatch,
)
from litefs.halt.primary import ACQUIRE_SECONDS, HALT_SECONDS
from litefs.link.messages import (
    Accepted,
    Halt,
    HaltEnd,
    HaltEnded,
    HaltSet,
    HaltUntil,
    Logged,
    Message,
    Staged,
)
from litefs.ltx import Decoder
from litefs.server.view import HaltGrant
from litefs.store import fileops
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.stream.protocols import Identity
from litefs.types import Point, Position

log = logging.getLogger("litefs.node")

_Answer = TypeVar("_Answer", HaltSet, HaltEnded)

ANSWER_SECONDS = 10.0
"""How long the fs process may take to begin or end."""

SHIP_SECONDS = 30.0
"""How long a transaction may take to the primary and into its log."""


class Lender(Protocol):
    """What applies the stream on this replica: :class:`litefs.apply.lending.LendingSink`."""

    async def lend(self, name: str, echoed: Callable[[Position, Buffer], Awaitable[None]]) -> Lent: ...
    async def take_back(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class HaltLinks:
    """Whom HALT deals with: the primary (None: not known), who this node is, the fs process (``restart`` has
    it recover and mount anew), the sink of the present mount, and how to meet other nodes."""

    primary: Callable[[], PrimaryInfo | None]
    identity: Callable[[], Identity]
    post: Callable[[Message], None]
    restart: Callable[[str], None]
    lender: Callable[[], Lender | None]
    peer: PeerSettings


@dataclass(slots=True, eq=False)
class Taken:
    """A lock that this replica has from the primary. ``deadline`` on trio's clock."""

    name: str
    lock_id: int
    peer: Peer
    deadline: float = 0.0
    lent: bool = False
    ending: bool = False
    returned: trio.Event = field(default_factory=trio.Event)
    """The database is this process's again."""
    busy: trio.Lock = field(default_factory=trio.Lock)
    """Held while it begins, while a transaction is shipped, and while it ends."""
    expected: Position | None = None
    """Where the transaction leads that is being shipped."""
    asking: set[trio.CancelScope] = field(default_factory=set)

    @contextmanager
    def ask(self) -> Iterator[None]:
        """Around requests to the primary. Raises HaltRefused if the lock is void meanwhile."""
        if self.ending:
            raise HaltRefused(f"{self.name}: the HALT lock is not held any more")
        with trio.CancelScope() as scope:
            self.asking.add(scope)
            try:
                yield
            finally:
                self.asking.discard(scope)
        if scope.cancelled_caught:
            raise HaltRefused(f"{self.name}: the primary changes; the outcome is not known")

    def give_up(self) -> None:
        """Wait for no answer of the primary any more."""
        for scope in self.asking:
            scope.cancel()

    def path(self, endpoint: str, parameter: str) -> str:
        return f"/{endpoint}?name={quote(self.name, safe='')}&{parameter}={self.lock_id}"


class ReplicaHalts:
    """The HALT locks that clients of this replica have, each under the id that its client chose."""

    def __init__(self, data: DataDir, catalog: StoreCatalog, links: HaltLinks) -> None:
        self._data = data
        self._catalog = catalog
        self._links = links
        self._taken: dict[str, Taken] = {}
        self._answers: dict[tuple[str, type[Message]], tuple[trio.Event, list[Message]]] = {}
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Ship what the fs process stages, and end locks that their clients do not renew; until cancelled."""
        async with trio.open_nursery() as self._nursery:
            while True:
                self._changed = trio.Event()
                with trio.move_on_at(min((taken.deadline for taken in self._live()), default=float("inf"))):
                    await self._changed.wait()
                for taken in self._live():
                    if taken.deadline <= trio.current_time():
                        log.warning("%s: the HALT lock was not renewed in time", taken.name)
                        taken.deadline = float("inf")
                        self._nursery.start_soon(self._end, taken)

    def _live(self) -> list[Taken]:
        return [taken for taken in self._taken.values() if not taken.ending]

    # -- for clients of this node ----------------------------------------------------------------------

    async def halt(self, name: str, lock_id: int, *, renew: bool) -> HaltGrant:
        """Get the lock for a client of this node, or renew it; then its connections may write.

        With ``renew`` it must be held.

        Raises DatabaseNotFound, DatabaseBusy, HaltRefused, NotPrimary, PeerError, LiteFSError.
        """
        if name not in self._catalog.sources():
            raise DatabaseNotFound(f"{name}: database not found")
        taken = self._taken.get(name)
        if taken is not None and taken.lock_id == lock_id and not taken.ending:
            if not taken.lent:
                raise DatabaseBusy(f"{name}: the HALT lock is on its way")
            return await self._renew(taken)
        if renew:
            raise HaltRefused(f"{name}: the HALT lock is not held under this id")
        if taken is not None:
            with trio.move_on_after(ACQUIRE_SECONDS):
                await taken.returned.wait()
        if name in self._taken:
            raise DatabaseBusy(f"{name}: another client of this node has the HALT lock")
        return await self._acquire(name, lock_id)

    async def _renew(self, taken: Taken) -> HaltGrant:
        try:
            return await self._ask(taken, renew=True)
        except Refused as error:
            if error.status != HaltRefused.http_status:
                raise
            # another life of the primary, or another term: nobody may write here, and the stream goes on
            with trio.CancelScope(shield=True):
                await self._end(taken)
            raise HaltRefused(f"{taken.name}: {error}") from error

    async def _acquire(self, name: str, lock_id: int) -> HaltGrant:
        primary = self._links.primary()
        if primary is None:
            raise NotPrimary("the primary is not known")
        peer = await Peer(primary.advertise_url, self._links.peer).__aenter__()
        taken = self._taken[name] = Taken(name, lock_id, peer, float("inf"))
        try:
            grant = await self._ask(taken, renew=False)
            await self._catch_up(name, grant.point)
            with trio.CancelScope(shield=True):
                await self._begin(taken)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._end(taken)
            raise
        log.info("%s: writable under HALT at %s", name, grant.point.position)
        return grant

    async def _begin(self, taken: Taken) -> None:
        """Have the fs process write the database. Raises LiteFSError, also if the lock is ended meanwhile."""
        name, lender = taken.name, self._links.lender()
        if lender is None:
            raise LiteFSError(f"{name}: nothing is mounted")
        async with taken.busy:  # who ends it waits for that
            if not taken.ending:
                lent = await lender.lend(name, lambda position, body: self._echoed(taken, position, body))
                taken.lent = True
            if not taken.ending:
                deadline_ns = self._deadline_ns(taken)
                begun = Halt(name, lent.salt1, lent.salt2, lent.frames, lent.backfilled, deadline_ns)
                answer = await self._answer(begun, HaltSet)
                if answer is None or answer.error is not None:
                    reason = "no answer" if answer is None else answer.error
                    raise LiteFSError(f"{name}: cannot be written: {reason}")
            if taken.ending:
                raise HaltRefused(f"{name}: the HALT lock was given up meanwhile")

    async def _ask(self, taken: Taken, *, renew: bool) -> HaltGrant:
        """Ask the primary for the lock, or to keep it. Raises PeerError, Refused, HaltRefused."""
        asked = trio.current_time()
        with taken.ask():
            body = await taken.peer.ask(
                "POST",
                taken.path("halt", "id") + "&renew=1" * renew,
                self._links.identity(),
                seconds=ACQUIRE_SECONDS + ANSWER_SECONDS,
            )
        grant = HaltGrant.parse(body)
        taken.deadline = asked + HALT_SECONDS
        self._changed.set()
        if taken.lent and not taken.ending:
            self._links.post(HaltUntil(taken.name, self._deadline_ns(taken)))
        return grant

    @staticmethod
    def _deadline_ns(taken: Taken) -> int:
        left = taken.deadline - trio.current_time()
        return boottime_ns() + int(left * 1e9)

    async def _catch_up(self, name: str, point: Point) -> None:
        with trio.move_on_after(ACQUIRE_SECONDS):
            while True:
                seen = self._catalog.revision
                if self._catalog.point(name) == point:
                    return
                await self._catalog.wait_change(seen)
        raise DatabaseBusy(f"{name}: this replica did not get to {point} in {ACQUIRE_SECONDS:g} s")

    async def unhalt(self, name: str, lock_id: int) -> None:
        """Give the lock up; harmless if it is not held under that id."""
        taken = self._taken.get(name)
        if taken is not None and taken.lock_id == lock_id:
            with trio.CancelScope(shield=True):
                await self._end(taken)

    # -- with the fs process ---------------------------------------------------------------------------

    def message(self, message: Staged | HaltSet | HaltEnded) -> None:
        """What the fs process says."""
        if not isinstance(message, Staged):
            if (waiting := self._answers.pop((message.name, type(message)), None)) is not None:
                waiting[1].append(message)
                waiting[0].set()
        elif self._nursery is not None:
            self._nursery.start_soon(self._ship, message)

    async def _answer(self, message: Halt | HaltEnd, kind: type[_Answer]) -> _Answer | None:
        """Post and wait for the answer, which is of that kind; None if there is none."""
        event, answer = self._answers[message.name, kind] = trio.Event(), []
        self._links.post(message)
        with trio.move_on_after(ANSWER_SECONDS):
            await event.wait()
        self._answers.pop((message.name, kind), None)
        return cast("_Answer", answer[0]) if answer else None

    async def _ship(self, message: Staged) -> None:
        taken = self._taken.get(message.name)
        if taken is None or taken.ending:
            self._links.post(Accepted(message.name, "the HALT lock is not held any more"))
            return
        expected = Position(message.txid, message.checksum)
        async with taken.busy:
            refusal, taken.expected = None, expected
            try:
                directory = self._data.database_dir(message.name)
                path, identity = taken.path("tx", "lockID"), self._links.identity()
                body, into = directory.staged, directory.accepted
                with taken.ask():
                    await taken.peer.ask("POST", path, identity, body=body, into=into, seconds=SHIP_SECONDS)
                await trio.to_thread.run_sync(_check, into, expected)
            except (LiteFSError, OSError) as error:
                refusal = str(error)
            taken.expected = None
            self._links.post(Accepted(message.name, refusal))
        if refusal is not None:
            log.warning("%s: a transaction under HALT was not accepted: %s", message.name, refusal)
            await self._end(taken)

    async def _echoed(self, taken: Taken, position: Position, body: Buffer) -> None:
        """The primary's log has what leads there, and its answer waits for replicas: for this one, too.
        Raises LiteFSError, OSError."""
        if position == taken.expected:
            path = self._data.database_dir(taken.name).echoed
            await trio.to_thread.run_sync(path.write_bytes, body)
            await trio.to_thread.run_sync(_check, path, position)
            self._links.post(Logged(taken.name, position.txid))

    async def _end(self, taken: Taken) -> None:
        """Give one lock up: first here, then at the primary."""
        if taken.ending:
            await taken.returned.wait()
            return
        await self._return(taken)
        await self._forget(taken)

    async def _return(self, taken: Taken) -> None:
        """Have the fs process let go of the database, and take it back."""
        taken.ending = True
        try:
            async with taken.busy:  # what is on its way is answered first
                answer = await self._answer(HaltEnd(taken.name), HaltEnded) if taken.lent else None
                if taken.lent and answer is None:
                    # it lives, and may still write the log: nobody else does before it is gone
                    self._links.restart(f"{taken.name}: the fs process does not end a HALT")
                    taken.lent = False
            if taken.lent and (lender := self._links.lender()) is not None:
                await lender.take_back(taken.name)
            directory = self._data.database_dir(taken.name)
            for path in (directory.accepted, directory.echoed):  # of which came second
                fileops.unlink(path)
        except (LiteFSError, OSError) as error:
            log.error("%s: %s", taken.name, error)
        finally:
            self._let_go(taken)

    def _let_go(self, taken: Taken) -> None:
        if self._taken.get(taken.name) is taken:
            del self._taken[taken.name]
        taken.returned.set()

    async def _forget(self, taken: Taken) -> None:
        try:
            path = taken.path("halt", "id")
            await taken.peer.ask("DELETE", path, self._links.identity(), seconds=ANSWER_SECONDS)
        except (LiteFSError, OSError) as error:
            log.info("%s: the primary keeps the HALT lock until it expires: %s", taken.name, error)
        finally:
            await taken.peer.__aexit__(None, None, None)

    async def void(self) -> None:
        """End all of them: the primary changes. Nothing is waited for that only the old one could say; it is
        told later, if it can be."""
        async with trio.open_nursery() as nursery:
            for taken in list(self._taken.values()):
                nursery.start_soon(self._void, taken)

    async def _void(self, taken: Taken) -> None:
        taken.give_up()
        if taken.ending:
            await taken.returned.wait()
            return
        await self._return(taken)
        if self._nursery is not None:
            self._nursery.start_soon(self._forget, taken)

    async def leave(self) -> None:
        """End all of them: the node stops. The primary is told."""
        for taken in self._live():
            taken.give_up()
            await self._end(taken)

    def unmounted(self) -> None:
        """The fs process is gone, and with it what clients had not committed."""
        for waiting, _ in self._answers.values():
            waiting.set()
        for taken in list(self._taken.values()):
            taken.lent = False
            if taken.ending:  # and goes on doing so
                continue
            taken.ending = True
            taken.give_up()
            self._let_go(taken)
            if self._nursery is not None:
                self._nursery.start_soon(self._forget, taken)


def _check(path: Path, expected: Position) -> None:
    """Read a record whole. Raises PositionMismatch if it leads elsewhere than ``expected``, FormatError,
    OSError."""
    with path.open("rb") as file:
        decoder = Decoder(file.read)
        for _ in decoder:
            pass
    found = Position(decoder.header.max_txid, decoder.trailer.post_apply)
    if found != expected:
        raise PositionMismatch(f"the primary is at {found} instead of {expected}")
