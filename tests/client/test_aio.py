"""The functions of ``litefs.client`` in trio and in asyncio, on real nodes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litefs import client
from litefs.client import DatabaseNotFound, WaitTimeout, aio
from tests.client.conftest import Run
from tests.support.node import Node, wait_equal
from tests.support.processes import Client, wait_until


def test_what_it_knows(run: Run, nodes: tuple[Node, Node]) -> None:
    primary, replica = nodes
    at = wait_equal(primary, replica, "app.db")

    async def look(node: Node) -> tuple[object, ...]:
        path = node.path("app.db")
        return (
            await aio.position(path),
            await aio.primary(path),
            await aio.is_primary(path),
            await aio.lag(path),
        )

    assert run(lambda: look(primary)) == (at, None, True, 0)
    wait_until(lambda: client.lag(replica.mount) is not None, 10, "the replica has all")
    position, hostname, leads, lag = run(lambda: look(replica))
    assert (position, hostname, leads) == (at, "primary", False)
    assert isinstance(lag, float)


def test_waiting(run: Run, nodes: tuple[Node, Node], sql: Client) -> None:
    primary, replica = nodes
    path = replica.path("app.db")
    at = wait_equal(primary, replica, "app.db")
    sql.call("execute", statement="INSERT INTO t VALUES(1)")
    reached = run(lambda: aio.wait(path, at.txid + 1))
    assert reached == primary.position("app.db")
    with pytest.raises(WaitTimeout):
        run(lambda: aio.wait(path, at.txid + 99, 0.1))
    with pytest.raises(DatabaseNotFound):
        run(lambda: aio.wait(replica.path("none.db"), 1, 0.1))


def test_halt(run: Run, nodes: tuple[Node, Node]) -> None:
    """Also a block that fails gives the lock up: the primary's clients write again."""
    primary, replica = nodes
    path = replica.path("other.db")

    def insert() -> None:
        with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
            connection.execute("INSERT INTO t VALUES('halted')")

    async def write(fails: bool) -> None:
        async with aio.halt(path):
            insert()
            if fails:
                raise KeyError("on purpose")

    run(lambda: write(False))
    with pytest.raises(KeyError):
        run(lambda: write(True))
    with Client("sql", "sqlite3") as other:
        other.call("open", path=primary.path("other.db"))
        before = other.call("execute", statement="SELECT count(*) FROM t WHERE x = 'halted'")[0][0]
        assert before >= 2
        other.call("execute", statement="INSERT INTO t VALUES('after')")
    wait_equal(primary, replica, "other.db")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        insert()


def test_a_node_that_is_gone(run: Run, nodes: tuple[Node, Node]) -> None:
    place = client.locate(nodes[0].path("app.db"))
    gone = client.Place(place.mount, place.name, Path("/nonexistent/litefs.sock"))
    with pytest.raises(client.NodeUnreachable):
        run(lambda: aio.request(gone, "GET", "/info"))
