"""Two histories may have the same position, and then only the hash of the last record tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from litefs.store.paths import DataDir
from litefs.store.segments import extents, list_segments
from litefs.types import Point
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, wait_until

MakeNode = Callable[..., Node]
MakeClient = Callable[..., Client]

TABLES = ("one", "other")
"""Empty and alike: the same row in either changes the same bytes, only of another page."""


def lead(primary: Node, replica: Node) -> None:
    """Have the static leases of both name ``primary``."""
    for node in (primary, replica):
        settings = {"type": "static", "hostname": primary.name, "advertise-url": primary.url}
        node.configure("lease", {**settings, "candidate": node is primary})


def run(make_client: MakeClient, node: Node, *statements: str) -> list[Any]:
    """What the last of the statements gives."""
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=node.path("app.db"))
    answer: list[Any] = []
    for statement in statements:
        answer = sql.call("execute", statement=statement)
    sql.close()
    return answer


def rows(make_client: MakeClient, node: Node) -> dict[str, list[Any]]:
    return {table: run(make_client, node, f"SELECT value FROM {table} ORDER BY value") for table in TABLES}


@pytest.fixture
def pair(make_node: MakeNode, make_client: MakeClient) -> tuple[Node, Node]:
    """A primary and its replica with the tables in a WAL database; the replica is stopped."""
    old = make_node("old").start()
    tables = [f"CREATE TABLE {name}(value)" for name in TABLES]
    run(make_client, old, "PRAGMA journal_mode=WAL", *tables)
    new = make_node("new", primary=old).start()
    wait_present(new, "app.db")
    wait_equal(old, new, "app.db")
    assert new.stop() == 0
    return old, new


def test_a_history_of_the_same_position_is_given_up(pair: tuple[Node, Node], make_client: MakeClient) -> None:
    """An old primary comes back with a transaction that only it has, and its position is that of the new."""
    old, new = pair
    run(make_client, old, "INSERT INTO one VALUES(1)")
    position = old.position("app.db")
    old.kill("both")
    lead(new, old)
    new.start()
    run(make_client, new, "INSERT INTO other VALUES(1)")
    assert new.position("app.db") == position is not None, "the case that this test is about"
    old.start()
    wait_until(
        lambda: any((old.data / "lost").glob("*-diverged*/*")), 15, f"a repair\n{old.log_tail()}", 0.05
    )
    run(make_client, new, "INSERT INTO one VALUES(2)")
    wait_equal(new, old, "app.db")
    assert rows(make_client, old) == rows(make_client, new) == {"one": [[2]], "other": [[1]]}
    pages_equal(new, old, "app.db")


def logged(node: Node) -> dict[int, Point]:
    """Where each record of app.db in a node's log leads; its file is read beside the node."""
    directory = DataDir(node.data).database_dir("app.db").log
    first, _ = list_segments(directory)[0]
    return {extent.txid_max: extent.point for extent in extents(directory, first - 1, verify=True)}


def test_logs_are_alike_after_a_snapshot_and_halt(pair: tuple[Node, Node], make_client: MakeClient) -> None:
    """So nothing is given up where nothing differs: at a reconnection, and when the roles are exchanged."""
    old, new = pair
    new.start()
    halting = make_client("halting")
    halting.call("halt", 30, path=new.path("app.db"))
    halting.call("open", path=new.path("app.db"))
    for value in ("1", "randomblob(3000000)", "2", "randomblob(10000000)", "3"):
        halting.call("execute", 60, statement=f"INSERT INTO one VALUES({value})")
    halting.call("unhalt", 30)
    run(make_client, old, "INSERT INTO other VALUES(4)")
    wait_equal(old, new, "app.db")
    there, here = logged(old), logged(new)
    assert min(here) == 4, "the replica began with a snapshot"
    assert max(here) == 9
    assert here == {txid: there[txid] for txid in here}
    old.kill("both")
    assert new.stop() == 0
    lead(new, old)
    new.start()
    run(make_client, new, "INSERT INTO other VALUES(5)")
    old.start()
    wait_equal(new, old, "app.db")
    assert logged(old)[10] == logged(new)[10]
    pages_equal(new, old, "app.db")
    for node in pair:
        assert not list((node.data / "lost").glob("*")), "nothing was given up"
