"""Processes with many threads, with caches of their own or a shared one, write one database at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.clients.workload import schema
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client

THREADS = 4
COUNT = 12
"""Transactions of each thread."""


@pytest.mark.timeout(180)
def test_threads_of_several_processes_in_every_journal_mode(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    for mode in ("DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"):
        name = f"{mode.lower()}.db"
        path = primary.path(name)
        sql.call("open", path=path)
        sql.call("script", statements=[f"PRAGMA journal_mode={mode}", *schema()])
        sql.call("close")
        wait_present(replica, name)
        reader = make_client("reader", "sqlite3", replica.path(name))
        processes = [
            make_client("threads", path, mode, cache, THREADS, COUNT)
            for cache in ("private", "private", "shared")
        ]
        for process in processes:
            assert process.answer(90)["done"] == THREADS * COUNT
        wait_equal(primary, replica, name)
        assert reader.call("stop", 20)["reads"] > 0
        pages_equal(primary, replica, name)
        sql.call("open", path=replica.path(name), readonly=True)
        assert sql.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
        sql.call("close")
