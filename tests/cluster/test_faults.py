"""Faults by a seeded schedule over three nodes, with applications that write and read: what they were told
must hold. See tests/faults.

``LITEFS_SEED`` repeats a schedule; ``LITEFS_SOAK`` is the number of faults, which last up to 30 s then.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import kept
from tests.faults.checker import (
    late_answers,
    lost_violations,
    register_violations,
    session_violations,
    set_violations,
)
from tests.faults.cluster import Cluster
from tests.faults.history import Write, load
from tests.faults.schedule import LOSING, Schedule, Strike
from tests.faults.terms import Terms
from tests.support.netns import Network
from tests.support.node import Node
from tests.support.processes import Client, assert_none_hangs

SOAK = int(os.environ.get("LITEFS_SOAK", "0"))
FAULTS = {1: SOAK or 15, "off": SOAK // 3 or 5}
"""By ``replication.sync``."""
LONGEST_SECONDS = 30.0 if SOAK else 8.0


@pytest.mark.timeout(0 if SOAK else 420)
@pytest.mark.parametrize("sync", [1, "off"], ids=["sync-1", "sync-off"])
def test_what_was_acknowledged_survives_a_schedule_of_faults(
    tmp_path: Path,
    network: Network,
    make_node: Callable[..., Node],
    make_client: Callable[..., Client],
    sync: int | str,
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print(f"LITEFS_SEED={seed}, sync: {sync}")
    cluster = Cluster(tmp_path, network, make_node, make_client, {"sync": sync}, seed)
    cluster.start()
    first = [Strike(fault) for fault in LOSING] if sync == "off" else []
    schedule = Schedule(random.Random(seed), LONGEST_SECONDS)
    strikes = itertools.chain(first, schedule.strikes(FAULTS[sync] - len(first)))
    for number, strike in enumerate(strikes):
        print(f"{number + 1}: {strike}", flush=True)
        cluster.strike(strike)
    cluster.end_writes()
    contents = cluster.converge()
    assert_none_hangs()
    writes, reads = load(cluster.history)
    terms = Terms(cluster.reigns())
    print(summary(writes, len(reads), terms, cluster.counts))
    found = late_answers(writes, terms, cluster.pauses)
    lost = {name: given_up(cluster, name) for name in contents} if sync == "off" else {}
    for name, present in contents.items():
        own = [write for write in writes if write.workload == name]
        found += lost_violations(own, present, lost.get(name, ()))
        if name == "register":
            found += register_violations(own, "", present[0], lost.get(name))
        elif name != "session":
            found += set_violations(own, present, lost.get(name))
    found += session_violations(reads, lost.get("session", ()))
    if sync == "off":
        count = sum(len(lost[name] - set(contents[name])) for name in ("wal", "delete"))
        print(f"{count} rows were given up and kept")
        assert count or found, "this schedule did not make anybody give up anything"
    assert not found, "\n".join([f"{len(found)} violations, LITEFS_SEED={seed}", *found[:50]])


def given_up(cluster: Cluster, name: str) -> set[str]:
    """What all nodes keep of transactions that are not part of the history that the cluster went on with."""
    directories = [node.data for node in cluster.nodes.values()]
    remaining = set().union(*(kept.history(data, f"{name}.db") for data in directories))
    return set().union(*(kept.given_up(data, f"{name}.db", remaining) for data in directories))


def summary(writes: list[Write], reads: int, terms: Terms, faults: Counter[str]) -> str:
    """What happened, in figures."""
    outcomes = Counter(write.outcome for write in writes)
    times = sorted(write.returned for write in writes if write.outcome == "ok")
    longest = max(after - before for before, after in itertools.pairwise(times))
    return (
        f"faults: {', '.join(f'{count} {kind}' for kind, count in sorted(faults.items()))}\n"
        f"writes: {outcomes['ok']} acknowledged, {outcomes['failed']} failed, {outcomes['unknown']} unknown; "
        f"{reads} reads of sessions; {terms.count - 1} takeovers; "
        f"longest time without an acknowledged write {longest:.2f} s"
    )
