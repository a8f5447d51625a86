"""Damaged files on real nodes: a replica mends itself, a lone primary says what to do."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litefs.store import fileops
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.sums import SumsFile
from tests.cluster.test_log_damage import flip
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, wait_until

MakeNode = Callable[..., Node]
MakeClient = Callable[..., Client]


def fill(node: Node, client: Client, name: str, rows: int = 20) -> None:
    """A WAL database of a few dozen pages, all in its file."""
    client.call("open", path=node.path(name))
    statements = ["PRAGMA journal_mode=WAL", "CREATE TABLE t(n INTEGER PRIMARY KEY, data BLOB)"]
    statements += [f"INSERT INTO t VALUES({row}, randomblob(6000))" for row in range(1, rows + 1)]
    client.call("script", statements=[*statements, "PRAGMA wal_checkpoint(TRUNCATE)"])
    client.call("close")


def insert(client: Client, path: str) -> None:
    client.call("open", path=path)
    client.call("execute", statement="INSERT INTO t(data) VALUES(randomblob(6000))")
    client.call("close")


def count(client: Client, path: str) -> int:
    """Rows, after a look at every page."""
    client.call("open", path=path, readonly=True)
    try:
        assert client.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
        assert client.call("execute", statement="SELECT total(length(data)) / count(*) FROM t") == [[6000.0]]
        answer = client.call("execute", statement="SELECT count(*) FROM t")
        return int(answer[0][0])
    finally:
        client.call("close")


def metric(node: Node, name: str) -> str:
    """What /metrics says of the damage of a database."""
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=5) as response:
        text: str = response.read().decode()
    return next(
        line.split()[1] for line in text.splitlines() if line.startswith(f'litefs_db_damaged{{db="{name}"}}')
    )


def lost(node: Node, reason: str) -> list[Path]:
    return sorted((node.data / "lost").glob(f"*-{reason}*/*"))


def healed(node: Node) -> bool:
    """Through the mount, or by a recovery where clients cannot go on with the old file."""
    text = node.log.read_text()
    return "repaired from the primary's snapshot" in text or "completed an interrupted snapshot" in text


def at_rest(node: Node, name: str) -> None:
    """Until the database file of a replica has everything."""
    directory = node.data / "dbs" / name

    def is_whole() -> bool:
        content = (directory / "database").read_bytes()
        return len(content) == 4096 * int.from_bytes(content[28:32], "big") and len(content) > 20 * 4096

    wait_until(is_whole, 15, f"{name} is checkpointed on {node.name}")
    time.sleep(1.5)


@contextmanager
def reading(make_client: MakeClient, path: str) -> Iterator[Callable[[], object]]:
    """A client that stays open; what it answers."""
    client = make_client("sql", "sqlite3")
    client.call("open", path=path, readonly=True)
    yield lambda: client.call("execute", statement="SELECT count(*) FROM t")
    client.close()


def test_a_flipped_bit_in_a_running_replica(
    primary_and_replica: tuple[Node, Node], make_client: MakeClient
) -> None:
    """Nobody writes anything: the replica finds it by itself, and a reader's connection stays good."""
    primary, replica = primary_and_replica
    client = make_client("sql", "sqlite3")
    fill(primary, client, "app.db")
    fill(primary, client, "other.db")
    wait_equal(primary, replica, "app.db")
    at_rest(replica, "app.db")
    process, fs = replica.process, replica.fs_pid()
    with reading(make_client, replica.path("app.db")) as rows:
        assert rows() == [[20]]
        insert(client, primary.path("app.db"))  # page 1 and the last ones are in the WAL
        wait_equal(primary, replica, "app.db")
        flip(replica.data / "dbs/app.db/database", 9 * 4096 + 100, 3)
        wait_until(lambda: healed(replica), 30, "repair")
        assert "app.db: damaged: 1 pages are not what their checksums say: 10" in replica.log.read_text()
        assert rows() == [[21]]
        insert(client, primary.path("app.db"))
        wait_equal(primary, replica, "app.db")
        assert rows() == [[22]]
    assert (replica.process, replica.fs_pid()) == (process, fs), "no mount was made anew"
    pages_equal(primary, replica, "app.db")
    assert count(client, replica.path("app.db")) == 22
    (copy,) = (path for path in lost(replica, "damaged") if path.name == "database")
    assert copy.stat().st_size >= 20 * 4096
    replica.stop()
    assert (replica.data / "dbs/app.db/database").read_bytes() == copied(primary, client, replica.root)


def copied(primary: Node, client: Client, scratch: Path) -> bytes:
    """The primary's database file, when its WAL is empty."""
    client.call("open", path=primary.path("app.db"))
    client.call("execute", statement="PRAGMA wal_checkpoint(TRUNCATE)")
    client.call("close")
    return (primary.data / "dbs/app.db/database").read_bytes()


def test_a_record_that_does_not_give_its_checksum(
    primary_and_replica: tuple[Node, Node], make_client: MakeClient
) -> None:
    """The replica's own checksums are wrong; the next change of that page tells."""
    primary, replica = primary_and_replica
    client = make_client("sql", "sqlite3")
    fill(primary, client, "app.db")
    wait_equal(primary, replica, "app.db")
    at_rest(replica, "app.db")
    with reading(make_client, replica.path("app.db")) as rows:
        flip(replica.data / "dbs/app.db/sums", 4096 + 3, 3)  # page 1, which every commit changes
        insert(client, primary.path("app.db"))
        wait_equal(primary, replica, "app.db")
        assert rows() == [[21]]
    assert "leads to" in replica.log.read_text() or "damaged" in replica.log.read_text()
    pages_equal(primary, replica, "app.db")
    assert lost(replica, "diverged") or lost(replica, "damaged")
    insert(client, primary.path("app.db"))
    wait_equal(primary, replica, "app.db")
    replica.kill("both")
    replica.start()
    wait_equal(primary, replica, "app.db")
    assert "damaged: the file" not in replica.log.read_text()
    pages_equal(primary, replica, "app.db")


def zero_header(directory: Path) -> None:
    with (directory / "database").open("r+b") as file:
        file.write(bytes(4096))


def flip_page(directory: Path) -> None:
    flip(directory / "database", 9 * 4096 + 100, 3)


def cancelling_flips(directory: Path) -> None:
    """The same bit of two pages: their checksums' XOR stays as it was."""
    flip(directory / "database", 9 * 4096 + 100, 3)
    flip(directory / "database", 12 * 4096 + 100, 3)


def cut_database(directory: Path) -> None:
    with (directory / "database").open("r+b") as file:
        file.truncate(10 * 4096 + 17)


def remove_database(directory: Path) -> None:
    (directory / "database").unlink()


def flip_log(directory: Path) -> None:
    """In the header of the last segment."""
    flip(max((directory / "log").glob("*.seg")), 9, 2)


DAMAGES = {
    "zeroed header": (zero_header, "stop"),
    "flipped bit": (flip_page, "stop"),
    "cancelling flips": (cancelling_flips, "kill"),
    "cut short": (cut_database, "kill"),
    "missing": (remove_database, "kill"),
    "log": (flip_log, "kill"),
}


@pytest.mark.parametrize(("damage", "how"), DAMAGES.values(), ids=DAMAGES)
def test_damage_while_a_replica_is_down(
    damage: Callable[[Path], None], how: str, make_node: MakeNode, make_client: MakeClient
) -> None:
    """Its log begins with a snapshot, so it has no images to mend from."""
    primary = make_node("primary").start()
    client = make_client("sql", "sqlite3")
    fill(primary, client, "app.db")
    fill(primary, client, "other.db")
    replica = make_node("replica", primary=primary).start()
    for name in ("app.db", "other.db"):
        wait_present(replica, name)
        wait_equal(primary, replica, name)
    replica.kill("both") if how == "kill" else replica.stop()
    damage(replica.data / "dbs/app.db")
    replica.start()
    wait_until(lambda: healed(replica), 30, "repair")
    replica.wait_ready()
    for name in ("app.db", "other.db"):
        wait_equal(primary, replica, name)
        pages_equal(primary, replica, name)
    insert(client, primary.path("app.db"))
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    assert count(client, replica.path("app.db")) == 21
    text = replica.log.read_text()
    assert "app.db: the primary is asked for a snapshot of it" in text
    assert "other.db: damaged" not in text
    assert metric(replica, "app.db") == "0.0"
    kept = {path.name for path in lost(replica, "damaged")}
    assert kept or damage is remove_database
    replica.stop()
    replica.start()
    wait_equal(primary, replica, "app.db")
    assert replica.log.read_text().count("asked for a snapshot") == text.count("asked for a snapshot")


def forget_history(directory: Path) -> None:
    """Leave a log without an image, as after retention; the node is stopped."""
    database = DatabaseDir("app.db", directory)
    file = SumsFile(database.sums)
    point, page_size = file.point, file.sums.page_size
    file.close()
    fileops.remove_tree(database.log)
    Log.create(database.log, point, page_size).close()


PRIMARY_DAMAGES = {
    "zeroed header": (zero_header, "stop", False),
    "flipped bit": (flip_page, "stop", True),
    "cancelling flips": (cancelling_flips, "kill", True),
    "cut short": (cut_database, "kill", False),
    "missing": (remove_database, "stop", False),
    "log header": (flip_log, "kill", True),
}
"""Damage; how the node stops before; whether the rows that are there can still be counted."""


@pytest.mark.parametrize(("damage", "how", "readable"), PRIMARY_DAMAGES.values(), ids=PRIMARY_DAMAGES)
def test_damage_of_a_lone_primary(
    damage: Callable[[Path], None], how: str, readable: bool, make_node: MakeNode, make_client: MakeClient
) -> None:
    """Retention has taken what could mend it. It says what is wrong and what to do; that works."""
    primary = make_node("primary").start()
    client = make_client("sql", "sqlite3")
    for name in ("app.db", "other.db"):
        fill(primary, client, name)
    primary.stop()
    directory = primary.data / "dbs/app.db"
    backup = (directory / "database").read_bytes()
    forget_history(directory)
    primary.start()
    if how == "kill":
        primary.kill("both")
    else:
        primary.stop()
    damage(directory)
    damaged = (directory / "database").read_bytes() if damage is not remove_database else None
    primary.start()

    assert (metric(primary, "app.db"), metric(primary, "other.db")) == ("1.0", "0.0")
    text = primary.log.read_text()
    assert f"move {directory / 'log'} elsewhere" in text
    assert "app.db: damaged: the file does not match" in text or "app.db: not recovered" in text
    client.call("open", path=primary.path("app.db"))
    if readable:
        assert client.call("execute", statement="SELECT count(*) FROM t") == [[20]]
    with pytest.raises(ClientError, match=r"disk I/O error|not a database|malformed"):
        client.call("execute", statement="INSERT INTO t(data) VALUES('x')")
    if readable:
        assert client.call("execute", statement="SELECT count(*) FROM t") == [[20]]
    client.call("close")
    insert(client, primary.path("other.db"))
    assert count(client, primary.path("other.db")) == 21
    if damaged is not None and damage is not flip_log:
        assert damaged in [path.read_bytes() for path in lost(primary, "damaged")]
    primary.stop()

    (directory / "log").rename(primary.root / "old-log")
    if damage is not flip_log:
        for companion in directory.glob("database-*"):
            companion.unlink()
        (directory / "database").write_bytes(backup)
    primary.start()
    assert metric(primary, "app.db") == "0.0"
    assert count(client, primary.path("app.db")) == 20
    insert(client, primary.path("app.db"))
    assert count(client, primary.path("app.db")) == 21
    replica = make_node("replica", primary=primary).start()
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
