"""Drives a :class:`~litefs.cluster.role.RoleMachine`: a lease on one side, the node on the other.

Requests to the lease run in tasks of their own, so that no slow step of the node delays a renewal; the steps
of the node run one after the other.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import trio

from litefs.cluster import steps
from litefs.cluster.lease import Beat, Lease, LeaseLost, LeaseUnavailable, PrimaryInfo, View
from litefs.cluster.member import Member
from litefs.cluster.role import SECOND, RoleMachine, State
from litefs.cluster.standing import Standing, advance, weigh
from litefs.errors import HandoffFailed, LiteFSError, NotEligible, NotPrimary
from litefs.types import Position

log = logging.getLogger("litefs.election")

WATCH_SECONDS = 3.0
"""How long one wait for a change of the beat may take."""

RETRY_SECONDS = 0.2
"""Before the store is read again after it did not answer."""

PROMOTE_SECONDS = 30.0
DEMOTE_SECONDS = 15.0
FOLLOW_SECONDS = 15.0
"""How long the node may take for these steps."""

AGAIN_SECONDS = 1.0
"""Before a demotion or a thaw that failed is tried again."""

HAND_OVER_SECONDS = 0.8
"""How long commits wait for the target of a handoff; then they go on here. Freezing counts."""

HANDOFF_SECONDS = 10.0
"""How long a handoff may take altogether, requests to the store included."""

STOP_SECONDS = 8.0
"""How long stopping may take; after that the lease is left to expire."""

PROMOTE_WAIT_SECONDS = 30.0
"""How long somebody who asked for a promotion waits for it."""


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: the clock of commit deadlines and of every wait for somebody else's."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Election:
    """Elects a primary together with the elections of other nodes, and tells ``member`` its role."""

    def __init__(
        self, lease: Lease, member: Member, node_id: int, info: PrimaryInfo, *, candidate: bool
    ) -> None:
        """``node_id``: of this life; ``info``: how this node is published when it is primary."""
        self._lease = lease
        self._member = member
        self._node_id = node_id
        self._info = info
        self._candidate = candidate
        self._machine = RoleMachine(node_id, info, lease.timing, candidate=candidate)
        self._events: deque[steps.Event] = deque()
        self._handling = False
        self._work: deque[steps.Action] = deque()
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()
        """Set, and made anew, after each event."""
        self._serving = False
        self._published: Mapping[str, Position] = {}
        self._in_sync: tuple[int, ...] | None = None
        self._view: View | None = None
        self._foreign = ""
        """The cluster id in the store when it was not this node's."""
        self._obstacle = ""
        """What stood in the way when this node was weighed last."""
        self._handoff = trio.Lock()
        self._handoff_error: str | None = None

    # -- what others ask and tell -----------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where this node stands."""
        return self._machine.state

    @property
    def term(self) -> int:
        """The highest term that this node knows of; its own if it is primary."""
        return self._machine.term

    @property
    def view(self) -> View | None:
        """The store as this node read it last, before it became primary."""
        return self._view

    @property
    def obstacle(self) -> str:
        """Why this candidate does not win, with what would be lost; empty if nothing is in its way."""
        return "" if self._machine.leading else self._obstacle

    def mounted(self) -> None:
        """The fs process serves: this node may become primary."""
        self._feed(steps.MountUp())

    def unmounted(self) -> None:
        """The fs process died."""
        self._feed(steps.MountGone())

    def saw_term(self, term: int) -> None:
        """A peer that is trusted named ``term``."""
        if term > self._machine.term:
            self._feed(steps.SawTerm(term))

    def renew_now(self) -> None:
        """The in-sync set has changed: write it to the store at once."""
        self._feed(steps.RenewNow())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in elections until :meth:`stop` or cancellation."""
        try:
            async with trio.open_nursery() as self._nursery:
                for task in (self._watch, self._clock, self._steps):
                    self._nursery.start_soon(task)
                task_status.started()
                self._feed(steps.Tick())
                await self._until(lambda: self.state is State.STOPPED)
                self._nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._lease.aclose()

    async def stop(self) -> None:
        """Leave the role: a primary hands it to a connected candidate, or releases the lease."""
        if self._nursery is None:
            return
        self._feed(steps.StopAsked(self._member.successor()))
        with trio.move_on_after(STOP_SECONDS) as scope:
            await self._until(lambda: self.state is State.STOPPED)
        if scope.cancelled_caught:
            log.error("could not leave the role within %g s: the lease is left to expire", STOP_SECONDS)

    async def handoff(self, target: int | None = None) -> None:
        """Pass the role to the connected candidate ``target``, or to the one that is nearest.

        Returns when the lease is released to it. Raises NotPrimary, HandoffFailed.
        """
        async with self._handoff:
            if not self._machine.serving:
                raise NotPrimary("cannot handoff: node is not currently primary")
            target = self._member.successor() if target is None else target
            if target is None:
                raise HandoffFailed("no other candidate is connected")
            self._handoff_error = None
            self._feed(steps.HandoffAsked(target))
            with trio.move_on_after(HANDOFF_SECONDS):
                await self._until(lambda: self._handoff_error is not None)
            if self._handoff_error is None:
                raise HandoffFailed(f"the handoff did not end within {HANDOFF_SECONDS:g} s")
            if self._handoff_error:
                raise HandoffFailed(self._handoff_error)

    async def promote(self, *, force: bool = False) -> str:
        """Become primary: by a handoff from the primary if one lives, else by the election.

        With ``force`` this node wins the election whatever it lacks; returns what stood in its way, and so
        what was lost. Raises NotEligible, HandoffFailed, PeerError.
        """
        if not self._candidate:
            raise NotEligible("not eligible to become primary: this node is not a candidate")
        if self._machine.serving:
            return ""
        beat = self._view.beat if self._view is not None else None
        if beat is not None and self._machine.primary_lives(boottime_ns()):
            await self._member.request_handoff(beat.primary)
        self._feed(steps.Forced(force))
        try:
            with trio.move_on_after(PROMOTE_WAIT_SECONDS):
                await self._until(lambda: self._machine.serving or bool(self._obstacle and not force))
        finally:
            self._feed(steps.Forced(False))
        if not self._machine.serving:
            raise NotEligible(self._obstacle or f"not primary within {PROMOTE_WAIT_SECONDS:g} s")
        return self._obstacle

    # -- the machine ------------------------------------------------------------------------------------

    def _feed(self, event: steps.Event) -> None:
        """Handle ``event`` and what follows from it at once."""
        self._events.append(event)
        if self._handling or self._nursery is None:
            return  # the call that is under way will, or :meth:`run` when it begins
        before, self._handling = self.state, True
        while self._events:
            for action in self._machine.handle(self._events.popleft(), boottime_ns()):
                self._perform(action)
        self._handling = False
        if self.state is not before:
            log.info("term %d: %s", self.term, self.state)
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _perform(self, action: steps.Action) -> None:
        assert self._nursery is not None
        match action:
            case steps.Weigh():
                self._events.append(steps.Weighed(action.view.version, self._weigh(action.view)))
            case steps.Take():
                self._nursery.start_soon(self._take, action)
            case steps.Renew():
                self._nursery.start_soon(self._renew, action)
            case steps.Release():
                self._nursery.start_soon(self._release, action)
            case steps.Extend():
                self._member.extend(action.deadline_ns)
            case steps.HandoffEnded():
                self._handoff_error = action.error
            case steps.Say():
                log.warning("%s", action.text)
            case _:
                if (
                    self._work
                    and isinstance(action, steps.Follow)
                    and isinstance(self._work[-1], steps.Follow)
                ):
                    self._work.pop()  # superseded before it began
                self._work.append(action)

    async def _clock(self) -> None:
        while True:
            wake, changed = self._machine.wake_ns, self._changed
            with trio.move_on_after(
                max(0, wake - boottime_ns()) / SECOND if wake is not None else float("inf")
            ):
                await changed.wait()
                continue
            self._feed(steps.Tick())

    def _weigh(self, view: View) -> Standing:
        member = self._member
        standing = weigh(view.beat, self._node_id, member.positions(), member.holds)
        if self._foreign and member.cluster_id() != self._foreign:
            barred = f"the lease belongs to cluster {self._foreign}, and this node does not"
            standing = Standing(standing.losses, barred, standing.beyond)
        self._obstacle = standing.obstacle
        return standing

    # -- the lease --------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Read the store for as long as somebody else may be primary."""
        view: View | None = None
        silent = False
        while True:
            if self.state not in (State.REPLICA, State.TAKING):
                view = None
                await self._changed.wait()
                continue
            try:
                view = await (self._lease.changed(view, WATCH_SECONDS) if view else self._lease.observe())
            except LeaseUnavailable as error:
                if not silent:
                    log.warning("the lease's store does not answer: %s", error)
                silent, view = True, None
                self._feed(steps.Silent())
                await trio.sleep(RETRY_SECONDS)
            else:
                if self._view is None or view.version != self._view.version:
                    self._obstacle = ""
                silent, self._view = False, view
                self._feed(steps.Observed(view))

    def _beat(self, term: int, *, released: bool = False, successor: int | None = None) -> Beat:
        """What the store is to hold next."""
        member = self._member
        if released:
            self._published = dict(member.positions())
        elif self._serving:
            self._published = advance(self._published, member.published(), member.positions())
            self._in_sync = member.in_sync()
        return Beat(term, self._node_id, self._info, self._published, self._in_sync, released, successor)

    async def _take(self, action: steps.Take) -> None:
        self._published, self._in_sync = dict(self._member.positions()), action.in_sync
        beat = self._beat(action.term)
        take = self._lease.claim if action.view.held else self._lease.acquire
        try:
            grant = await take(action.view, beat)
            if grant is not None and not await self._join(action.forced):
                await self._lease.release(grant, self._beat(action.term, released=True))
                grant = None
        except LeaseUnavailable as error:
            log.warning("the lease's store does not answer: %s", error)
            self._feed(steps.Unanswered())
            return
        if grant is None:
            self._feed(steps.Missed())
        else:
            self._member.recorded(beat)
            self._feed(steps.Won(grant))

    async def _join(self, forced: bool) -> bool:
        """Whether the cluster whose lease was won is this node's. A node that belongs to none founds one, but
        joins one that exists only as a replica, which then has its data, or by force."""
        own = self._member.cluster_id()
        proposal = own or f"LFSC{secrets.randbits(64):016X}"
        stored = await self._lease.cluster_id(proposal)
        if stored != proposal and (own or not forced):
            self._foreign = stored
            return False
        if not own:
            try:
                self._member.join(stored)
            except (LiteFSError, OSError) as error:
                log.error("cannot store the cluster id: %s", error)
                return False
        return True

    async def _renew(self, action: steps.Renew) -> None:
        beat = self._beat(action.grant.term)
        try:
            grant = await self._lease.renew(action.grant, beat)
        except LeaseLost as error:
            self._feed(steps.Lost(str(error)))
        except LeaseUnavailable:
            self._feed(steps.Unanswered())
        else:
            self._member.recorded(beat)
            self._feed(steps.Renewed(grant))

    async def _release(self, action: steps.Release) -> None:
        beat = self._beat(action.grant.term, released=True, successor=action.successor)
        error = ""
        try:
            await self._lease.release(action.grant, beat)
        except (LeaseLost, LeaseUnavailable) as failure:
            error = f"the lease was not released: {failure}"
            log.warning("%s", error)
        self._feed(steps.Released(error))

    # -- the node ---------------------------------------------------------------------------------------

    async def _steps(self) -> None:
        """The node's steps, one after the other."""
        while True:
            while not self._work:
                await self._changed.wait()
            match self._work.popleft():
                case steps.Promote(grant):
                    failure = await self._step(PROMOTE_SECONDS, lambda: self._member.promote(grant))
                    self._serving = failure is None
                    self._feed(steps.Promoted() if failure is None else steps.PromoteFailed(failure))
                case steps.Demote(reason):
                    log.info("stepping down: %s", reason)
                    await self._insist(lambda: self._member.demote(reason))
                    self._serving = False
                    self._feed(steps.Demoted())
                case steps.HandOver(target):
                    failure = await self._step(HAND_OVER_SECONDS, lambda: self._hand_over(target))
                    self._feed(steps.CaughtUp() if failure is None else steps.HandOverFailed(failure))
                case steps.Thaw():
                    await self._insist(self._member.thaw)
                case steps.Follow(primary, term):
                    failure = await self._step(FOLLOW_SECONDS, lambda: self._member.follow(primary, term))
                    if failure is not None:
                        log.error("cannot follow %s: %s", primary, failure)

    async def _hand_over(self, target: int) -> None:
        await self._member.freeze()
        await self._member.await_target(target)

    async def _step(self, seconds: float, step: Callable[[], Awaitable[None]]) -> str | None:
        """What went wrong, None if nothing did."""
        try:
            with trio.fail_after(seconds):
                await step()
        except (LiteFSError, OSError) as error:
            return str(error)
        except trio.TooSlowError:
            return f"not done within {seconds:g} s"
        return None

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step until it is done: what follows relies on it."""
        while (failure := await self._step(DEMOTE_SECONDS, step)) is not None:
            log.error("%s; trying again", failure)
            await trio.sleep(AGAIN_SECONDS)
