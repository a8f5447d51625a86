"""The page size changes on the primary: replicas follow, whoever reads there and whatever dies meanwhile."""

from __future__ import annotations

import random
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, spawn, wait_until

SIZES = (512, 1024, 4096, 65536)
CONTENT = "SELECT count(*), sum(length(b)), max(a) FROM t"


def change(client: Client, mode: str, size: int, rng: random.Random) -> Any:
    """VACUUM the open database to a page size in a journal mode, and commit something; its content then."""
    client.call("execute", statement=f"PRAGMA journal_mode={'DELETE' if mode == 'WAL' else mode}")
    client.call("script", statements=[f"PRAGMA page_size={size}", "VACUUM", f"PRAGMA journal_mode={mode}"])
    assert client.call("execute", statement="PRAGMA page_size") == [[size]]
    for _ in range(rng.randrange(3)):
        insert(client, rng)
    return client.call("execute", statement=CONTENT)


def insert(client: Client, rng: random.Random) -> None:
    size = rng.randrange(30_000)
    client.call("execute", statement=f"INSERT INTO t(a, b) VALUES(random(), randomblob({size}))")


def open_new(client: Client, path: str, rng: random.Random, mode: str = "DELETE") -> None:
    client.call("open", path=path, timeout=20)
    statements = [f"PRAGMA journal_mode={mode}", "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)"]
    client.call("script", statements=statements)
    for _ in range(5):
        insert(client, rng)


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def test_open_connections_follow(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client], rng: random.Random
) -> None:
    """Idle ones and one that reads all the time; the replica's mount goes on as it is."""
    primary, replica = primary_and_replica
    fs_pid = replica.fs_pid()
    sql = make_client("sql", "sqlite3")
    open_new(sql, primary.path("app.db"), rng)
    wait_present(replica, "app.db")
    readers = [make_client("sql", driver) for driver in ("sqlite3", "apsw", "sqlite3", "apsw")]
    for number, reader in enumerate(readers):
        reader.call("open", path=replica.path("app.db"), readonly=True, timeout=20)
        reader.call("execute", statement=f"PRAGMA mmap_size={number // 2 << 30}")
        reader.call("execute", statement=CONTENT)
    size = 4096
    for mode in ("DELETE", "WAL", "TRUNCATE", "MEMORY", "WAL", "PERSIST", "OFF", "DELETE"):
        size = rng.choice([other for other in SIZES if other != size])
        expected = change(sql, mode, size, rng)
        wait_equal(primary, replica, "app.db")
        for reader in readers:
            assert reader.call("execute", 30, statement=CONTENT) == expected
            assert reader.call("execute", statement="PRAGMA page_size") == [[size]]
            assert reader.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
        pages_equal(primary, replica, "app.db")
    assert replica.fs_pid() == fs_pid
    assert "given up" not in replica.log.read_text()


def test_a_reader_that_stays_inside(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client], rng: random.Random
) -> None:
    """It goes on with its snapshot and fails afterwards, with a map of the file or without; replication does
    not wait, and no other database notices."""
    primary, replica = primary_and_replica
    fs_pid = replica.fs_pid()
    sql, other, bystander = (make_client("sql", "sqlite3") for _ in range(3))
    open_new(sql, primary.path("app.db"), rng, "WAL")
    open_new(other, primary.path("other.db"), rng, "WAL")
    for name in ("app.db", "other.db"):
        wait_present(replica, name)
        wait_equal(primary, replica, name)
    bystander.call("open", path=replica.path("other.db"), readonly=True)
    bystander.call("script", statements=["BEGIN", CONTENT])
    for size in (65536, 512):
        for _ in range(20):
            insert(sql, rng)
        wait_equal(primary, replica, "app.db")
        readers = [make_client("sql", driver) for driver in ("sqlite3", "apsw") for _ in range(2)]
        snapshots = []
        for number, reader in enumerate(readers):
            reader.call("open", path=replica.path("app.db"), readonly=True)
            reader.call(
                "script", statements=["PRAGMA cache_size=1", f"PRAGMA mmap_size={number % 2 << 30}", "BEGIN"]
            )
            snapshots.append(reader.call("execute", statement=CONTENT))
        expected = change(sql, "WAL", size, rng)
        insert(other, rng)
        wait_equal(primary, replica, "app.db", 30)
        wait_equal(primary, replica, "other.db")
        for reader, snapshot in zip(readers, snapshots, strict=True):
            assert reader.call("execute", 30, statement=CONTENT) == snapshot
            assert reader.call("execute", 30, statement="PRAGMA integrity_check") == [["ok"]]
            reader.call("execute", statement="COMMIT")
            with pytest.raises(ClientError, match="I/O error"):
                reader.call("execute", 30, statement=CONTENT)
            reader.call("open", path=replica.path("app.db"), readonly=True, timeout=20)
            assert reader.call("execute", 30, statement=CONTENT) == expected
        pages_equal(primary, replica, "app.db")
    assert bystander.call("execute", statement="SELECT count(*) FROM t") == [[5]]
    bystander.call("execute", statement="COMMIT")
    assert bystander.call("execute", statement="SELECT count(*) FROM t") == [[7]]
    assert replica.fs_pid() == fs_pid
    assert replica.log.read_text().count("their connections are given up") == 2


@pytest.mark.timeout(180)
def test_kills_around_it(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client], rng: random.Random
) -> None:
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    path = primary.path("app.db")
    open_new(sql, path, rng)
    wait_present(replica, "app.db")
    for which in ("fs", "node", "both") * 2:
        node = rng.choice((primary, replica, replica))
        size = rng.choice(SIZES)
        statements = ["PRAGMA journal_mode=DELETE", f"PRAGMA page_size={size}", "VACUUM"]
        sql.call("script", statements=statements)
        insert(sql, rng)
        before = node.fs_pid()
        sql.call("close")
        node.kill(which)
        if which == "fs":
            node.wait_recovered(before)
        else:
            node.start()
        wait_present(primary, "app.db")
        sql.call("open", path=path, timeout=20)
        assert sql.call("execute", 30, statement="PRAGMA page_size") == [[size]]
        assert sql.call("execute", 30, statement="PRAGMA integrity_check") == [["ok"]]
        insert(sql, rng)
        wait_equal(primary, replica, "app.db", 40)
        pages_equal(primary, replica, "app.db")


def test_restarts_and_a_new_replica(
    primary_and_replica: tuple[Node, Node],
    make_node: Callable[..., Node],
    make_client: Callable[..., Client],
    rng: random.Random,
) -> None:
    """A replica that was away takes the full record from the log, a new one a snapshot."""
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    open_new(sql, primary.path("app.db"), rng)
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    replica.stop()
    change(sql, "DELETE", 512, rng)
    expected = change(sql, "WAL", 8192, rng)
    replica.start()
    late = make_node("late", primary=primary).start()
    for node in (replica, late):
        wait_present(node, "app.db")
        wait_equal(primary, node, "app.db")
        pages_equal(primary, node, "app.db")
    sql.call("close")
    for node in (primary, replica, late):
        node.stop()
    for node in (primary, replica, late):
        with closing(sqlite3.connect(node.data / "dbs" / "app.db" / "database")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert [list(row) for row in db.execute(CONTENT)] == expected
    primary.start()
    late.start()
    wait_present(late, "app.db")
    wait_equal(primary, late, "app.db")
    assert "restored" not in primary.log.read_text()


def test_a_snapshot_over_a_database_of_another_page_size(
    tmp_path: Path, make_node: Callable[..., Node], make_client: Callable[..., Client], rng: random.Random
) -> None:
    """The replica was away for longer than the log reaches back; its mount goes on as it is."""
    keep = {"dir": str(tmp_path / "log"), "retention": "1s", "retention-monitor-interval": "200ms"}
    primary = make_node("primary", data=keep).start()
    replica = make_node("replica", primary=primary).start()
    sql = make_client("sql", "sqlite3")
    open_new(sql, primary.path("app.db"), rng)
    wait_present(replica, "app.db")
    away = wait_equal(primary, replica, "app.db")
    replica.stop()
    for size in (512, 8192):
        expected = change(sql, "DELETE", size, rng)
    log = Path(keep["dir"]) / "dbs" / "app.db" / "log"
    wait_until(lambda: min(int(path.stem, 16) for path in log.glob("*.seg")) > away.txid + 1, 20, "retention")
    replica.start()
    fs_pid = replica.fs_pid()
    wait_equal(primary, replica, "app.db", 30)
    pages_equal(primary, replica, "app.db")
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"), readonly=True)
    assert reader.call("execute", statement=CONTENT) == expected
    assert replica.fs_pid() == fs_pid
    assert "gives way to" in replica.log.read_text()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_import_over_a_database_of_another_page_size(
    primary_and_replica: tuple[Node, Node],
    make_client: Callable[..., Client],
    rng: random.Random,
    tmp_path: Path,
    mode: str,
) -> None:
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    open_new(sql, primary.path("app.db"), rng, mode)
    wait_present(replica, "app.db")
    for size in (512, 65536):
        source = tmp_path / f"{size}.db"
        with closing(sqlite3.connect(source)) as db:
            for statement in (f"PRAGMA page_size={size}", f"PRAGMA journal_mode={mode}"):
                db.execute(statement)
            db.execute("CREATE TABLE t(a, b)")
            db.execute("INSERT INTO t VALUES(?, randomblob(90000))", (size,))
            db.commit()
        if mode == "WAL":  # SQLite leaves it only while nobody else has the database open
            before = sql.call("execute", statement="SELECT count(*), max(a) FROM t")
            assert run_import(primary, source) != 0
            assert sql.call("execute", statement="SELECT count(*), max(a) FROM t") == before
            assert sql.call("execute", statement="PRAGMA journal_mode") == [["wal"]]
            sql.call("close")
        assert run_import(primary, source) == 0, primary.log_tail()
        wait_equal(primary, replica, "app.db")
        pages_equal(primary, replica, "app.db")
        for node in (replica, primary):
            sql.call("open", path=node.path("app.db"), readonly=node is replica)
            assert sql.call("execute", statement="SELECT a, length(b) FROM t") == [[size, 90_000]]
        assert sql.call("execute", statement="PRAGMA journal_mode") == [[mode.lower()]]


def run_import(node: Node, source: Path) -> int:
    """``litefs import`` in a process of its own; its exit status."""
    arguments = ("import", "-url", node.url, "-name", "app.db", str(source))
    return spawn([sys.executable, "-m", "litefs.cli.main", *arguments]).wait(60)
