"""The node's part in a change of role: who writes the logs, what the fs process is told, whom to follow.

The changes are made in place: applications keep their mount and their connections. Whatever cannot be handed
over in place, or not in time, takes a restart of the fs process, after which old connections fail and the
log decides.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVarTuple, Unpack

import trio

from litefs.clock import boottime_ns
from litefs.cluster.lease import Beat, Grant, PrimaryInfo
from litefs.cluster.replicas import Replicas
from litefs.errors import LiteFSError
from litefs.guard import FsGuard
from litefs.link.messages import (
    FOREVER,
    Alive,
    AnyMessage,
    Deadline,
    Fenced,
    Freeze,
    Frozen,
    HeldUp,
    RoleSet,
    SetRole,
    Thaw,
)
from litefs.replica import Replica
from litefs.store.dropped import was_removed
from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.stream.catalog import StoreCatalog
from litefs.stream.protocols import Source
from litefs.types import Point, Position, Role

log = logging.getLogger("litefs.node")

FENCE_SECONDS = 5.0
"""How long the fs process may take to end commits that are under way; then it is ended."""

STUCK_SECONDS = 3.0
"""How long the fs process of a primary may leave a renewal unanswered; it takes one each second."""

_Args = TypeVarTuple("_Args")


class RoleChanges:
    """This node's role; ``run`` must be running.

    ``role`` is what it is to be, ``leads`` whether it serves as primary. The coroutines are for one caller at
    a time. ``changed`` is told when this node serves as primary, and as soon as it commits nothing any more.
    """

    def __init__(
        self,
        data: DataDir,
        catalog: StoreCatalog,
        guard: FsGuard,
        replica: Replica,
        replicas: Replicas,
        demote_delay: float,
        changed: Callable[[Role], Awaitable[None]],
        ask_for_handoff: Callable[[PrimaryInfo], Awaitable[None]],
    ) -> None:
        """``demote_delay``: seconds until connections that hold up a demotion are made to fail.
        ``ask_for_handoff``: has that primary pass its role to this node."""
        self.role = Role.NONE
        self.leads = False
        self.term = 0
        self.role_changes = 0
        """How often this node came to serve as primary, or ceased to, since its start."""
        self.primary: str | None = None
        """Hostname of the primary that this node is connected to."""
        self.held_up: list[str] = []
        """Who keeps a demotion from being complete, one line for each."""
        self._data = data
        self._catalog = catalog
        self._guard = guard
        self._replica = replica
        self._replicas = replicas
        self._demote_delay = demote_delay
        self._changed = changed
        self._ask_for_handoff = ask_for_handoff
        self._deadline_ns: float = 0
        self._is_frozen = False
        self._freezes = 0
        """Counts them: the answer to one that was given up is not taken for that to the next."""
        self._fenced, self._frozen, self._set = trio.Event(), trio.Event(), trio.Event()
        self._changing = trio.Lock()
        """Held while the sink is made or let go of."""
        self._asked: float | None = None
        """When the fs process was told the first deadline that it has not answered yet."""
        self._said_stuck = False
        self._life = 0
        """Counts mounts."""
        self._fresh = False
        """This mount was recovered, and has taken no role yet."""
        self._attached = self._mounted = False
        self.stopping = False
        """The mount is about to go: the logs are not taken over any more."""
        self._nursery: trio.Nursery | None = None

    # -- life --------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of changes that are under way; until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def begin(self, grant: Grant | None) -> None:
        """The role to start with, before there is a mount: primary with a grant, else replica."""
        self.role = Role.REPLICA if grant is None else Role.PRIMARY
        self._fenced.set()
        if grant is not None:
            self.term, self._deadline_ns = grant.term, grant.deadline_ns

    @property
    def is_settled(self) -> bool:
        """Whether the present role is in force, and the logs are their writer's."""
        return self._set.is_set()

    async def settled(self) -> None:
        """Wait until the present role is in force."""
        while not self._set.is_set():
            await self._set.wait()

    def mounted(self) -> None:
        """A mount serves whose databases were recovered."""
        self._life += 1
        self._asked = None
        self._fresh = self._mounted = True
        self._post_role()

    async def unmounted(self) -> None:
        """The fs process is gone, and with it whatever it could have committed."""
        self.held_up, self._mounted, self._asked = [], False, None
        self._fenced.set()
        async with self._changing:
            self._attached = False
            await self._replica.unmounted()

    def message(self, message: AnyMessage) -> None:
        """What the fs process says about its role."""
        match message:
            case Fenced():
                if message.term >= self.term:
                    self._fenced.set()
            case Alive():
                self._asked = None
            case Frozen():
                if message.number == self._freezes:
                    self._frozen.set()
            case HeldUp():
                self.held_up = message.by
            case RoleSet():
                self._role_set(message)

    def _role_set(self, message: RoleSet) -> None:
        if message.role is not self.role or not self._fenced.is_set():
            return  # another one was asked for since
        fresh, self._fresh = self._fresh, False
        if message.failed and not fresh:
            self._restart(message.failed)
            return
        if self.role is Role.PRIMARY:
            self._replicas.mounted(primary=True)  # the fs process begins every role without knowing of them
            self.role_changes += not self.leads
            self.leads = True
        elif not self._attached:
            self._spawn(self._attach, self._life)
            return
        self._in_force()

    def _in_force(self) -> None:
        if not self._set.is_set():
            self._set.set()
            self._catalog.notify()
            if self.leads:
                self._spawn(self._changed, Role.PRIMARY)

    async def _attach(self, life: int) -> None:
        """Take the logs over, and apply to them what the primary sends."""
        async with self._changing:
            if self.role is Role.PRIMARY or life != self._life or self._attached or self.stopping:
                return
            try:
                await self._replica.mounted()
            except (LiteFSError, OSError) as error:
                if life == self._life:
                    self._guard.restart(f"its databases cannot be applied to: {error}")
                return
            self._attached = True
        self._in_force()

    def _spawn(self, task: Callable[[Unpack[_Args]], Awaitable[None]], *args: *_Args) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)

    def _restart(self, failed: Mapping[str, str]) -> None:
        self._guard.restart("; ".join(f"{name}: {reason}" for name, reason in failed.items()))

    def _post_role(self) -> None:
        if not self._mounted:
            return  # it is told as soon as it serves
        deadline = 0 if self._is_frozen or self.role is not Role.PRIMARY else _message_ns(self._deadline_ns)
        self._guard.post(SetRole(self.role, self.term, deadline, self.primary))

    def connected(self, hostname: str, term: int) -> None:
        """A stream of the primary of that term has begun."""
        self.primary, self.term = hostname, max(term, self.term)
        self._post_role()

    def disconnected(self) -> None:
        """It has ended."""
        self.primary = None
        self._post_role()

    def may_publish(self) -> bool:
        """Whether a commit that its client did not announce may be shown to readers: not if its outcome is
        unknown because the deadline passed."""
        return self.role is Role.PRIMARY and boottime_ns() < self._deadline_ns

    # -- what an election asks for (litefs.cluster.member) ---------------------------------------------

    def positions(self) -> Mapping[str, Point]:
        """What this node holds, database by database. On a replica that is what its logs have, shown to
        readers already or not; nothing of a database that is damaged."""
        found = {name: self._point(name, source) for name, source in self._catalog.sources().items()}
        return {**found, **self._replica.positions()}

    def _point(self, name: str, source: Source) -> Point:
        try:
            return source.point()
        except OSError:  # the fs process died inside an update of it: what is in the log exists
            with LogReader(self._data.database_dir(name).log) as reader:
                return reader.tip()

    def holds(self, name: str, point: Point) -> bool:
        """Whether ``point`` is part of this node's history of ``name``; true also if its log does not
        reach back so far."""
        return self._holds(name, point.txid, lambda found: found == point)

    def holds_position(self, name: str, position: Position) -> bool:
        """The same for a position, which is all that clients know."""
        return self._holds(name, position.txid, lambda found: found.position == position)

    def _holds(self, name: str, txid: int, is_it: Callable[[Point], bool]) -> bool:
        try:
            with LogReader(self._data.database_dir(name).log) as reader:
                found = reader.point_at(txid)
                return is_it(found) if found is not None else txid < reader.first_txid
        except (LiteFSError, OSError):
            return False

    def was_removed(self, name: str, point: Point) -> bool:
        """Whether a database of that name was removed here that had come to ``point``, or beyond it."""
        try:
            return was_removed(self._data, name, point)
        except (LiteFSError, OSError):
            return False

    def cluster_id(self) -> str:
        """The cluster this node belongs to; empty before it joined one."""
        return self._data.cluster_id() or ""

    def join(self, cluster_id: str) -> None:
        """Store the id of the cluster that this node belongs to from now on. Raises LiteFSError, OSError."""
        self._data.set_cluster_id(cluster_id)

    def published(self) -> Mapping[str, Point]:
        """What a failover must keep, by database."""
        return self._replicas.published()

    def in_sync(self) -> tuple[int, ...] | None:
        """Node ids of the replicas that hold every acknowledged commit; None while positions decide."""
        return self._replicas.in_sync()

    def recorded(self, beat: Beat) -> None:
        """The lease's store holds ``beat``, from this node."""
        self._replicas.stored(beat.in_sync)

    def successor(self) -> int | None:
        """Node id of the connected candidate that lacks least; None if there is none."""
        return self._replicas.nearest()

    def extend(self, deadline_ns: float) -> None:
        """Commits may be acknowledged until then (CLOCK_BOOTTIME, ns; ``math.inf``: for ever)."""
        self._deadline_ns = deadline_ns
        if self.role is Role.PRIMARY and self._mounted:
            if self._asked is None:
                self._asked = trio.current_time()
            self._guard.post(Deadline(_message_ns(deadline_ns)))

    def is_stuck(self) -> bool:
        """Whether the fs process does not answer: it is stopped, or hangs in a disk."""
        stuck = self._asked is not None and trio.current_time() > self._asked + STUCK_SECONDS
        if stuck and not self._said_stuck:
            log.error("the fs process does not answer: the lease is not renewed until it does")
        self._said_stuck = stuck
        return stuck

    async def promote(self, grant: Grant) -> None:
        """Return when this node serves as primary; whatever keeps a log from changing hands in place costs a
        restart of the fs process."""
        with trio.CancelScope(shield=True):
            async with self._changing:
                failed = await self._replica.release()
                self._attached = self._is_frozen = False
                self._set = trio.Event()
                self.role, self.term, self.primary = Role.PRIMARY, grant.term, None
                self._deadline_ns = max(self._deadline_ns, grant.deadline_ns)
        if failed:
            self._restart(failed)
        else:
            self._post_role()
        await self.settled()
        log.info("primary of term %d", grant.term)

    async def demote(self, reason: str) -> None:
        """Return when nothing can be committed here any more. The logs change hands when open transactions
        have ended, or ``demote_delay`` later by a restart of the fs process."""
        if told := self.role is Role.PRIMARY:
            log.warning("no longer primary: %s", reason)
            self._fenced, self._set = trio.Event(), trio.Event()
            self.role_changes += self.leads
            self.role, self.leads, self._is_frozen, self._deadline_ns = Role.REPLICA, False, False, 0
            self._replicas.end()
            self._catalog.notify()
            self._post_role()
            if not self._mounted:  # nobody could commit
                self._fenced.set()
            self._spawn(self._bound_demotion, self._life, self._set)
        with trio.move_on_after(FENCE_SECONDS):
            await self._fenced.wait()
        if not self._fenced.is_set():
            self._guard.restart(f"commits did not end within {FENCE_SECONDS:g} s")
            await self._fenced.wait()
        if told:
            self._spawn(self._changed, Role.REPLICA)

    async def _bound_demotion(self, life: int, done: trio.Event) -> None:
        with trio.move_on_after(self._demote_delay):
            await done.wait()
        if not done.is_set() and life == self._life and self.role is not Role.PRIMARY:
            held = ", ".join(self.held_up) or "somebody"
            self._guard.restart(f"no replica after {self._demote_delay:g} s because of {held}")

    async def follow(self, primary: PrimaryInfo | None, term: int) -> None:
        """Replicate from ``primary``, or from nobody; ``term`` is the highest that is known. Called when
        either has changed."""
        await self._replica.end_loans()  # before another history is followed
        self.term = max(self.term, term)
        self._replica.follow(primary)

    async def freeze(self) -> None:
        """Return when no commit is under way, and none begins before :meth:`thaw`: they wait. Raises
        LiteFSError."""
        self._frozen = trio.Event()
        self._is_frozen = True
        self._freezes += 1
        self._guard.post(Freeze(self._freezes))
        with trio.move_on_after(FENCE_SECONDS):
            await self._frozen.wait()
            return
        raise LiteFSError(f"commits did not end within {FENCE_SECONDS:g} s")

    async def await_target(self, node_id: int) -> None:
        """While frozen: return when that replica holds all that this node does. Raises PeerError if it is not
        connected, or no candidate."""
        await self._replicas.await_all(node_id)

    async def request_handoff(self, primary: PrimaryInfo) -> None:
        """Ask ``primary`` to hand its role over to this node. Raises PeerError."""
        await self._ask_for_handoff(primary)

    async def thaw(self) -> None:
        """Let commits go on; harmless if they do."""
        if self._is_frozen:
            self._is_frozen = False
            self._guard.post(Thaw())
            self.extend(self._deadline_ns)


def _message_ns(deadline_ns: float) -> int:
    return FOREVER if math.isinf(deadline_ns) else int(deadline_ns)
