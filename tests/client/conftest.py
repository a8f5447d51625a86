"""A primary and a replica for all tests of the package, which leave nothing on them but rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from tests.support.node import Node, wait_present
from tests.support.processes import Client

SECONDS = 60.0
Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(scope="package")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Primary and replica with ``app.db`` and ``other.db``, each with a table ``t(x)``."""
    root = tmp_path_factory.mktemp("client")
    primary = Node(root, "primary")
    replica = Node(root, "replica", primary=primary)
    try:
        primary.start()
        replica.start()
        with Client("sql", "sqlite3") as sql:
            for name in ("app.db", "other.db"):
                sql.call("open", path=primary.path(name))
                sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(x)"])
                wait_present(replica, name)
        yield primary, replica
    finally:
        for node in (replica, primary):
            node.discard()


@pytest.fixture
def sql(nodes: tuple[Node, Node]) -> Iterator[Client]:
    """A client with ``app.db`` open on the primary."""
    with Client("sql", "sqlite3") as client:
        client.call("open", path=nodes[0].path("app.db"))
        yield client


def in_trio(function: Callable[[], Awaitable[Any]]) -> Any:
    """Run an asynchronous function, bounded."""

    async def bounded() -> Any:
        with trio.fail_after(SECONDS):
            return await function()

    return trio.run(bounded)


def in_asyncio(function: Callable[[], Awaitable[Any]]) -> Any:
    """The same in the other loop."""

    async def bounded() -> Any:
        async with asyncio.timeout(SECONDS):
            return await function()

    return asyncio.run(bounded())


@pytest.fixture(params=[in_trio, in_asyncio], ids=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Either of them."""
    runner: Run = request.param
    return runner
