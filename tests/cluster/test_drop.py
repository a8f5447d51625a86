"""A database that is removed on the primary goes on its replicas too, also on one that was away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, wait_until


def make(sql: Client, path: str, text: str, rows: int = 1) -> None:
    sql.call("open", path=path)
    sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
    for _ in range(rows):
        sql.call("execute", statement=f"INSERT INTO t VALUES('{text}')")
    sql.call("close")


def wait_gone(node: Node, name: str) -> None:
    wait_until(
        lambda: name not in node.files("list", path=str(node.mount)), 20, f"{name} goes on {node.name}", 0.05
    )


def kept(node: Node) -> list[str]:
    lost = node.data / "lost"
    return [path.name for path in lost.iterdir() if path.name.endswith("-dropped")] if lost.exists() else []


def test_a_removal_reaches_the_replica(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql, reader = make_client("sql", "sqlite3"), make_client("sql", "sqlite3")
    make(sql, primary.path("app.db"), "old", rows=3)
    make(sql, primary.path("other.db"), "other")
    for name in ("app.db", "other.db"):
        wait_present(replica, name)
        wait_equal(primary, replica, name)
    reader.call("open", path=replica.path("app.db"), readonly=True)
    assert len(reader.call("execute", statement="SELECT a FROM t")) == 3

    primary.files("unlink", path=primary.path("app.db"))
    wait_gone(replica, "app.db")
    wait_until(lambda: bool(kept(replica)), 10, "the replica keeps what it had")
    with pytest.raises(ClientError):
        reader.call("execute", statement="SELECT a FROM t")

    make(sql, primary.path("app.db"), "new")
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    reader.call("open", path=replica.path("app.db"), readonly=True)
    assert reader.call("execute", statement="SELECT a FROM t") == [["new"]]
    sql.call("open", path=primary.path("other.db"))
    sql.call("execute", statement="INSERT INTO t VALUES('more')")
    wait_equal(primary, replica, "other.db")


@pytest.mark.parametrize("again", [False, True], ids=["removed", "removed and made anew"])
def test_a_replica_that_was_away_learns_of_it(
    again: bool, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    make(sql, primary.path("app.db"), "old", rows=5)
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    replica.stop()
    primary.files("unlink", path=primary.path("app.db"))
    primary.kill("both")
    primary.start()
    if again:
        make(sql, primary.path("app.db"), "new")
    replica.start()
    if again:
        wait_equal(primary, replica, "app.db")
        pages_equal(primary, replica, "app.db")
    else:
        wait_gone(replica, "app.db")
        wait_until(lambda: bool(kept(replica)), 10, "the replica keeps what it had")
        make(sql, primary.path("app.db"), "new")
        wait_present(replica, "app.db")
        wait_equal(primary, replica, "app.db")


def test_removed_and_made_anew_at_once_many_times(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """The replica may see any of these, but ends with the last one."""
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    for number in range(10):
        if number:
            primary.files("unlink", path=primary.path("app.db"))
        make(sql, primary.path("app.db"), f"number {number}", rows=1 + number % 3)
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")


def test_removed_and_made_anew_after_a_replica_wrote_it(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """What comes back of its own writing is passed over; the new database has the same transaction ids."""
    primary, replica = primary_and_replica
    sql, halting = make_client("sql", "sqlite3"), make_client("halting")
    sql.call("open", path=primary.path("app.db"))
    sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    halting.call("halt", 30, path=replica.path("app.db"))
    halting.call("open", path=replica.path("app.db"))
    for number in range(8):
        halting.call("execute", statement=f"INSERT INTO t VALUES({number})")
    halting.call("unhalt", 30)
    halting.close()
    sql.call("close")
    primary.files("unlink", path=primary.path("app.db"))
    wait_gone(replica, "app.db")
    sql.call("open", path=primary.path("app.db"))
    sql.call("execute", statement="CREATE TABLE t(a)")
    wait_present(replica, "app.db")
    for number in range(3):
        sql.call("execute", statement=f"INSERT INTO t VALUES('new {number}')")
        wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")


@pytest.mark.parametrize("away", [False, True], ids=["connected", "away"])
def test_a_renamed_database_is_another_one(
    away: bool, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """The names that it left and took; and a file that is no database stays where it was written."""
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    for name in ("a.db", "b.db", "c.db"):
        make(sql, primary.path(name), name, rows=3)
        wait_present(replica, name)
        wait_equal(primary, replica, name)
    if away:
        replica.stop()
    primary.files("write", path=primary.path("README.txt"), content="no database")
    primary.files("rename", path=primary.path("a.db"), target=primary.path("b.db"))
    primary.files("rename", path=primary.path("c.db"), target=primary.path("d.db"))
    if away:
        primary.kill("both")
        primary.start()
        replica.start()
    wait_gone(replica, "a.db")
    wait_gone(replica, "c.db")
    for name in ("b.db", "d.db"):
        wait_present(replica, name)
        wait_equal(primary, replica, name)
        pages_equal(primary, replica, name)
    assert primary.files("read", path=primary.path("README.txt")) == "no database"
    assert "README.txt" not in replica.files("list", path=str(replica.mount))
    sql.call("open", path=primary.path("b.db"))
    assert sql.call("execute", statement="SELECT a FROM t") == [["a.db"]] * 3
    sql.call("execute", statement="INSERT INTO t VALUES('more')")
    wait_equal(primary, replica, "b.db")
