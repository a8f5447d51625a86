"""HALT: a replica writes in the primary's place, and nothing of it is lost, repeated or half done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError


def prepared(primary: Node, replica: Node, mode: str, make_client: Callable[..., Client]) -> Client:
    """A client of the primary, with a database in that mode that both nodes have."""
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=primary.path("app.db"))
    sql.call("execute", statement=f"PRAGMA journal_mode={mode}")
    sql.call("execute", statement="CREATE TABLE t(id INTEGER PRIMARY KEY, who, value)")
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 0)")
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    return sql


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_migration_from_the_replica(
    mode: str, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, mode, make_client)
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"))
    assert reader.call("execute", statement="SELECT who FROM t") == [["primary"]]
    halting = make_client("halting")
    path = replica.path("app.db")
    halting.call("halt", 30, path=path)
    halting.call("open", path=path)
    halting.call("execute", statement="BEGIN")
    halting.call("execute", statement="ALTER TABLE t ADD COLUMN more DEFAULT 'x'")
    halting.call("execute", statement="INSERT INTO t(who, value) VALUES('replica', 1)")
    halting.call("execute", statement="COMMIT")
    halting.call("execute", statement="CREATE INDEX i ON t(who)")
    # acknowledged: the primary has it, and the replica
    assert sql.call("execute", statement="SELECT who, more FROM t") == [["primary", "x"], ["replica", "x"]]
    assert primary.position("app.db") == replica.position("app.db")
    assert reader.call("execute", statement="SELECT who, more FROM t") == [["primary", "x"], ["replica", "x"]]
    sql.call("open", path=primary.path("app.db"), timeout=0.2)
    with pytest.raises(ClientError, match="database is locked"):
        sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")
    halting.call("unhalt", 30)
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 2)")
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    rows = [["primary", 0], ["replica", 1], ["primary", 2]]
    assert reader.call("execute", statement="SELECT who, value FROM t ORDER BY id") == rows
    with pytest.raises(ClientError, match=r"disk I/O error|readonly"):
        halting.call("execute", statement="INSERT INTO t(who, value) VALUES('replica', 3)")
    assert sql.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
    wait_equal(primary, replica, "app.db")
