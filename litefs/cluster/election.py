"""Drives a :class:`~litefs.cluster.role.RoleMachine`: a lease on one side, the node on the other.

Requests to the lease run in tasks of their own, so that no slow step of the node delays a renewal; the steps
of the node run one after the other.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from litefs.clock import boottime_ns
from litefs.cluster import steps
from litefs.cluster.lease import Lease, LeaseUnavailable, PrimaryInfo, View
from litefs.cluster.member import Member
from litefs.cluster.role import SECOND, RoleMachine, State
from litefs.cluster.tenure import Tenure
from litefs.errors import HandoffFailed, LiteFSError, NotEligible, NotPrimary, PeerError

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

LAST_HAND_OVER_SECONDS = 4.0
"""The same when the primary stops: a candidate that lacks something could not follow it."""

HANDOFF_SECONDS = 10.0
"""How long a handoff may take altogether, requests to the store included."""

STOP_SECONDS = 8.0
"""How long stopping may take; after that the lease is left to expire."""

ASK_SECONDS = 5.0
"""How long a primary that refuses a handoff, or does not answer, is asked again."""

PROMOTE_WAIT_SECONDS = 30.0
"""How long somebody who asked for a promotion waits for it."""


class Election:
    """Elects a primary together with the elections of other nodes, and tells ``member`` its role."""

    def __init__(
        self, lease: Lease, member: Member, node_id: int, info: PrimaryInfo, *, candidate: bool
    ) -> None:
        """``node_id``: of this life; ``info``: how this node is published when it is primary."""
        self._lease = lease
        self._member = member
        self._tenure = Tenure(lease, member, node_id, info)
        self._candidate = candidate
        self._machine = RoleMachine(node_id, info, lease.timing, candidate=candidate)
        self._events: deque[steps.Event] = deque()
        self._handling = False
        self._work: deque[steps.Action] = deque()
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()
        """Set, and made anew, after each event."""
        self._view: View | None = None
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
        return "" if self._machine.leading else self._tenure.obstacle

    def lacks(self) -> list[str]:
        """What this node lacks of what a primary must have, by the store as it was read last; in lines.
        Nothing while a primary lives, which hands over all that it has."""
        view = self._view
        if view is None or self._machine.leading or self._machine.primary_lives(boottime_ns()):
            return []
        return self._tenure.standing(view).obstacles

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
        self._feed(steps.Forced(force))
        try:
            with trio.move_on_after(PROMOTE_WAIT_SECONDS):
                await self._win(force)
        finally:
            self._feed(steps.Forced(False))
        if not self._machine.serving:
            raise NotEligible(self._tenure.obstacle or f"not primary within {PROMOTE_WAIT_SECONDS:g} s")
        return self._tenure.given_up if force else ""

    async def _win(self, force: bool) -> None:
        """Return when this node serves, or something is in its way; ask whoever is primary meanwhile: a lease
        that was just released has an owner a moment later, and that one replicas a moment after that."""
        asked, until = 0, trio.current_time() + ASK_SECONDS
        while not self._machine.serving and (force or not self._tenure.obstacle):
            changed, beat = self._changed, self._view.beat if self._view is not None else None
            if beat is not None and beat.term > asked and self._machine.primary_lives(boottime_ns()):
                try:
                    await self._member.request_handoff(beat.primary)
                    asked = beat.term
                except PeerError:
                    if trio.current_time() > until:
                        raise
                    await trio.sleep(RETRY_SECONDS)
            else:
                await changed.wait()

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
                self._events.append(self._tenure.weigh(action.view))
            case steps.Take():
                self._nursery.start_soon(self._ask, partial(self._tenure.take, action))
            case steps.Renew():
                self._nursery.start_soon(self._ask, partial(self._tenure.renew, action))
            case steps.Release():
                self._nursery.start_soon(self._ask, partial(self._tenure.release, action))
            case steps.Extend():
                self._member.extend(action.deadline_ns)
            case steps.HandoffEnded():
                self._handoff_error = action.error
            case steps.Say():
                log.warning("%s", action.text)
            case _:
                if isinstance(action, steps.Follow) and self._work:
                    self._work = deque(step for step in self._work if not isinstance(step, steps.Follow))
                self._work.append(action)

    async def _clock(self) -> None:
        while True:
            wake, changed = self._machine.wake_ns, self._changed
            seconds = math.inf if wake is None else max(0.0, (wake - boottime_ns()) / SECOND)
            with trio.move_on_after(seconds):
                await changed.wait()
                continue
            self._feed(steps.Tick())

    async def _ask(self, request: Callable[[], Awaitable[steps.Event]]) -> None:
        self._feed(await request())

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
                    log.warning("the lease's store does not answer: %s; waiting for it", error)
                silent, view = True, None
                self._feed(steps.Silent())
                await trio.sleep(RETRY_SECONDS)
            else:
                if self._view is None or view.version != self._view.version:
                    self._tenure.obstacle = ""
                silent, self._view = False, view
                self._feed(steps.Observed(view))

    # -- the node ---------------------------------------------------------------------------------------

    async def _steps(self) -> None:
        """The node's steps, one after the other."""
        while True:
            while not self._work:
                await self._changed.wait()
            match self._work.popleft():
                case steps.Promote(grant):
                    failure = await self._step(PROMOTE_SECONDS, lambda: self._member.promote(grant))
                    self._tenure.serving = failure is None
                    self._feed(steps.Promoted() if failure is None else steps.PromoteFailed(failure))
                case steps.Demote(reason):
                    log.info("stepping down: %s", reason)
                    await self._insist(lambda: self._member.demote(reason))
                    self._tenure.serving = False
                    self._feed(steps.Demoted())
                case steps.HandOver(target, last):
                    seconds = LAST_HAND_OVER_SECONDS if last else HAND_OVER_SECONDS
                    failure = await self._step(seconds, lambda: self._hand_over(target))
                    self._feed(steps.CaughtUp() if failure is None else steps.HandOverFailed(failure))
                case steps.Thaw():
                    await self._insist(self._member.thaw, lambda: self._machine.serving)
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

    async def _insist(
        self, step: Callable[[], Awaitable[None]], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Repeat a step until it is done, or not ``wanted`` any more: what follows relies on it."""
        while wanted() and (failure := await self._step(DEMOTE_SECONDS, step)) is not None:
            log.error("%s; trying again", failure)
            await trio.sleep(AGAIN_SECONDS)
