"""The role machine: its rules one by one, and every order of events to a bounded depth."""

from __future__ import annotations

import copy
import os
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from litefs.cluster import steps
from litefs.cluster.lease import Beat, Grant, PrimaryInfo, Timing, View
from litefs.cluster.role import (
    HOLD_OFF_NS,
    MOUNT_NS,
    RETRY_NS,
    SECOND,
    STAGGER_NS,
    STAGGER_STEP_NS,
    SUCCESSOR_NS,
    WEIGH_AGAIN_NS,
    RoleMachine,
    State,
)
from litefs.cluster.standing import Loss, Standing
from litefs.types import ZERO, Position

TIMING = Timing()
TERM_NS, RENEW_NS, MARGIN_NS = (int(value * SECOND) for value in (TIMING.term, TIMING.renew, TIMING.margin))
ME, OTHER = 1, 2
MINE, OTHERS = PrimaryInfo("me", "http://me"), PrimaryInfo("other", "http://other")
LIVE = View("4", Beat(4, OTHER, OTHERS), held=True)
AGAIN = View("5", Beat(4, OTHER, OTHERS), held=True)
RELEASED = View("6", Beat(4, OTHER, OTHERS, released=True), held=False)
FOR_ME = View("7", Beat(4, OTHER, OTHERS, released=True, successor=ME), held=False)
FOR_THIRD = View("8", Beat(4, OTHER, OTHERS, released=True, successor=3), held=False)
NONE = View("0", None, held=False)
BEHIND = Standing(losses=(Loss("db", ZERO, Position(3, 1 << 63)),))
FINE = Standing(beyond=1 << 20)
"""Holds so much that it need not wait for a better one."""


class Rig:
    """A mounted candidate at 10 s of its clock."""

    def __init__(self, *, candidate: bool = True, mounted: bool = True) -> None:
        self.machine = RoleMachine(ME, MINE, TIMING, candidate=candidate)
        self.now = 10 * SECOND
        if mounted:
            self.tell(steps.MountUp())

    def tell(self, event: steps.Event, after: int = 0) -> list[steps.Action]:
        """Feed ``event``, ``after`` ns later; what it leads to."""
        self.now += after
        return self.machine.handle(event, self.now)

    def weighed(self, view: View, standing: Standing = FINE) -> list[steps.Action]:
        return self.tell(steps.Weighed(view.version, standing))

    def grant(self, term: int = 5) -> Grant:
        return Grant(term, self.now + TERM_NS, "9")

    def lead(self) -> Rig:
        """Become primary of term 5."""
        self.tell(steps.Observed(RELEASED))
        (take,) = self.weighed(RELEASED)
        assert isinstance(take, steps.Take)
        self.tell(steps.Won(self.grant(take.term)))
        self.tell(steps.Promoted())
        assert self.machine.state is State.PRIMARY
        return self


# -- who may take the lease, and when -----------------------------------------------------------------------


def test_a_beat_has_to_stand_still_for_term_and_margin_from_the_end_of_its_first_read() -> None:
    rig = Rig()
    assert rig.tell(steps.Observed(LIVE)) == [steps.Follow(OTHERS, 4)]
    rig.tell(steps.Observed(LIVE), after=SECOND)
    assert rig.tell(steps.Observed(AGAIN), after=SECOND) == []
    assert rig.tell(steps.Observed(AGAIN), after=TERM_NS) == []
    assert rig.machine.wake_ns == rig.now + MARGIN_NS
    assert rig.tell(steps.Tick(), after=MARGIN_NS - 1) == []
    assert rig.tell(steps.Tick(), after=1) == [steps.Weigh(AGAIN)]
    assert rig.weighed(AGAIN) == [steps.Take(AGAIN, 5, False)]
    assert rig.machine.state is State.TAKING


def test_the_longer_its_log_the_sooner_a_candidate_takes_its_turn() -> None:
    for beyond, delay in ((0, STAGGER_NS), (1, STAGGER_NS - STAGGER_STEP_NS), (1 << 10, 0)):
        rig = Rig()
        rig.tell(steps.Observed(LIVE))
        assert rig.tell(steps.Tick(), after=TERM_NS + MARGIN_NS) == [steps.Weigh(LIVE)]
        if delay:
            assert rig.weighed(LIVE, Standing(beyond=beyond)) == []
            assert rig.machine.wake_ns == rig.now + delay
            assert rig.tell(steps.Tick(), after=delay - 1) == []
            assert rig.tell(steps.Tick(), after=1) == [steps.Weigh(LIVE)]
        (take,) = rig.weighed(LIVE, Standing(beyond=beyond))
        assert isinstance(take, steps.Take)


def test_a_released_lease_may_be_taken_at_once() -> None:
    rig = Rig()
    assert rig.tell(steps.Observed(RELEASED)) == [steps.Follow(None, 4), steps.Weigh(RELEASED)]
    assert rig.weighed(RELEASED, Standing()) == [steps.Take(RELEASED, 5, False)]


def test_a_successor_comes_first_and_the_others_after_a_bound() -> None:
    rig = Rig()
    assert rig.tell(steps.Observed(FOR_ME)) == [steps.Follow(None, 4), steps.Weigh(FOR_ME)]
    rig = Rig()
    assert rig.tell(steps.Observed(FOR_THIRD)) == [steps.Follow(None, 4)]
    assert rig.tell(steps.Tick(), after=SUCCESSOR_NS - 1) == []
    assert rig.tell(steps.Tick(), after=1) == [steps.Weigh(FOR_THIRD)]


def test_a_released_beat_that_somebody_holds_is_waited_for() -> None:
    rig = Rig()
    held = replace(RELEASED, held=True)
    rig.tell(steps.Observed(held))
    assert rig.tell(steps.Tick(), after=TERM_NS + MARGIN_NS - 1) == []
    assert rig.tell(steps.Tick(), after=1) == [steps.Weigh(held)]


def test_a_holder_that_publishes_no_beat_is_never_taken_over() -> None:
    rig = Rig()
    (follow, said) = rig.tell(steps.Observed(View("0", None, held=True)))
    assert follow == steps.Follow(None, 0)
    assert isinstance(said, steps.Say)
    assert rig.tell(steps.Tick(), after=3600 * SECOND) == []


def test_a_store_that_lost_its_record_is_waited_for_like_a_primary_that_renewed_just_before() -> None:
    for view in (NONE, View("2", Beat(3, OTHER, OTHERS, released=True), held=False)):
        rig = Rig()
        rig.tell(steps.Observed(LIVE))
        assert rig.tell(steps.Observed(view), after=SECOND)[1:] == []
        assert rig.tell(steps.Tick(), after=TERM_NS + MARGIN_NS - 1) == []
        assert rig.tell(steps.Tick(), after=1) == [steps.Weigh(view)]
        assert rig.weighed(view) == [steps.Take(view, 5, False)]


def test_an_empty_store_is_waited_for_by_who_belongs_to_a_cluster() -> None:
    rig = Rig()
    assert rig.tell(steps.Observed(NONE))[1:] == [steps.Weigh(NONE)]
    assert rig.weighed(NONE, replace(FINE, joined=True)) == []
    assert rig.tell(steps.Tick(), after=TERM_NS + MARGIN_NS - 1) == []
    assert rig.tell(steps.Tick(), after=1) == [steps.Weigh(NONE)]
    assert rig.weighed(NONE, replace(FINE, joined=True)) == [steps.Take(NONE, 1, False)]
    rig = Rig()
    rig.tell(steps.Observed(NONE))
    assert rig.weighed(NONE) == [steps.Take(NONE, 1, False)], "it founds one"


def test_one_that_is_behind_waits_and_says_so_once() -> None:
    rig = Rig()
    rig.tell(steps.Observed(RELEASED))
    (said,) = rig.weighed(RELEASED, BEHIND)
    assert isinstance(said, steps.Say)
    assert "db: 3 transactions behind" in said.text
    for _ in range(3):
        assert rig.tell(steps.Tick(), after=WEIGH_AGAIN_NS) == [steps.Weigh(RELEASED)]
        assert rig.weighed(RELEASED, BEHIND) == []
    rig.tell(steps.Tick(), after=WEIGH_AGAIN_NS)
    (take,) = rig.weighed(RELEASED, FINE)
    assert isinstance(take, steps.Take)


def test_force_is_the_way_round_but_not_past_a_living_primary() -> None:
    rig = Rig()
    rig.tell(steps.Observed(LIVE))
    assert rig.tell(steps.Forced(True)) == []
    assert rig.tell(steps.Tick(), after=TERM_NS + MARGIN_NS) == [steps.Weigh(LIVE)]
    (take,) = rig.weighed(LIVE, Standing(BEHIND.losses, beyond=1 << 20))
    assert take == steps.Take(LIVE, 5, True)


def test_only_a_mounted_candidate_campaigns() -> None:
    for rig in (Rig(candidate=False), Rig(mounted=False)):
        assert rig.tell(steps.Observed(RELEASED)) == [steps.Follow(None, 4)]
        assert rig.machine.wake_ns is None
        assert rig.tell(steps.Tick(), after=3600 * SECOND) == []
    assert rig.tell(steps.MountUp()) == [steps.Weigh(RELEASED)]


def test_a_standing_for_another_version_counts_for_nothing() -> None:
    rig = Rig()
    rig.tell(steps.Observed(RELEASED))
    rig.tell(steps.Observed(FOR_ME))
    assert rig.weighed(RELEASED) == [steps.Weigh(FOR_ME)]


def test_after_a_silence_the_primary_gets_the_time_of_a_renewal() -> None:
    rig = Rig()
    rig.tell(steps.Observed(LIVE))
    rig.tell(steps.Silent(), after=TERM_NS - 1)
    assert rig.tell(steps.Tick(), after=TERM_NS) == [], "whoever cannot read cannot know"
    assert rig.tell(steps.Observed(LIVE), after=MARGIN_NS) == []
    assert rig.machine.wake_ns == rig.now + RENEW_NS + MARGIN_NS
    assert rig.tell(steps.Tick(), after=RENEW_NS + MARGIN_NS) == [steps.Weigh(LIVE)]


def test_a_lost_race_is_tried_again_soon_if_nothing_changes() -> None:
    rig = Rig()
    rig.tell(steps.Observed(RELEASED))
    rig.weighed(RELEASED)
    rig.tell(steps.Missed())
    assert rig.machine.state is State.REPLICA
    assert rig.machine.wake_ns == rig.now + RETRY_NS
    assert rig.tell(steps.Observed(LIVE)) == [steps.Follow(OTHERS, 4)]


def test_terms_grow_beyond_whatever_was_seen() -> None:
    rig = Rig()
    rig.tell(steps.SawTerm(9))
    assert rig.tell(steps.Observed(LIVE)) == [steps.Follow(OTHERS, 9)], "which so hears of it"
    rig.tell(steps.Tick(), after=TERM_NS + MARGIN_NS)
    assert rig.weighed(LIVE) == [steps.Take(LIVE, 10, False)]


def test_a_lease_that_comes_after_a_higher_term_is_given_back() -> None:
    rig = Rig()
    rig.tell(steps.Observed(RELEASED))
    rig.weighed(RELEASED)
    rig.tell(steps.SawTerm(6))
    (demote,) = rig.tell(steps.Won(rig.grant(5)))
    assert isinstance(demote, steps.Demote)
    assert [type(action) for action in rig.tell(steps.Demoted())] == [steps.Release]


def test_its_own_former_life_is_not_followed() -> None:
    rig = Rig()
    view = View("4", Beat(4, 77, MINE), held=True)
    assert rig.tell(steps.Observed(view)) == [steps.Follow(None, 4)]


# -- as primary ---------------------------------------------------------------------------------------------


def test_renewals_keep_their_pace_whatever_the_node_does() -> None:
    rig = Rig()
    rig.tell(steps.Observed(RELEASED))
    rig.weighed(RELEASED)
    rig.tell(steps.Won(rig.grant()))  # and the promotion takes long
    for _ in range(5):
        sent = rig.now + RENEW_NS
        assert [type(action) for action in rig.tell(steps.Tick(), after=RENEW_NS)] == [steps.Renew]
        assert rig.tell(steps.Renewed(rig.grant()), after=RENEW_NS // 2) == [], "no deadline before it serves"
        assert rig.machine.wake_ns == sent + RENEW_NS
        rig.now = sent
    deadline = rig.grant().deadline_ns
    assert rig.tell(steps.Promoted()) == [steps.Extend(deadline)]


def test_an_unanswered_renewal_is_repeated_quickly_and_the_role_kept() -> None:
    rig = Rig().lead()
    rig.tell(steps.Tick(), after=RENEW_NS)
    seen: list[steps.Action] = []
    for _ in range(100):
        seen += rig.tell(steps.Unanswered(), after=SECOND // 2)
        seen += rig.tell(steps.Tick(), after=RETRY_NS)
        assert isinstance(seen[-1], steps.Renew)
        assert rig.machine.state is State.PRIMARY
    assert Counter(map(type, seen)) == {steps.Renew: 100, steps.Say: 1}
    deadline = rig.grant().deadline_ns
    assert rig.tell(steps.Renewed(rig.grant())) == [steps.Extend(deadline)]


def test_a_lost_lease_ends_the_role_and_releases_nothing() -> None:
    rig = Rig().lead()
    rig.tell(steps.Tick(), after=RENEW_NS)
    assert rig.tell(steps.Lost("gone")) == [steps.Demote("gone")]
    assert rig.tell(steps.Demoted()) == []
    assert rig.machine.state is State.REPLICA
    newer = View("9", Beat(6, OTHER, OTHERS), held=True)
    assert rig.tell(steps.Observed(newer)) == [steps.Follow(OTHERS, 6)]


def test_a_higher_term_ends_the_role() -> None:
    rig = Rig().lead()
    assert rig.tell(steps.SawTerm(5)) == []
    assert rig.tell(steps.SawTerm(6)) == [steps.Demote("term 6 has begun")]


def test_what_changes_is_published_at_once() -> None:
    rig = Rig().lead()
    assert [type(action) for action in rig.tell(steps.RenewNow())] == [steps.Renew]
    assert rig.tell(steps.RenewNow()) == [], "one request at a time"
    actions = rig.tell(steps.Renewed(rig.grant()))
    assert [type(action) for action in actions] == [steps.Extend, steps.Renew]


def test_a_fs_process_that_stays_away_costs_the_role() -> None:
    rig = Rig().lead()
    rig.tell(steps.MountGone())
    rig.tell(steps.MountUp(), after=MOUNT_NS - 1)
    rig.tell(steps.MountGone(), after=MOUNT_NS)
    assert not any(isinstance(action, steps.Demote) for action in rig.tell(steps.Tick(), after=MOUNT_NS - 1))
    assert any(isinstance(action, steps.Demote) for action in rig.tell(steps.Tick(), after=1))


def test_a_failed_promotion_leaves_the_lease_to_others() -> None:
    rig = Rig()
    rig.tell(steps.Observed(RELEASED))
    rig.weighed(RELEASED)
    rig.tell(steps.Won(rig.grant()))
    rig.tell(steps.PromoteFailed("no disk"))
    (release,) = rig.tell(steps.Demoted())
    assert isinstance(release, steps.Release)
    assert release.successor is None
    rig.tell(steps.Released())
    rig.tell(steps.Observed(RELEASED))
    assert rig.machine.wake_ns == rig.now + HOLD_OFF_NS


# -- leaving ------------------------------------------------------------------------------------------------


def test_a_handoff_refuses_commits_before_it_releases() -> None:
    rig = Rig().lead()
    assert rig.tell(steps.HandoffAsked(3)) == [steps.HandOver(3)]
    assert rig.tell(steps.CaughtUp()) == [steps.Demote("handing off")]
    (release,) = rig.tell(steps.Demoted())
    assert release == steps.Release(release.grant, 3)  # type: ignore[union-attr]
    assert rig.tell(steps.Released()) == [steps.HandoffEnded("")]
    assert rig.machine.state is State.REPLICA


def test_a_handoff_that_fails_leaves_everything_as_it_was() -> None:
    rig = Rig().lead()
    rig.tell(steps.HandoffAsked(3))
    assert rig.tell(steps.HandOverFailed("late")) == [steps.Thaw(), steps.HandoffEnded("late")]
    assert rig.machine.state is State.PRIMARY


def test_a_release_waits_for_the_renewal_that_is_under_way() -> None:
    rig = Rig().lead()
    rig.tell(steps.Tick(), after=RENEW_NS)
    rig.tell(steps.StopAsked(None))
    assert rig.tell(steps.Demoted()) == []
    newer = Grant(5, rig.now, "10")
    assert rig.tell(steps.Renewed(newer)) == [steps.Release(newer, None)]
    rig.tell(steps.Released())
    assert rig.machine.state is State.STOPPED


def test_a_stop_hands_off_to_whom_is_there_or_just_releases() -> None:
    rig = Rig().lead()
    assert rig.tell(steps.StopAsked(3)) == [steps.HandOver(3, last=True)]
    assert rig.tell(steps.HandOverFailed("late")) == [steps.Demote("stopping")]
    (release,) = rig.tell(steps.Demoted())
    assert isinstance(release, steps.Release)
    assert release.successor is None
    rig.tell(steps.Released("no answer"))
    assert rig.machine.state is State.STOPPED


@pytest.mark.parametrize("answer", [steps.Missed(), steps.Unanswered()])
def test_a_stop_waits_for_the_request_under_way(answer: steps.Event) -> None:
    rig = Rig()
    rig.tell(steps.Observed(RELEASED))
    rig.weighed(RELEASED)
    rig.tell(steps.StopAsked(None))
    assert rig.machine.state is State.TAKING
    rig.tell(answer)
    assert rig.machine.state is State.STOPPED


# -- every order of events ----------------------------------------------------------------------------------

VIEWS = (NONE, LIVE, AGAIN, RELEASED, FOR_ME, FOR_THIRD)
PEOPLE = (steps.HandoffAsked(3), steps.StopAsked(None), steps.StopAsked(3), steps.Forced(True))
NODE = (steps.MountUp(), steps.MountGone(), steps.SawTerm(7), steps.RenewNow())
DEPTH = int(os.environ.get("LITEFS_ROLE_DEPTH", "7"))


@dataclass
class Branch:
    """One machine with what is under way around it, and what has happened to it that rules refer to."""

    machine: RoleMachine
    now: int = 10 * SECOND
    call: steps.Take | steps.Renew | steps.Release | None = None
    weigh: View | None = None
    work: tuple[steps.Action, ...] = ()
    open: bool = False
    """The commit gate."""
    holds: bool = False
    """Won, and neither lost nor released since."""
    term: int = 0
    version: str = ""
    seen: int = 0
    """When the present version was seen first."""

    def key(self) -> tuple[object, ...]:
        """Two branches of one key go on in the same way: times count relative to now."""
        times = ("_seen_ns", "_not_before", "_sent_ns", "_renew_at", "_gone_ns", "wake_ns")
        state: list[object] = []
        for name, value in vars(self.machine).items():
            if isinstance(value, Grant):
                state.append(value.deadline_ns - self.now)
            elif name in times and value is not None:
                state.append(max(value - self.now, -10 * SECOND))
            elif name not in ("_out", "_said"):
                state.append(value.version if isinstance(value, View) else value)
        weigh = self.weigh and self.weigh.version
        around = (type(self.call), weigh, tuple(map(type, self.work)), self.open, self.holds)
        return (*state, around, self.term, self.version, max(self.seen - self.now, -10 * SECOND))

    def moves(self) -> list[steps.Event]:
        """All that may happen next."""
        found: list[steps.Event] = [*PEOPLE, *NODE, steps.Silent(), *map(steps.Observed, VIEWS)]
        if self.machine.wake_ns is not None:
            found.append(steps.Tick())
        if self.weigh is not None:
            found += [steps.Weighed(self.weigh.version, standing) for standing in (FINE, BEHIND)]
        match self.call:
            case steps.Take():
                found += [steps.Won(Grant(self.call.term, self.now + TERM_NS, "9")), steps.Missed()]
                found.append(steps.Unanswered())
            case steps.Renew():
                found.append(steps.Renewed(Grant(self.call.grant.term, self.now + TERM_NS, "9")))
                found += [steps.Lost("lost"), steps.Unanswered()]
            case steps.Release():
                found.append(steps.Released())
        match self.work[:1]:
            case (steps.Promote(),):
                found += [steps.Promoted(), steps.PromoteFailed("no")]
            case (steps.Demote(),):
                found.append(steps.Demoted())
            case (steps.HandOver(),):
                found += [steps.CaughtUp(), steps.HandOverFailed("no")]
        return found

    def after(self, event: steps.Event) -> Branch:
        """The branch that ``event`` leads to; AssertionError if a rule is broken on the way."""
        result = copy.copy(self)
        result.machine = copy.copy(self.machine)
        result._around(event)
        for action in result.machine.handle(event, result.now):
            result._perform(action)
        while result.work and isinstance(result.work[0], steps.Follow | steps.Thaw):
            result.work = result.work[1:]
        wake = result.machine.wake_ns
        assert wake is None or wake > result.now, "a timer that fires at once, for ever"
        if result.machine.state in (State.PRIMARY, State.HANDING_OFF):
            assert result.holds, "primary without a lease"
        return result

    def _around(self, event: steps.Event) -> None:
        match event:
            case steps.Tick():
                assert self.machine.wake_ns is not None
                self.now = max(self.now, int(self.machine.wake_ns))
            case steps.Observed(view):
                if self.machine.state in (State.REPLICA, State.TAKING) and view.version != self.version:
                    self.version, self.seen = view.version, self.now
                if self.machine.state in (State.REPLICA, State.TAKING):
                    self.term = max(self.term, view.beat.term if view.beat else 0)
            case steps.SawTerm(term):
                self.term = max(self.term, term)
            case steps.Weighed():
                self.weigh = None
            case steps.Won() | steps.Missed() | steps.Renewed() | steps.Lost() | steps.Unanswered():
                self.call = None
                if isinstance(event, steps.Won | steps.Lost):
                    self.holds = isinstance(event, steps.Won)
                    self.version = ""
            case steps.Released():
                self.call, self.version = None, ""
            case steps.Promoted() | steps.PromoteFailed() | steps.CaughtUp() | steps.HandOverFailed():
                self.work = self.work[1:]
                self.open = self.open or isinstance(event, steps.Promoted | steps.PromoteFailed)
            case steps.Demoted():
                self.work, self.open = self.work[1:], False
                self.version = ""

    def _perform(self, action: steps.Action) -> None:
        match action:
            case steps.Weigh():
                assert self.weigh is None, "weighed twice"
                self.weigh = action.view
            case steps.Take():
                self._check_take(action)
                assert self.call is None, "two requests at a time"
                self.call = action
            case steps.Renew() | steps.Release():
                assert self.call is None, "two requests at a time"
                assert self.holds, "no lease"
                if isinstance(action, steps.Release):
                    assert not self.open, "released while commits go on"
                    assert not any(isinstance(step, steps.Promote) for step in self.work)
                    self.holds = False
                self.call = action
            case steps.Promote():
                assert self.holds
                assert action.grant.term >= self.term, "a higher term was seen"
                self.work += (action,)
            case steps.Extend():
                assert self.holds, "a deadline without a lease"
                assert self.open, "a deadline before it serves"
                assert not any(isinstance(step, steps.Demote) for step in self.work), (
                    "a deadline while leaving"
                )
            case steps.Demote() | steps.HandOver() | steps.Follow() | steps.Thaw():
                assert not isinstance(action, steps.Follow) or not self.holds, "a primary follows nobody"
                self.work += (action,)

    def _check_take(self, take: steps.Take) -> None:
        assert take.term > self.term, "terms grow"
        assert self.machine.state is State.TAKING
        beat = take.view.beat
        assert take.view.version == self.version, "the view is not the last one"
        if beat is None or (beat.released and beat.successor in (None, ME)):
            return
        needed = SUCCESSOR_NS if beat.released else TERM_NS + MARGIN_NS
        assert self.now >= self.seen + needed, "it has not stood still for long enough"

    def leave(self) -> None:
        """Asked to stop, with everything else answered, the node stops soon, with nothing held."""
        branch = self.after(steps.StopAsked(None))
        for _ in range(12):
            if branch.machine.state is State.STOPPED:
                assert not branch.holds
                assert not branch.open or branch.work
                return
            event: steps.Event | None = None
            match branch.call, branch.work[:1]:
                case steps.Take(), _:
                    event = steps.Won(Grant(branch.call.term, branch.now, "9"))  # type: ignore[union-attr]
                case steps.Release(), _:
                    event = steps.Released()
                case _, (steps.Promote(),):
                    event = steps.Promoted()
                case _, (steps.HandOver(),):
                    event = steps.CaughtUp()
                case _, (steps.Demote(),):
                    event = steps.Demoted()
                case steps.Renew(), _:
                    event = steps.Unanswered()
            assert event is not None, f"nothing is under way in {branch.machine.state}, but it does not stop"
            branch = branch.after(event)
        raise AssertionError(f"does not stop: {branch.machine.state}")


def starts() -> list[Branch]:
    """A machine that was just made, and a primary whose promotion has just ended."""
    fresh = Branch(RoleMachine(ME, MINE, TIMING, candidate=True))
    primary = fresh
    path: list[steps.Event] = [steps.MountUp(), steps.Observed(RELEASED), steps.Weighed("6", FINE)]
    path += [steps.Won(Grant(5, fresh.now + TERM_NS, "9")), steps.Promoted()]
    for event in path:
        primary = primary.after(event)
    assert primary.machine.state is State.PRIMARY
    return [fresh, primary]


def test_every_order_of_events() -> None:
    """Breadth first; branches that can only go on in the same way are one."""
    level = starts()
    known = {branch.key() for branch in level}
    states: Counter[State] = Counter()
    for _ in range(DEPTH):
        following = []
        for branch in level:
            for event in branch.moves():
                reached = branch.after(event)
                key = reached.key()
                if key not in known:
                    known.add(key)
                    following.append(reached)
                    states[reached.machine.state] += 1
                    reached.leave()
        level = following
    print(f"{len(known)} situations: {dict(states)}")
    assert set(states) == set(State)
