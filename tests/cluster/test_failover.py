"""Three nodes with mounts elect their primary: it is killed, stopped, or asked to hand over.

The bars are of one round each, measured from before what causes the change to a client's next acknowledged
row; ``benchmarks/failover.py`` gives percentiles of many.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.elected import LEASES, Change, Elected, lease_settings
from tests.support.node import Node, wait_present
from tests.support.processes import pause, wait_until

ROUNDS = int(os.environ.get("LITEFS_SOAK", "2"))
HANDOFFS = ROUNDS + 1
KILLED_SECONDS = 8.0
"""The promise: from a kill -9 of the primary to the next acknowledged write, 99 of 100 times."""
PLANNED_SECONDS = 1.0
"""The promise: no write takes longer in a planned change, tried again where it was refused. Where tests share
their CPUs one round may; the median says whether anything waits that need not."""


@pytest.fixture(params=LEASES)
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, make_node: Callable[..., Node]
) -> Iterator[Elected]:
    with lease_settings(request.param, tmp_path) as lease:
        made = Elected(make_node, lease)
        try:
            yield made
        finally:
            made.close()


def told(what: str, changes: list[Change]) -> float:
    """Print what the bars do not show; the median of the longest time that a row took in each change."""
    print(f"{what}: " + ", ".join(f"{one.seconds:.2f} s ({one.failures} attempts)" for one in changes))
    return statistics.median(change.longest_row for change in changes)


def test_a_primary_is_killed_hands_over_and_stops(cluster: Elected) -> None:
    cluster.write()
    cluster.await_rows()
    killed = [cluster.kill() for _ in range(ROUNDS)]
    told("kill -9 to the next acknowledged row", killed)
    assert max(change.seconds for change in killed) <= KILLED_SECONDS
    handed = [cluster.hand_off() for _ in range(HANDOFFS)]
    assert told("handoff to the next acknowledged row", handed) <= PLANNED_SECONDS
    node = cluster.nodes[cluster.await_following()]
    cluster.await_rows()
    stopped = cluster.change(node.stop)
    told("SIGTERM to the next acknowledged row", [stopped])
    assert stopped.seconds < KILLED_SECONDS / 4, "the lease was not passed on"
    assert "level=ERROR" not in node.log_tail(20)
    node.start()
    cluster.check()


@pytest.mark.parametrize("cluster", ["directory"], indirect=True)
def test_a_removal_right_before_a_kill_keeps_nobody_from_winning(cluster: Elected) -> None:
    """The last beat still names the database, which nobody has any more."""
    primary = cluster.nodes[cluster.await_following()]
    with closing(sqlite3.connect(primary.path("gone.db"), isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t(a)")
    others = [node for node in cluster.nodes.values() if node is not primary]
    for node in others:
        wait_present(node, "gone.db")
    time.sleep(1.2)  # a renewal names it
    os.unlink(primary.path("gone.db"))
    for node in others:
        wait_until(lambda node=node: not os.path.exists(node.path("gone.db")), 5, "the removal", 0.005)
    assert cluster.change(lambda: primary.kill("both")).seconds <= KILLED_SECONDS
    assert not any(os.path.exists(node.path("gone.db")) for node in others)


@pytest.mark.parametrize("cluster", ["directory"], indirect=True)
def test_a_primary_whose_fs_process_hangs_is_followed_by_another(cluster: Elected) -> None:
    name = cluster.await_following()
    stuck = cluster.nodes.pop(name)
    pid = stuck.fs_pid()
    assert pid is not None
    pause(pid)
    try:
        cluster.await_primary()
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.nodes[name] = stuck
    cluster.await_following()
    assert cluster.await_primary() != name
    cluster.write()
    cluster.await_rows()
    cluster.check()
