"""HALT while the primary changes: what its holder was told is in the new primary's history, nothing is on the
holder alone, and the lock ends with the role that gave it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.types import Point
from tests.support.clients.workload import INVARIANT, INVARIANT_HOLDS, schema
from tests.support.elected import DATABASE, Elected, lease_settings
from tests.support.node import Node, pages_equal, wait_equal
from tests.support.processes import Client, assert_none_hangs, pause, wait_until

LEDGER = "CREATE TABLE ledger(writer TEXT, n INTEGER, data BLOB, PRIMARY KEY(writer, n))"
VOID_SECONDS = 25.0
"""A failover, a lock, and commits; less than a lock lasts that nobody ends (30 s)."""


@pytest.fixture
def cluster(tmp_path: Path, make_node: Callable[..., Node]) -> Iterator[Elected]:
    with lease_settings("directory", tmp_path) as lease:
        yield Elected(make_node, lease, replication={"sync": "any"})


class Holder:
    """A client on one node that takes the lock, commits, gives it up, and begins again."""

    def __init__(self, cluster: Elected, name: str, make_client: Callable[..., Client]) -> None:
        self.name = name
        self._acks = cluster.nodes[name].root / "acks"
        self._acks.touch()
        self.client = make_client("halted_ledger", cluster.nodes[name].path(DATABASE), self._acks, "holder")

    def acknowledged(self) -> set[int]:
        text = self._acks.read_text("ascii")
        return {int(line) for line in text[: text.rfind("\n") + 1].split()}

    def await_commits(self, cluster: Elected) -> None:
        """Until some more are acknowledged."""
        wanted = len(self.acknowledged()) + 15

        def look() -> bool:
            return len(self.acknowledged()) >= wanted

        try:
            wait_until(look, VOID_SECONDS, f"{self.name} commits under HALT")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.client.call('progress')}\n{cluster.logs()}") from None


def processes(cluster: Elected, name: str) -> list[int]:
    """The node process, then the fs process."""
    node = cluster.nodes[name]
    assert node.process is not None
    return [pid for pid in (node.process.pid, node.fs_pid()) if pid is not None]


def strike(cluster: Elected, change: str, primary: str, holder: str) -> None:
    """End the role of the primary in that way."""
    if change == "kill":
        cluster.nodes[primary].kill("both")
    elif change == "pause":
        pause(*processes(cluster, primary))
    else:
        third = next(name for name in cluster.nodes if name not in (primary, holder))
        cluster.nodes[third if change == "hand over to the third" else holder].post("/promote")


def restore(cluster: Elected, change: str, primary: str) -> None:
    """Have the old primary take part again."""
    if change == "kill":
        cluster.nodes[primary].start()
    elif change == "pause":
        for pid in processes(cluster, primary):
            os.kill(pid, signal.SIGCONT)


def check(cluster: Elected, holder: Holder) -> None:
    """At rest: all nodes are equal, whole, and hold what the holder was told."""
    primary = cluster.nodes[cluster.await_following()]
    for node in cluster.nodes.values():
        if node is not primary:
            wait_equal(primary, node, DATABASE, VOID_SECONDS)
            pages_equal(primary, node, DATABASE)
    with Client("sql", "sqlite3") as reader:
        reader.call("open", path=primary.path(DATABASE), readonly=True)
        assert reader.call("execute", statement=INVARIANT) == [[INVARIANT_HOLDS]]
        held = {row[0] for row in reader.call("execute", 30, statement="SELECT n FROM ledger")}
    missing = sorted(holder.acknowledged() - held)
    assert not missing, f"acknowledged and lost: {missing[:20]}\n{cluster.logs()}"


def check_set_aside(cluster: Elected, name: str) -> None:
    """What the holder gave up a primary had accepted, and gave up too: it was lost before others had it."""
    others = [log for node in cluster.nodes if node != name for log in logs_set_aside(cluster, node)]
    for log in logs_set_aside(cluster, name):
        with LogReader(log) as reader:
            tip = reader.tip()
        assert any(has(other, tip) for other in others), f"the holder alone had transaction {tip}"


def logs_set_aside(cluster: Elected, name: str) -> list[Path]:
    """The logs that a node keeps of histories that were not gone on with."""
    return list((DataDir(cluster.nodes[name].data).path / "lost").glob("*-diverged"))


def has(log: Path, point: Point) -> bool:
    """Whether ``point`` is in that log."""
    with LogReader(log) as reader:
        return reader.point_at(point.txid) == point


def test_the_primary_changes_under_a_holder(cluster: Elected, make_client: Callable[..., Client]) -> None:
    """It hands over to the third node, is killed, is paused beyond its lease, hands over to the holder."""
    first = cluster.await_following()
    with Client("sql", "sqlite3") as sql:
        sql.call("open", path=cluster.nodes[first].path(DATABASE))
        sql.call("script", 30, statements=[*schema(), LEDGER])
    name = cluster.replicas()[0]
    wait_equal(cluster.nodes[first], cluster.nodes[name], DATABASE)
    holder = Holder(cluster, name, make_client)
    holder.client.call("resume")
    for change in ("hand over to the third", "kill", "pause", "hand over to the holder"):
        primary = cluster.await_following()
        if primary == name:
            cluster.nodes[name].post("/handoff")
            primary = cluster.await_primary(but=name)
            cluster.await_following()
        holder.await_commits(cluster)
        began = time.monotonic()
        strike(cluster, change, primary, name)
        new = cluster.await_primary(but=primary)
        holder.await_commits(cluster)
        print(f"{change}: {new} instead of {primary}, and commits, after {time.monotonic() - began:.1f} s")
        restore(cluster, change, primary)
        holder.client.call("pause", VOID_SECONDS)
        check(cluster, holder)
        holder.client.call("resume")
    print(len(holder.acknowledged()), "acknowledged;", holder.client.call("progress"))
    holder.client.close()
    check_set_aside(cluster, name)
    assert_none_hangs()
