"""HALT while replication is synchronous: its holder counts as a replica, and waits for the others."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from litefs.store.paths import DataDir
from litefs.store.sums import SumsFile
from litefs.types import Position
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, pause, wait_until

TIMEOUT = 2.0
"""Of the replicas: who waits for one in vain waits so long."""
BIG = "INSERT INTO t SELECT randomblob(4000) FROM (WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n"
BIG += " WHERE i<600) SELECT i FROM n)"


def state(node: Node) -> tuple[Position, bool]:
    """A node's last transaction, and whether its log has it durably: from what its processes share."""
    with closing(SumsFile(DataDir(node.data).database_dir("app.db").sums)) as file:
        position = Position(*file.sums.snapshot()[:2])
        return position, file.sums.synced_txid >= position.txid


def rows(client: Client) -> int:
    return int(client.call("execute", statement="SELECT count(*) FROM t")[0][0])


@pytest.fixture
def nodes(request: pytest.FixtureRequest, make_node: Callable[..., Node]) -> list[Node]:
    """A primary and as many replicas as a commit needs, all in sync, with a table."""
    count = request.param
    primary = make_node("primary", replication={"sync": count}).start()
    replicas = [make_node(f"replica{n + 1}", primary=primary).start() for n in range(count)]

    def in_sync() -> bool:
        return len((primary.info() or {}).get("inSync", ())) == count

    wait_until(in_sync, 30, "the replicas are in sync", 0.05)
    with Client("sql", "sqlite3") as sql:
        sql.call("open", path=primary.path("app.db"))
        sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
    for replica in replicas:
        wait_present(replica, "app.db")
        wait_equal(primary, replica, "app.db")
    return [primary, *replicas]


@pytest.mark.parametrize("nodes", [1, 2], indirect=True)
def test_the_holder_acknowledges_what_it_writes_itself(
    nodes: list[Node], make_client: Callable[..., Client]
) -> None:
    """The primary's answer waits for this replica, and this replica's commit for the primary's answer."""
    primary, holder, *others = nodes
    halting = make_client("halting")
    halting.call("halt", 30, path=holder.path("app.db"))
    halting.call("open", path=holder.path("app.db"))
    times = []
    for statement in ["INSERT INTO t VALUES(1)"] * 10 + [BIG] * 2:
        began = time.monotonic()
        halting.call("execute", 30, statement=statement)
        times.append(time.monotonic() - began)
        for node in (holder, *others):
            assert state(node) == (state(primary)[0], True)
    print(f"commits under HALT took up to {max(times):.3f} s")
    assert max(times) < TIMEOUT, "it waited until the holder was taken for silent"
    halting.call("unhalt", 30)
    with Client("sql", "sqlite3") as sql:
        sql.call("open", path=primary.path("app.db"))
        sql.call("execute", statement="INSERT INTO t VALUES(3)")
        assert sql.call("execute", statement="SELECT count(*) FROM t") == [[1211]]
    for node in (holder, *others):
        wait_equal(primary, node, "app.db")
        pages_equal(primary, node, "app.db")


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_a_commit_that_another_replica_does_not_get_is_not_acknowledged(
    nodes: list[Node], make_client: Callable[..., Client]
) -> None:
    """The holder has it, the primary too: its outcome is unknown to its client, and the same everywhere."""
    primary, holder, other = nodes
    halting = make_client("halting")
    halting.call("halt", 30, path=holder.path("app.db"))
    halting.call("open", path=holder.path("app.db"))
    halting.call("execute", 30, statement="INSERT INTO t VALUES(1)")
    processes = [pid for pid in (other.fs_pid(), other.process and other.process.pid) if pid]
    pause(*processes)
    try:
        with pytest.raises(ClientError, match="disk I/O error"):
            halting.call("execute", 30, statement="INSERT INTO t VALUES(2)")
        position, is_durable = state(holder)
        assert position == state(primary)[0] != state(other)[0]
        assert is_durable
    finally:
        for pid in reversed(processes):
            os.kill(pid, signal.SIGCONT)
    halting.call("close", 30)
    with contextlib.suppress(ClientError):  # the lock is lost; its renewal may not have found out yet
        halting.call("unhalt", 30)
    for node in (holder, other):
        assert wait_equal(primary, node, "app.db") == position
    for node in nodes:  # positions are those of the logs: readers see a commit that was not completed once
        reader = make_client("sql", "sqlite3")  # it was published
        reader.call("open", path=node.path("app.db"), readonly=True)
        wait_until(lambda sql=reader: rows(sql) == 2, 10, f"readers of {node.name} see both rows")
        reader.close()
    for node in (holder, other):
        pages_equal(primary, node, "app.db")
