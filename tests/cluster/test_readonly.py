"""A write on a replica fails as SQLite says it for a read-only database, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError

READ_ONLY = "attempt to write a readonly database"
WRITES = (
    "INSERT INTO t VALUES('lost')",
    "UPDATE t SET a='lost'",
    "DELETE FROM t",
    "CREATE TABLE u(b)",
    "VACUUM",
)


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
@pytest.mark.parametrize("driver", ["sqlite3", "apsw"])
def test_write_on_a_replica_is_refused(
    mode: str, driver: str, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    writer = make_client("sql", driver)
    writer.call("open", path=primary.path("app.db"))
    writer.call(
        "script",
        statements=[f"PRAGMA journal_mode={mode}", "CREATE TABLE t(a)", "INSERT INTO t VALUES('kept')"],
    )
    wait_present(replica, "app.db")
    position = wait_equal(primary, replica, "app.db")

    intruder = make_client("sql", driver)
    intruder.call("open", path=replica.path("app.db"))
    assert intruder.call("execute", statement="SELECT a FROM t") == [["kept"]]
    for statement in WRITES:
        with pytest.raises(ClientError, match=READ_ONLY):
            intruder.call("execute", statement=statement)
    assert intruder.call("execute", statement="SELECT a FROM t") == [["kept"]]

    assert replica.position("app.db") == position
    pages_equal(primary, replica, "app.db")
    # The connection that was refused goes on following the primary.
    writer.call("execute", statement="INSERT INTO t VALUES('new')")
    wait_equal(primary, replica, "app.db")
    assert intruder.call("execute", statement="SELECT a FROM t") == [["kept"], ["new"]]


def create_table(client: Client, path: str) -> None:
    client.call("open", path=path)
    client.call("execute", statement="CREATE TABLE t(a)")


def test_new_database_cannot_be_made_on_a_replica(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    _, replica = primary_and_replica
    client = make_client("sql", "sqlite3")
    with pytest.raises(ClientError, match=r"readonly|unable to open"):
        create_table(client, replica.path("orphan.db"))
    assert replica.position("orphan.db") is None
    assert "orphan.db" not in replica.files("list", path=str(replica.mount))
