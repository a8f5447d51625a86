"""The role of a node as a state machine: no I/O, no clock, no chance; what it relies on: docs/failover.md.

It is told what happened and when, by this node's CLOCK_BOOTTIME in ns, and answers with what to do. Whoever
drives it performs the actions ``Promote``, ``Demote``, ``HandOver``, ``Follow`` and ``Thaw`` one after the
other in their order, and the others at once.
"""

from __future__ import annotations

import enum
import math

from litefs.cluster import steps
from litefs.cluster.lease import Grant, PrimaryInfo, Timing, View
from litefs.cluster.standing import Standing

SECOND = 1_000_000_000

SUCCESSOR_NS = 2 * SECOND
"""How long a released lease is left to the successor that the last primary named."""

STAGGER_NS = SECOND // 5
STAGGER_STEP_NS = SECOND // 50
"""A candidate waits ``STAGGER_NS`` longer than it must, less one step for each binary digit of the number of
transactions that it holds beyond the published positions: of several the most advanced tends to be first."""

WEIGH_AGAIN_NS = SECOND
"""Between two looks whether a candidate that may not win now may."""

RETRY_NS = SECOND // 5
"""After a renewal, or an attempt to take the lease, that led to nothing."""

MOUNT_NS = 3 * SECOND
"""How long a primary keeps the lease while its fs process is started anew."""

HOLD_OFF_NS = 5 * SECOND
"""How long a node leaves the lease to others after it could not serve as primary."""


class State(enum.StrEnum):
    """Where a node stands."""

    REPLICA = "replica"
    """It follows the primary if there is one; a candidate looks for its chance."""
    TAKING = "candidate"
    """A request for the lease is under way."""
    PROMOTING = "promoting"
    """The lease is ours, the mount is being made writable."""
    PRIMARY = "primary"
    HANDING_OFF = "handing off"
    """Commits wait, so that the target can hold all of them."""
    DEMOTING = "demoting"
    """The lease is lost or about to be released, commits are being refused."""
    RELEASING = "releasing"
    STOPPED = "stopped"


_LEADING = (State.PROMOTING, State.PRIMARY, State.HANDING_OFF)


class RoleMachine:
    """One node's role. ``state`` and ``term``, the highest that it knows of, are to be read; ``wake_ns`` is
    when a :class:`~litefs.cluster.steps.Tick` is due, None if nothing is."""

    def __init__(self, node_id: int, info: PrimaryInfo, timing: Timing, *, candidate: bool) -> None:
        """``info``: how this node is published when it is primary."""
        self._node_id = node_id
        self._info = info
        self._term_ns = int(timing.term * SECOND)
        self._renew_ns = int(timing.renew * SECOND)
        self._margin_ns = int(timing.margin * SECOND)
        self._candidate = candidate
        self.state = State.REPLICA
        self.term = 0
        self.wake_ns: float | None = None
        self._out: list[steps.Action] = []
        self._mounted = False
        self._stopping = False
        self._forced = False
        self._said = ""
        # as a replica
        self._view: View | None = None
        self._seen_ns = 0
        """End of the first read that showed the present version."""
        self._silent = False
        self._not_before = 0
        self._weighing = False
        self._following: tuple[PrimaryInfo | None, int] | None = None
        # as primary
        self._grant: Grant | None = None
        self._renewing = False
        self._again = False
        self._sent_ns = 0
        self._renew_at = 0.0
        self._gone_ns: int | None = None
        """When the fs process of this primary died."""
        self._target: int | None = None
        self._asked = False
        """Somebody waits for :class:`~litefs.cluster.steps.HandoffEnded`."""
        self._demoted = False

    @property
    def leading(self) -> bool:
        """The lease is held, or was when the store was heard last."""
        return self._grant is not None

    @property
    def serving(self) -> bool:
        """This node is primary, as far as it knows, and ready for commits."""
        return self.state is State.PRIMARY

    def primary_lives(self, now: int) -> bool:
        """Whether another node renewed its lease within the time that a renewal lasts."""
        if self._view is None or self._view.beat is None or self._view.beat.released:
            return False
        return now < self._seen_ns + self._term_ns and not self.leading

    def handle(self, event: steps.Event, now: int) -> list[steps.Action]:
        """What to do after ``event``, which happened at ``now``; times never go back."""
        self._out, self.wake_ns = [], None
        match event:
            case steps.MountUp():
                self._mounted, self._gone_ns = True, None
            case steps.MountGone():
                self._mounted, self._gone_ns = False, now
            case steps.Forced():
                self._forced = event.on
            case steps.StopAsked():
                self._stop(event.target)
            case steps.HandoffAsked():
                self._hand_off(event.target)
            case steps.SawTerm():
                self._saw(event.term)
            case steps.Observed() | steps.Silent() | steps.Weighed():
                self._watch(event, now)
            case steps.Won() | steps.Missed():
                self._taken(event, now)
            case steps.Renewed() | steps.Lost() | steps.Unanswered() | steps.Released():
                self._answered(event, now)
            case steps.RenewNow():
                self._again = True
            case steps.Tick():
                pass
            case _:
                self._member_did(event, now)
        if self.state is State.REPLICA:
            self._campaign(now)
        elif self.state in _LEADING:
            self._lead(now)
        return self._out

    def _wake(self, at: float) -> None:
        if at != math.inf:
            self.wake_ns = at if self.wake_ns is None else min(self.wake_ns, at)

    def _say(self, text: str) -> None:
        """Once, until something else is said or the matter is settled."""
        if text != self._said:
            self._said = text
            self._out.append(steps.Say(text))

    # -- replica and candidate --------------------------------------------------------------------------

    def _watch(self, event: steps.Observed | steps.Silent | steps.Weighed, now: int) -> None:
        match event:
            case steps.Silent():
                self._silent = True
            case steps.Observed() if self.state in (State.REPLICA, State.TAKING):
                self._observed(event.view, now)
            case steps.Weighed():
                self._weighing = False
                view = self._view
                if self.state is State.REPLICA and view is not None and view.version == event.version:
                    self._weighed(view, event.standing, now)

    def _observed(self, view: View, now: int) -> None:
        if self._view is None or view.version != self._view.version:
            self._seen_ns, self._said = now, ""
        self._view = view
        if view.beat is not None:
            self.term = max(self.term, view.beat.term)
        if self._silent:
            # The primary heard nothing either: it gets the time of a renewal before anybody claims.
            self._silent = False
            if view.beat is not None and not view.beat.released:
                self._not_before = max(self._not_before, now + self._renew_ns + self._margin_ns)
        if self.state is State.REPLICA:
            self._follow(view)

    def _follow(self, view: View) -> None:
        beat, primary = view.beat, None
        # Also one of a lower term than this node knows, in a store that was restored: it hears of the higher
        # one by that, and is not followed for all that (``check_primary``).
        if beat is not None and not beat.released and beat.primary != self._info:
            primary = beat.primary
        if self._following != (primary, self.term):
            self._following = primary, self.term
            self._out.append(steps.Follow(primary, self.term))

    def _free_ns(self, view: View, standing: Standing | None = None) -> float:
        """From when on the lease of ``view`` may be taken."""
        beat = view.beat
        if beat is None and view.held:
            # A holder without a beat is none of ours, and nothing tells when it may be taken over.
            return math.inf
        # A store that knows less than this node was emptied or restored: who led before may have renewed just
        # before that, and goes on until its deadline.
        lacks = (beat.term if beat is not None else 0) < self.term
        if beat is None and not lacks and not (standing is not None and standing.joined):
            return self._seen_ns
        if beat is not None and not lacks and beat.released and not view.held:
            return self._seen_ns + (0 if beat.successor in (None, self._node_id) else SUCCESSOR_NS)
        return self._seen_ns + self._term_ns + self._margin_ns

    def _campaign(self, now: int) -> None:
        if not self._candidate or not self._mounted or self._weighing:
            return
        if self._view is None or self._silent:
            return
        at = max(self._free_ns(self._view), self._not_before)
        if at == math.inf:
            self._say("the lease is held by a node that publishes no beat")
        elif now < at:
            self._wake(at)
        else:
            self._weighing = True
            self._out.append(steps.Weigh(self._view))

    def _weighed(self, view: View, standing: Standing, now: int) -> None:
        if standing.obstacle and not self._forced:
            self._say(f"there is no primary, and this node must not become it: {standing.obstacle}")
            self._not_before = now + WEIGH_AGAIN_NS
            return
        turn = self._free_ns(view, standing)
        if view.beat is None or not view.beat.released:
            turn += max(0, STAGGER_NS - STAGGER_STEP_NS * standing.beyond.bit_length())
        if now < turn:
            self._not_before = int(turn)
            return
        self.state = State.TAKING
        self._out.append(steps.Take(view, self.term + 1, self._forced))

    def _taken(self, event: steps.Won | steps.Missed, now: int) -> None:
        if isinstance(event, steps.Missed):
            self._not_taken(now)
            return
        grant = event.grant
        self._grant, self._view, self._said = grant, None, ""
        superseded = grant.term < self.term
        self.term = max(self.term, grant.term)
        self._renew_at = min(now, grant.deadline_ns - self._term_ns) + self._renew_ns
        if self._stopping or superseded or not self._mounted:
            self._give_up("the lease came too late")
        else:
            self.state = State.PROMOTING
            self._out.append(steps.Promote(grant))

    def _not_taken(self, now: int) -> None:
        self._not_before = max(self._not_before, now + RETRY_NS)
        self._become_replica()

    def _become_replica(self) -> None:
        self.state = State.STOPPED if self._stopping else State.REPLICA

    # -- primary ----------------------------------------------------------------------------------------

    def _lead(self, now: int) -> None:
        assert self._grant is not None
        if self.state is State.PRIMARY and self._gone_ns is not None:
            if now >= self._gone_ns + MOUNT_NS:
                self._not_before = now + HOLD_OFF_NS
                self._give_up("the fs process did not come back in time")
                return
            self._wake(self._gone_ns + MOUNT_NS)
        if now >= self._grant.deadline_ns:
            self._say("the lease was not renewed in time: commits wait until it is")
        else:
            self._wake(self._grant.deadline_ns)
        if self._renewing:
            return
        if now >= self._renew_at or self._again:
            self._renewing, self._again, self._sent_ns = True, False, now
            self._out.append(steps.Renew(self._grant))
        else:
            self._wake(self._renew_at)

    def _answered(
        self, event: steps.Renewed | steps.Lost | steps.Unanswered | steps.Released, now: int
    ) -> None:
        match event:
            case steps.Released():
                self._settle(event.error)
                return
            case steps.Unanswered() if self.state is State.TAKING:
                self._not_taken(now)
                return
            case steps.Unanswered():
                self._renew_at = now + RETRY_NS
            case steps.Renewed():
                self._grant, self._renew_at = event.grant, self._sent_ns + self._renew_ns
                self._said = ""
                if self.state in (State.PRIMARY, State.HANDING_OFF):
                    self._out.append(steps.Extend(event.grant.deadline_ns))
            case steps.Lost():
                if self.state is not State.DEMOTING:
                    self._give_up(event.reason)
                self._grant = None
        self._renewing = False
        self._go_on_demoting()

    def _saw(self, term: int) -> None:
        superseded = self._grant is not None and term > self._grant.term
        self.term = max(self.term, term)
        if superseded and self.state in _LEADING:
            self._give_up(f"term {term} has begun")

    def _member_did(self, event: steps.Event, now: int) -> None:
        match event:
            case steps.Promoted() if self.state is State.PROMOTING:
                assert self._grant is not None
                self.state, self._forced = State.PRIMARY, False
                self._out.append(steps.Extend(self._grant.deadline_ns))
            case steps.PromoteFailed() if self.state is State.PROMOTING:
                self._not_before = now + HOLD_OFF_NS
                self._give_up(f"cannot serve as primary: {event.reason}")
            case steps.CaughtUp() if self.state is State.HANDING_OFF:
                self._give_up("handing off", self._target)
            case steps.HandOverFailed() if self.state is State.HANDING_OFF:
                if self._stopping:
                    self._give_up("stopping")
                else:
                    self.state = State.PRIMARY
                    self._out.append(steps.Thaw())
                    self._answer_handoff(event.reason)
            case steps.Demoted():
                self._demoted = True
                self._go_on_demoting()

    # -- the way down -----------------------------------------------------------------------------------

    def _stop(self, target: int | None) -> None:
        self._stopping = True
        if self.state is State.REPLICA:
            self.state = State.STOPPED
        elif self.state is State.PRIMARY and target is not None and self._mounted:
            self._begin_handoff(target)
        elif self.state in (State.PROMOTING, State.PRIMARY):
            self._give_up("stopping")

    def _hand_off(self, target: int) -> None:
        self._asked = True
        if self.state is State.PRIMARY and self._mounted:
            self._begin_handoff(target)
        else:
            self._answer_handoff(f"this node is not the primary now, but {self.state}")

    def _begin_handoff(self, target: int) -> None:
        self.state, self._target = State.HANDING_OFF, target
        self._out.append(steps.HandOver(target, last=self._stopping))

    def _answer_handoff(self, error: str) -> None:
        if self._asked:
            self._asked = False
            self._out.append(steps.HandoffEnded(error))

    def _give_up(self, reason: str, successor: int | None = None) -> None:
        """Refuse commits, then release the lease if it is still held: never the other way round."""
        if self.state is State.HANDING_OFF and successor is None:
            self._answer_handoff(reason)
        self.state, self._target, self._demoted = State.DEMOTING, successor, False
        self._out.append(steps.Demote(reason))

    def _go_on_demoting(self) -> None:
        # One request at a time: a renewal under way would move the version that the release refers to.
        if self.state is not State.DEMOTING or not self._demoted or self._renewing:
            return
        if self._grant is None:
            self._settle("the lease was lost meanwhile")
        else:
            self.state = State.RELEASING
            self._out.append(steps.Release(self._grant, self._target))

    def _settle(self, error: str) -> None:
        """The lease is gone, one way or the other: begin as a replica that has seen nothing."""
        self._grant, self._target, self._view, self._following = None, None, None, None
        self._gone_ns = None
        self._again = False
        self._answer_handoff(error)
        self._become_replica()
