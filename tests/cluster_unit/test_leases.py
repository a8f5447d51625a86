"""What every lease with a store holds, with nodes in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import trio

from litefs.clock import boottime_ns
from litefs.cluster.calls import Calls
from litefs.cluster.lease import Beat, PrimaryInfo
from tests.support.leases import TIMING, open_lease
from tests.support.processes import Client, ClientError, ClientStuck, pause

Contender = Callable[[str], Client]

SLACK = 1.5
"""Seconds that a busy machine may take for what needs none."""


def lead(contender: Contender, name: str) -> Client:
    """A node that holds the lease."""
    node = contender(name)
    node.call("observe", 20)
    assert node.call("acquire") is not None
    return node


def test_of_many_that_see_a_free_lease_one_gets_it(contender: Contender) -> None:
    nodes = [contender(f"node{number}") for number in range(4)]
    assert [node.call("observe", 20)["held"] for node in nodes] == [False] * 4
    for node in nodes:
        node.send("acquire")
    terms = [node.answer() for node in nodes]
    assert sorted(terms, key=str) == [1, None, None, None]
    winner = f"node{terms.index(1)}"
    for node in nodes:
        seen = node.call("observe")
        assert (seen["held"], seen["term"], seen["hostname"]) == (True, 1, winner)


def test_each_term_is_won_once(contender: Contender) -> None:
    nodes = [contender(f"node{number}") for number in range(3)]
    for node in nodes:
        node.send("take_turns", seconds=2)
    won = sorted(term for node in nodes for term in node.answer(30))
    assert len(won) >= 5
    assert won == list(range(1, len(won) + 1)), "terms follow each other, and none was won twice"


def test_a_renewal_moves_the_deadline_and_the_version(contender: Contender) -> None:
    primary, replica = lead(contender, "primary"), contender("replica")
    before = replica.call("observe", 20)
    assert TIMING.term - SLACK < primary.call("renew", txid=7) <= TIMING.term
    after = replica.call("observe")
    assert after["version"] != before["version"]
    assert (after["term"], after["held"], after["hostname"]) == (1, True, "primary")


def test_a_deadline_counts_from_before_the_request(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the answer comes."""
    late = 0.2
    run = Calls.run

    async def slowly(calls: Calls, *arguments: Any) -> Any:
        result = await run(calls, *arguments)
        await trio.sleep(late)
        return result

    async def main() -> None:
        lease = open_lease(store, "key")
        beat = Beat(1, 1, PrimaryInfo("a", "http://a"))
        grant = await lease.acquire(await lease.observe(), beat)
        for _ in range(2):
            assert grant is not None
            assert grant.deadline_ns - TIMING.term * 1e9 <= boottime_ns() - late * 1e9
            grant = await lease.renew(grant, beat)
        await lease.aclose()

    monkeypatch.setattr(Calls, "run", slowly)
    trio.run(main)


def test_a_beat_that_went_on_cannot_be_claimed(contender: Contender) -> None:
    primary, candidate = lead(contender, "primary"), contender("candidate")
    candidate.call("observe", 20)
    primary.call("renew")
    assert candidate.call("claim") is None
    assert primary.call("renew") > 0


def test_only_a_silent_primary_is_taken_over_and_after_its_deadline(contender: Contender) -> None:
    primary, candidate = lead(contender, "primary"), contender("candidate")
    primary.send("hold", seconds=20, every=TIMING.renew)
    candidate.send("take_over", seconds=20)
    with pytest.raises(ClientStuck):
        candidate.answer(TIMING.term + 2 * TIMING.margin)
    pause(primary.process.pid)
    taken = candidate.answer(TIMING.term + TIMING.margin + 2 + SLACK)
    assert taken["term"] == 2
    os.kill(primary.process.pid, signal.SIGCONT)
    deadlines = primary.answer(20)
    assert deadlines[-1] < taken["had"], "its last deadline had passed when the lease changed hands"
    with pytest.raises(ClientError, match="LeaseLost"):
        primary.call("renew")
    primary.call("release")
    seen = candidate.call("observe")
    assert (seen["held"], seen["term"], seen["hostname"]) == (True, 2, "candidate")


def test_killed_in_the_midst_of_renewals_it_is_taken_over_in_time(contender: Contender) -> None:
    primary, candidate = lead(contender, "primary"), contender("candidate")
    primary.send("hold", seconds=20, every=0)
    candidate.send("take_over", seconds=20)
    with pytest.raises(ClientStuck):
        candidate.answer(1)
    primary.close()
    taken = candidate.answer(TIMING.term + TIMING.margin + 2 + SLACK)
    assert taken["term"] == 2
    assert candidate.call("renew") > 0


def test_of_many_claims_one_succeeds(contender: Contender) -> None:
    lead(contender, "primary").close()
    nodes = [contender(f"node{number}") for number in range(3)]
    for node in nodes:
        assert node.call("observe", 20)["held"]
    for node in nodes:
        node.send("claim")
    assert sorted([node.answer(20) for node in nodes], key=str) == [2, None, None]


def test_a_released_lease_is_taken_at_once(contender: Contender) -> None:
    primary, candidate = lead(contender, "primary"), contender("candidate")
    primary.call("renew", txid=3)
    primary.call("release")
    seen = candidate.call("observe", 20)
    assert (seen["held"], seen["term"], seen["hostname"]) == (False, 1, "primary")
    assert candidate.call("acquire") == 2
    with pytest.raises(ClientError, match="LeaseLost"):
        primary.call("renew")


def test_of_many_proposals_one_becomes_the_clusters_id(contender: Contender) -> None:
    nodes = [contender(f"node{number}") for number in range(3)]
    for number, node in enumerate(nodes):
        node.send("cluster_id", proposal=f"LFSC{number:016X}")
    told = {node.answer(20) for node in nodes}
    assert len(told) == 1
    assert told == {nodes[0].call("cluster_id", proposal="LFSC" + "F" * 16)}
