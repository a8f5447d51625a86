"""Synchronous replication with a static lease: what is acknowledged is durable on the replicas, whatever
stops.

``LITEFS_SEED`` repeats the random choices of a run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.store.sums import SumsFile
from litefs.types import Point
from tests.support.clients.workload import schema
from tests.support.node import Node, pages_equal, wait_equal
from tests.support.processes import Client, ClientError, pause, wait_until

TIMEOUT = 2.0
BIG = """
    WITH r(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM r WHERE n < 600)
    INSERT INTO t SELECT randomblob(4000) FROM r
"""
"""More than 1 MiB: such a commit is logged in a thread."""
SLOW = 30.0
"""Bound of one call of a client: a commit may be held, and this machine may be busy."""


class Cluster:
    """A primary and its replicas; ``replication`` is the section of litefs.yml."""

    def __init__(self, make_node: Callable[..., Node], replicas: int, **replication: Any) -> None:
        self.primary = make_node("primary", replication=replication).start()
        self.replicas = [make_node(f"replica{n + 1}", primary=self.primary) for n in range(replicas)]
        for replica in self.replicas:
            replica.start()
        self.wait_in_sync(replicas)

    def in_sync(self) -> int:
        return len((self.primary.info() or {}).get("inSync", ()))

    def wait_in_sync(self, count: int) -> None:
        wait_until(lambda: self.in_sync() == count, SLOW, f"{count} replicas in sync", 0.05)

    def signal(self, replica: Node, number: signal.Signals) -> None:
        """To both processes of a replica, the fs process first."""
        assert replica.process is not None
        fs_pid = replica.fs_pid()
        assert fs_pid is not None
        for pid in (fs_pid, replica.process.pid):
            if number == signal.SIGSTOP:
                pause(pid)
            else:
                os.kill(pid, number)


def durable(node: Node, name: str) -> int:
    """The last transaction that a node's log has durably."""
    with closing(SumsFile(DataDir(node.data).database_dir(name).sums)) as file:
        return file.sums.synced_txid


def point(node: Node, name: str) -> Point:
    """Where a database is, from the file that the node's processes share."""
    with closing(SumsFile(DataDir(node.data).database_dir(name).sums)) as file:
        txid, checksum, *_, digest = file.sums.snapshot()
        return Point(txid, checksum, digest)


@pytest.fixture
def sql(make_client: Callable[..., Client]) -> Client:
    return make_client("sql", "sqlite3")


def run(sql: Client, statement: str) -> list[list[Any]]:
    rows: list[list[Any]] = sql.call("execute", SLOW, statement=statement)
    return rows


def begin(sql: Client, path: str, mode: str = "WAL") -> None:
    sql.call("open", SLOW, path=path)
    run(sql, f"PRAGMA journal_mode={mode}")
    run(sql, "CREATE TABLE t(x)")


@pytest.mark.timeout(180)
def test_every_way_of_committing_waits_until_it_is_durable_on_all_members(
    make_node: Callable[..., Node], sql: Client
) -> None:
    cluster = Cluster(make_node, 2, sync=2)

    def assert_durable(name: str) -> None:
        for replica in cluster.replicas:
            assert durable(replica, name) >= point(cluster.primary, name).txid, f"{replica.name} lacks {name}"

    for mode in ("WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"):
        name = f"{mode}.db".lower()
        begin(sql, cluster.primary.path(name), mode)
        assert_durable(name)
        for n in range(5):
            run(sql, f"INSERT INTO t VALUES({n})")
            assert_durable(name)
        run(sql, BIG)
        assert_durable(name)
    for name in ("delete.db", "persist.db"):
        path = cluster.primary.path(name)
        run(sql, f"ATTACH '{path}' AS {name.removesuffix('.db')}_")
    run(sql, "BEGIN")
    run(sql, "INSERT INTO delete_.t VALUES('both')")
    run(sql, "INSERT INTO persist_.t VALUES('both')")
    run(sql, "COMMIT")
    assert_durable("delete.db")
    assert_durable("persist.db")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("required", [1, 2])
def test_nothing_acknowledged_is_missing_on_a_member_when_the_primary_is_killed(
    required: int, make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", "0")) or random.SystemRandom().randrange(2**31)
    print(f"LITEFS_SEED={seed}")
    chance = random.Random(seed)
    cluster = Cluster(make_node, 2, sync=required)
    primary, sql = cluster.primary, make_client("sql", "sqlite3")
    databases = {"wal.db": "WAL", "delete.db": "DELETE"}
    for name, mode in databases.items():
        sql.call("open", SLOW, path=primary.path(name))
        ledger = "CREATE TABLE ledger(writer TEXT, n INTEGER, data BLOB, PRIMARY KEY(writer, n))"
        sql.call("script", SLOW, statements=[f"PRAGMA journal_mode={mode}", *schema(), ledger])
    sql.call("close", SLOW)
    acks = {name: primary.root / f"{name}.acks" for name in databases}
    for name, path in acks.items():
        path.touch()
        make_client("ledger", "sqlite3", primary.path(name), path, "w")
    wait_until(lambda: all(len(path.read_text()) > 40 for path in acks.values()), SLOW, "commits")
    time.sleep(chance.random())
    primary.kill("both")
    for name, path in acks.items():
        text = path.read_text()
        acknowledged = {int(line) for line in text[: text.rfind("\n") + 1].split()}
        assert acknowledged
        for replica in cluster.replicas:
            have = point(replica, name)
            reader = LogReader(DataDir(primary.data).database_dir(name).log)
            assert reader.seek(have), f"{replica.name} is at {have}, where the primary never was"
            reader.close()
            sql.call("open", SLOW, path=replica.path(name), readonly=True)
            rows = {row[0] for row in run(sql, "SELECT n FROM ledger")}
            assert acknowledged <= rows, f"{replica.name} lacks {sorted(acknowledged - rows)} of {name}"
            sql.call("close", SLOW)


@pytest.mark.timeout(180)
def test_a_silent_member_is_left_out_and_comes_back(make_node: Callable[..., Node], sql: Client) -> None:
    cluster = Cluster(make_node, 2, sync=1)
    begin(sql, cluster.primary.path("a.db"))
    frozen = cluster.replicas[0]
    cluster.signal(frozen, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        run(sql, "INSERT INTO t VALUES('held')")
        assert time.monotonic() - begun > TIMEOUT / 2, "it was answered without a member"
        assert cluster.in_sync() == 1
        run(sql, "INSERT INTO t VALUES('not held')")
        assert durable(cluster.replicas[1], "a.db") == point(cluster.primary, "a.db").txid
    finally:
        cluster.signal(frozen, signal.SIGCONT)
    cluster.wait_in_sync(2)
    run(sql, "INSERT INTO t VALUES('both')")
    assert durable(frozen, "a.db") == point(cluster.primary, "a.db").txid
    assert len(run(sql, "SELECT * FROM t")) == 3


@pytest.mark.timeout(180)
def test_too_few_replicas_refuse_until_they_are_back(make_node: Callable[..., Node], sql: Client) -> None:
    off = {"name": "off*", "sync": "off"}
    cluster = Cluster(make_node, 1, sync="any", databases=[off])
    primary, replica = cluster.primary, cluster.replicas[0]
    path = primary.path("a.db")
    begin(sql, path)
    run(sql, "INSERT INTO t VALUES(1)")
    cluster.signal(replica, signal.SIGSTOP)
    try:
        with pytest.raises(ClientError, match="disk I/O"):  # in the log already: outcome unknown
            run(sql, "INSERT INTO t VALUES(2)")
        before = point(primary, "a.db")
        for _ in range(3):
            with pytest.raises(ClientError, match="disk I/O"):
                run(sql, "INSERT INTO t VALUES(3)")
        assert point(primary, "a.db") == before, "a refused commit was logged"
        assert cluster.in_sync() == 0
        begin(sql, primary.path("off.db"))
        run(sql, "INSERT INTO t VALUES(1)")
    finally:
        cluster.signal(replica, signal.SIGCONT)
    cluster.wait_in_sync(1)
    sql.call("open", SLOW, path=path)
    run(sql, "INSERT INTO t VALUES(4)")
    rows = {row[0] for row in run(sql, "SELECT x FROM t")}
    assert {1, 4} <= rows <= {1, 2, 4}
    assert durable(replica, "a.db") == point(primary, "a.db").txid
    sql.call("close", SLOW)
    wait_equal(primary, replica, "a.db")
    pages_equal(primary, replica, "a.db")


@pytest.mark.timeout(180)
def test_with_degrade_commits_go_on_alone(make_node: Callable[..., Node], sql: Client) -> None:
    cluster = Cluster(make_node, 1, sync=1, **{"on-shortage": "degrade"})
    primary, replica = cluster.primary, cluster.replicas[0]
    begin(sql, primary.path("a.db"))
    run(sql, "INSERT INTO t VALUES(1)")
    assert durable(replica, "a.db") == point(primary, "a.db").txid
    replica.kill("both")
    for n in range(2, 7):
        run(sql, f"INSERT INTO t VALUES({n})")
    wait_until(lambda: cluster.in_sync() == 0, SLOW, "the killed replica is left out")
    replica.start()
    cluster.wait_in_sync(1)
    run(sql, "INSERT INTO t VALUES(7)")
    assert durable(replica, "a.db") == point(primary, "a.db").txid


@pytest.mark.timeout(180)
def test_a_new_database_of_an_old_name_waits_as_well(make_node: Callable[..., Node], sql: Client) -> None:
    cluster = Cluster(make_node, 1, sync=1)
    primary, replica = cluster.primary, cluster.replicas[0]
    path = primary.path("a.db")
    for number in range(5):
        begin(sql, path)
        for n in range(10 - number):
            run(sql, f"INSERT INTO t VALUES({n})")
            assert durable(replica, "a.db") == point(primary, "a.db").txid
        sql.call("close", SLOW)
        primary.files("unlink", path=path)


@pytest.mark.timeout(180)
def test_a_new_fs_process_goes_on_waiting(make_node: Callable[..., Node], sql: Client) -> None:
    cluster = Cluster(make_node, 1, sync=1)
    primary, replica = cluster.primary, cluster.replicas[0]
    begin(sql, primary.path("a.db"))
    run(sql, "INSERT INTO t VALUES(1)")
    pid = primary.fs_pid()
    primary.kill("fs")
    primary.wait_recovered(pid)
    sql.call("open", SLOW, path=primary.path("a.db"))
    for n in range(2, 12):
        run(sql, f"INSERT INTO t VALUES({n})")
        assert durable(replica, "a.db") == point(primary, "a.db").txid
    assert len(run(sql, "SELECT x FROM t")) == 11
