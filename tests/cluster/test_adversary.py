"""What a replica must outlive: a full disk, a primary that lost its tail, odd names, databases made anew."""

from __future__ import annotations

import http.client
import random
import shutil
import sqlite3
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disks import small_disk
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, wait_until

MakeClient = Callable[..., Client]


def filled(make_client: MakeClient, node: Node, name: str, mode: str = "WAL", rows: int = 1) -> Client:
    """A connection to a new database with a table ``t`` of one column."""
    client = make_client("sql", "sqlite3")
    client.call("open", path=node.path(name))
    inserts = ["INSERT INTO t VALUES('row')"] * rows
    client.call("script", statements=[f"PRAGMA journal_mode={mode}", "CREATE TABLE t(a)", *inserts])
    return client


def copy_of(primary: Node, client: Client) -> Path:
    """A copy of the data directory, made while the node is down; the client's connection is a new one."""
    client.call("close")
    primary.stop()
    older = primary.root / "older"
    shutil.copytree(primary.data, older)
    primary.start()
    client.call("open", path=primary.path("app.db"))
    return older


def go_back(primary: Node, client: Client, older: Path) -> None:
    """Start the node on that copy."""
    client.call("close")
    primary.stop()
    shutil.rmtree(primary.data)
    older.rename(primary.data)
    primary.start()


def test_a_replica_with_a_full_disk_keeps_what_fits_and_goes_on_when_there_is_room(
    make_node: Callable[..., Node], make_client: MakeClient
) -> None:
    primary = make_node("primary").start()
    replica = make_node("replica", primary=primary)
    with small_disk(replica.data, 40):
        filler = replica.data / "filler"
        filler.write_bytes(bytes(15 << 20))
        replica.start()
        small = filled(make_client, primary, "small.db")
        big = filled(make_client, primary, "big.db")
        for name in ("small.db", "big.db"):
            wait_present(replica, name)
        for _ in range(40):
            big.call("execute", timeout=30, statement="INSERT INTO t VALUES(randomblob(1000000))")
        wait_until(
            lambda: "No space left" in replica.log.read_text(), 20, "the replica tells of its full disk"
        )
        small.call("execute", statement="UPDATE t SET a='after'")
        time.sleep(3)
        streams = primary.log.read_text().count(" connected")
        assert streams <= 8, "the stream is begun anew all the time"
        assert len(replica.log.read_text().splitlines()) < 60, "it tells the same again and again"
        reader = make_client("sql", "sqlite3")
        for name in ("big.db", "small.db"):
            reader.call("open", path=replica.path(name))
            assert reader.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
        reader.call("close")
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=400m", str(replica.data)], check=True)
        for name in ("big.db", "small.db"):
            wait_equal(primary, replica, name, 45)
            pages_equal(primary, replica, name)
        assert "Traceback" not in replica.log.read_text()
        assert replica.stop() == 0


@pytest.mark.parametrize("commits_after", [0, 40])
def test_a_primary_that_lost_its_tail_is_followed_and_nothing_is_lost(
    commits_after: int, primary_and_replica: tuple[Node, Node], make_client: MakeClient
) -> None:
    primary, replica = primary_and_replica
    client = filled(make_client, primary, "app.db", rows=5)
    wait_present(replica, "app.db")
    older = copy_of(primary, client)
    client.call("script", statements=["INSERT INTO t VALUES('tail')"] * 20)
    wait_equal(primary, replica, "app.db")
    go_back(primary, client, older)
    client.call("open", path=primary.path("app.db"))
    if commits_after:
        client.call("script", statements=["INSERT INTO t VALUES('other')"] * commits_after)
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"))
    counts = reader.call("execute", statement="SELECT a, count(*) FROM t GROUP BY a ORDER BY a")
    expected = [["other", commits_after], ["row", 5]] if commits_after else [["row", 5]]
    assert counts == expected
    kept = list((replica.data / "lost").rglob("*.seg"))
    assert kept, "the transactions that only the replica had are gone"


@pytest.mark.parametrize(
    "name", ["ünï cödé.db", "a b.db", "100%2F.db", "x" * 180 + ".db", "dir/sub/日本.db", "'quote\"&?#.db"]
)
def test_odd_names_travel_end_to_end(
    name: str, primary_and_replica: tuple[Node, Node], make_client: MakeClient, tmp_path: Path
) -> None:
    primary, replica = primary_and_replica
    (primary.mount / name).parent.mkdir(parents=True, exist_ok=True)
    filled(make_client, primary, name)
    wait_present(replica, name)
    wait_equal(primary, replica, name)
    pages_equal(primary, replica, name)
    connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=10)
    connection.request("GET", "/export?" + urllib.parse.urlencode({"name": name}))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    (tmp_path / "copy").write_bytes(body)
    with sqlite3.connect(tmp_path / "copy") as copy:
        assert copy.execute("SELECT a FROM t").fetchall() == [("row",)]
    copy.close()


def test_a_database_that_was_removed_while_empty_is_replicated_when_made_again(
    primary_and_replica: tuple[Node, Node], make_client: MakeClient
) -> None:
    primary, replica = primary_and_replica
    for _ in range(3):
        empty = make_client("sql", "sqlite3")
        empty.call("open", path=primary.path("again.db"))
        empty.call("execute", statement="SELECT * FROM sqlite_schema")
        time.sleep(0.1)
        subprocess.run(["rm", primary.path("again.db")], timeout=10, check=True)
        empty.call("close")
    filled(make_client, primary, "again.db", rows=3)
    wait_present(replica, "again.db")
    wait_equal(primary, replica, "again.db")
    pages_equal(primary, replica, "again.db")


def test_an_export_given_up_leaves_no_copy(make_node: Callable[..., Node], make_client: MakeClient) -> None:
    primary = make_node("primary").start()
    client = filled(make_client, primary, "app.db")
    client.call("execute", timeout=60, statement="INSERT INTO t VALUES(zeroblob(60000000))")
    for wait in (0.0, 0.02, 0.1, 0.3, 1.0):
        connection = http.client.HTTPConnection("127.0.0.1", primary.port, timeout=10)
        connection.request("GET", "/export?name=app.db")
        time.sleep(wait)
        connection.close()
    wait_until(lambda: not list((primary.data / "tmp").iterdir()), 5, "the copies are removed")


@pytest.mark.parametrize("command", [["truncate", "-s", "0"], ["truncate", "-s", "3"], ["cp", "/dev/null"]])
def test_a_wal_index_cut_by_a_client_does_not_end_the_replica(
    command: list[str], primary_and_replica: tuple[Node, Node], make_client: MakeClient
) -> None:
    primary, replica = primary_and_replica
    client = filled(make_client, primary, "app.db")
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"))
    assert reader.call("execute", statement="SELECT a FROM t") == [["row"]]
    cut = subprocess.run([*command, replica.path("app.db-shm")], timeout=10, capture_output=True, check=False)
    assert cut.returncode != 0
    client.call("execute", statement="INSERT INTO t VALUES('later')")
    wait_equal(primary, replica, "app.db")
    assert reader.call("execute", statement="SELECT a FROM t") == [["row"], ["later"]]
    pages_equal(primary, replica, "app.db")


def restarted(node: Node, when: Callable[[], bool], what: str, delay: float) -> None:
    """Kill both processes of a node ``delay`` seconds after ``when`` holds, and start it again."""
    wait_until(when, 20, what, 0.005)
    time.sleep(delay)
    node.kill("both")
    node.start()


def test_a_replica_killed_within_snapshot_big_record_and_replacement_converges(
    make_node: Callable[..., Node], make_client: MakeClient
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    primary = make_node("primary").start()
    client = filled(make_client, primary, "app.db")
    numbers = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60)"
    grow = f"{numbers} INSERT INTO t SELECT zeroblob(1000000) FROM n"
    client.call("execute", timeout=60, statement=grow)
    client.call("execute", timeout=60, statement="UPDATE t SET a=randomblob(1000000)")
    replica = make_node("replica", primary=primary)
    replica.launch()
    files = replica.data / "dbs" / "app.db"
    received = files / "database.tmp"
    restarted(replica, received.exists, "a snapshot begins", rng.uniform(0, 0.5))
    wait_equal(primary, replica, "app.db", 60)

    older = copy_of(primary, client)
    before = sum(path.stat().st_size for path in (files / "log").glob("*.seg"))
    client.call("execute", timeout=60, statement="UPDATE t SET a=randomblob(1000000)")
    restarted(
        replica,
        lambda: sum(path.stat().st_size for path in (files / "log").glob("*.seg")) > before + 1000,
        "a big record arrives",
        rng.uniform(0, 0.3),
    )
    wait_equal(primary, replica, "app.db", 60)
    pages_equal(primary, replica, "app.db")

    go_back(primary, client, older)
    restarted(replica, received.exists, "a replacement begins", rng.uniform(0, 1))
    wait_equal(primary, replica, "app.db", 60)
    pages_equal(primary, replica, "app.db")
    assert list((replica.data / "lost").rglob("*.seg"))
    assert replica.stop() == 0


def test_a_client_cannot_remove_a_wal_index_that_is_applied_to(
    primary_and_replica: tuple[Node, Node], make_client: MakeClient
) -> None:
    """Who opened the database after it would make another one, and never see a commit again."""
    primary, replica = primary_and_replica
    writer = filled(make_client, primary, "app.db")
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    result = subprocess.run(
        ["rm", "-f", replica.path("app.db") + "-shm"], capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode == 1
    assert "Read-only file system" in result.stderr
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"), readonly=True)
    assert reader.call("execute", statement="SELECT count(*) FROM t") == [[1]]
    writer.call("execute", statement="INSERT INTO t VALUES('seen')")
    wait_equal(primary, replica, "app.db")
    assert reader.call("execute", statement="SELECT count(*) FROM t") == [[2]]
