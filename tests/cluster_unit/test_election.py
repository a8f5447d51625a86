"""The driver of the role machine, with leases in a directory and small members in one process."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litefs.cluster.election import HAND_OVER_SECONDS, Election
from litefs.cluster.lease import Beat, Grant, Lease, LeaseUnavailable, PrimaryInfo, Timing, View
from litefs.cluster.role import State
from litefs.errors import HandoffFailed, NotEligible, NotPrimary
from tests.support.leases import open_lease
from tests.support.members import SmallMember, read_acks

TIMING = Timing(term=0.9, renew=0.3, margin=0.2)
SECONDS = 15.0
"""Bound of each test."""


class Gated:
    """A lease whose store a test can silence."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.timing = lease.timing
        self.silent = False
        self.renewals = 0
        self.released: list[Beat] = []

    async def _reach(self) -> None:
        await trio.sleep(0.02)
        if self.silent:
            raise LeaseUnavailable("silent")

    async def observe(self) -> View:
        await self._reach()
        return await self._lease.observe()

    async def changed(self, view: View, seconds: float) -> View:
        await self._reach()
        return await self._lease.changed(view, min(seconds, 0.2))

    async def acquire(self, view: View, beat: Beat) -> Grant | None:
        await self._reach()
        return await self._lease.acquire(view, beat)

    async def claim(self, view: View, beat: Beat) -> Grant | None:
        await self._reach()
        return await self._lease.claim(view, beat)

    async def renew(self, grant: Grant, beat: Beat) -> Grant:
        await self._reach()
        renewed = await self._lease.renew(grant, beat)
        self.renewals += 1
        return renewed

    async def release(self, grant: Grant, beat: Beat) -> None:
        await self._reach()
        self.released.append(beat)
        await self._lease.release(grant, beat)

    async def cluster_id(self, proposal: str) -> str:
        return await self._lease.cluster_id(proposal)

    async def aclose(self) -> None:
        await self._lease.aclose()


class Node:
    """A member, its election and its lease."""

    def __init__(
        self, directory: Path, name: str, node_id: int, *, candidate: bool = True, timing: Timing = TIMING
    ) -> None:
        self.member = SmallMember(directory, name, node_id)
        self.lease = Gated(open_lease(f"file://{directory}/lease", "key", timing))
        info = PrimaryInfo(name, f"http://{name}")
        self.election = Election(self.lease, self.member, node_id, info, candidate=candidate)

    @property
    def state(self) -> State:
        return self.election.state


@asynccontextmanager
async def running(*nodes: Node) -> AsyncGenerator[None]:
    """The nodes; the first one is primary before the others begin."""
    try:
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.election.run)
                nursery.start_soon(node.member.replicate)
                node.election.mounted()
                await until(lambda: nodes[0].state is State.PRIMARY)
            yield
            nursery.cancel_scope.cancel()
    finally:
        for node in nodes:
            node.member.close()


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine, bounded."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        async def bounded() -> None:
            with trio.fail_after(SECONDS):
                await test(**fixtures)

        trio.run(bounded)

    return run


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


def pair(directory: Path) -> tuple[Node, Node]:
    return Node(directory, "a", 1), Node(directory, "b", 2)


@in_trio
async def test_the_first_candidate_leads_and_the_other_follows(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        assert a.member.commit()
        assert not b.member.commit()
        assert a.member.cluster.startswith("LFSC")
        assert a.member.beats[0].term == a.member.term == a.election.term == b.election.term == 1
        await until(lambda: b.member.tokens == a.member.tokens)


@in_trio
async def test_a_handoff_under_writes_loses_nothing_and_is_quick(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    a.member.slow["demote"] = 0.1  # and commits must not go on meanwhile
    async with running(a, b), trio.open_nursery() as writers:
        await until(lambda: b.member.following == "a")
        writers.start_soon(a.member.write, 0.001)
        await trio.sleep(0.3)
        began = trio.current_time()
        await a.election.handoff()
        await until(b.member.commit)
        took = trio.current_time() - began
        writers.cancel_scope.cancel()
        print(f"handoff: {took:.3f} s")
        assert took < 1.0 + TIMING.renew
        assert [call for call in a.member.calls if call != "follow"][-4:] == [
            "hold_requests",
            "freeze",
            "await_target",
            "demote",
        ]
        await until(lambda: a.member.following == "b" and a.member.tokens == b.member.tokens)
        acks = read_acks(tmp_path)
        assert [ack.term for ack in acks] == [1] * (len(acks) - 1) + [2]
        assert len(acks) > 10
        assert {bytes.fromhex(ack.token) for ack in acks} <= set(b.member.tokens)


@in_trio
async def test_a_handoff_to_one_that_does_not_catch_up_leaves_the_primary(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    a.member.fail.add("await_target")
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        with pytest.raises(HandoffFailed, match="await_target fails"):
            await a.election.handoff(2)
        await until(a.member.commit)
        a.member.fail.clear()
        a.member.slow["await_target"] = 3600
        began = trio.current_time()
        with pytest.raises(HandoffFailed, match="not done within"):
            await a.election.handoff(2)
        assert trio.current_time() - began < HAND_OVER_SECONDS + 0.5
        await until(lambda: not a.member.frozen)
        assert a.member.commit()
        with pytest.raises(NotPrimary):
            await b.election.handoff(1)


@in_trio
async def test_a_handoff_needs_somebody(tmp_path: Path) -> None:
    a = Node(tmp_path, "a", 1)
    async with running(a):
        with pytest.raises(HandoffFailed, match="no other candidate"):
            await a.election.handoff()


@in_trio
async def test_a_stop_passes_the_role_on(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        a.member.commit()
        began = trio.current_time()
        await a.election.stop()
        assert a.state is State.STOPPED
        assert not a.member.serving
        assert [beat.successor for beat in a.lease.released] == [2]
        await until(b.member.commit)
        assert trio.current_time() - began < TIMING.term, "nobody waited for the lease to expire"
        await b.election.stop()
        beat = (await b.lease.observe()).beat
        assert beat is not None
        assert beat.released
        assert beat.positions == b.member.positions()


@in_trio
async def test_a_stop_gives_its_successor_more_time_than_a_handoff(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    a.member.slow["await_target"] = 2 * HAND_OVER_SECONDS
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        a.member.commit()
        await a.election.stop()
        assert [beat.successor for beat in a.lease.released] == [2]
        await until(b.member.commit)


@in_trio
async def test_a_silent_store_fences_but_does_not_demote(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        a.lease.silent = b.lease.silent = True
        await until(lambda: not a.member.commit())
        await trio.sleep(2 * (TIMING.term + TIMING.margin))
        assert a.state is State.PRIMARY
        assert not a.member.commit()
        a.lease.silent = b.lease.silent = False
        await until(a.member.commit)
        assert (a.election.term, b.state) == (1, State.REPLICA), "the store's silence cost nobody the role"


@in_trio
async def test_one_that_is_cut_off_is_fenced_before_the_other_takes_over(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        a.lease.silent = True
        while b.state is not State.PRIMARY:
            a.member.commit()
            await trio.sleep(0.01)
        assert not a.member.commit()
        assert b.member.commit()
        assert a.state is State.PRIMARY, "it cannot know"
        a.lease.silent = False
        await until(lambda: a.member.following == "b" and a.member.tokens == b.member.tokens)
        terms = [ack.term for ack in read_acks(tmp_path)]
        assert terms == sorted(terms)


@in_trio
async def test_one_that_is_stuck_leaves_the_role_to_another(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        a.member.stuck = True
        renewals = a.lease.renewals
        await until(lambda: b.state is State.PRIMARY)
        assert a.lease.renewals <= renewals + 1, "one may have been under way"
        assert not a.member.commit()
        a.member.stuck = False
        await until(lambda: a.member.following == "b")


@in_trio
async def test_a_slow_promotion_delays_no_renewal(tmp_path: Path) -> None:
    a = Node(tmp_path, "a", 1)
    a.member.slow["promote"] = 2 * TIMING.term
    async with running(a):
        assert a.lease.renewals >= 4
        assert a.member.commit()


@in_trio
async def test_one_that_cannot_be_promoted_leaves_it_to_the_other(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        b.member.fail.add("promote")
        await a.election.handoff()
        await until(lambda: "promote" in b.member.calls)
        await until(lambda: a.member.following is None and a.member.commit())
        assert a.election.term == 3
        assert not b.member.serving


@in_trio
async def test_a_demotion_that_fails_is_repeated_and_nothing_released_before(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        a.member.fail.add("demote")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.election.handoff)
            await until(lambda: "demote" in a.member.calls)
            await trio.sleep(0.5)
            beat = (await a.lease.observe()).beat
            assert beat is not None
            assert (beat.term, a.lease.released) == (1, [])
            a.member.fail.clear()
        await until(b.member.commit)


@in_trio
async def test_whoever_is_behind_does_not_win_but_by_force(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        b.member.slow["follow"] = 0
        b.member.following = None
        b.member._tell()
        for _ in range(3):
            a.member.commit()
        await a.election.stop()  # nobody is in reach
        await until(lambda: b.election.obstacle != "")
        assert b.election.obstacle == "db: 3 transactions behind"
        with pytest.raises(NotEligible, match="db: 3 transactions behind"):
            await b.election.promote()
        assert b.state is State.REPLICA
        assert await b.election.promote(force=True) == "db: 3 transactions behind"
        assert b.member.commit()
        assert b.election.obstacle == ""


@in_trio
async def test_an_empty_node_does_not_found_a_second_cluster(tmp_path: Path) -> None:
    lease = open_lease(f"file://{tmp_path}/lease", "key", TIMING)
    assert await lease.cluster_id("LFSC0000000000000001") == "LFSC0000000000000001"
    b = Node(tmp_path, "b", 2)
    async with trio.open_nursery() as nursery:
        await nursery.start(b.election.run)
        b.election.mounted()
        await until(lambda: "LFSC0000000000000001" in b.election.obstacle)
        assert "promote" not in b.member.calls
        b.member.join("LFSC0000000000000001")
        await until(lambda: b.state is State.PRIMARY)
        nursery.cancel_scope.cancel()
    b.member.close()


@in_trio
async def test_only_a_candidate_is_promoted(tmp_path: Path) -> None:
    a, b = Node(tmp_path, "a", 1), Node(tmp_path, "b", 2, candidate=False)
    async with running(a, b):
        await until(lambda: b.member.following == "a")
        with pytest.raises(NotEligible, match="not a candidate"):
            await b.election.promote(force=True)
        await a.election.stop()
        await until(lambda: b.member.following is None)
        await trio.sleep(2 * (TIMING.term + TIMING.margin))
        assert b.state is State.REPLICA


@in_trio
async def test_the_in_sync_set_travels_with_renewals(tmp_path: Path) -> None:
    slow = Timing(term=6.0, renew=2.0, margin=0.2)
    a, b = Node(tmp_path, "a", 1, timing=slow), Node(tmp_path, "b", 2, timing=slow)
    async with running(a, b):
        await until(lambda: b.member.following == "a" and a.lease.renewals > 0)
        a.member.sync = (2,)
        began = trio.current_time()
        a.election.renew_now()
        await until(lambda: a.member.beats[-1].in_sync == (2,))
        assert trio.current_time() - began < slow.renew / 2, "at once, not with the next renewal"
        beat = (await a.lease.observe()).beat
        assert beat is not None
        assert beat.in_sync == (2,)
        await a.election.handoff()
        await until(lambda: b.state is State.PRIMARY)
        assert b.member.beats[0].in_sync is None, "positions decide until it serves"
