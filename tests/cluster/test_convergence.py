"""20,000 random transactions of three kinds of writers: both nodes end up with the same pages."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

import pytest

from tests.support.clients.engines import KINDS
from tests.support.clients.workload import schema
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client

PAGE_SIZES = (512, 4096, 65536)
MODES = ("WAL", "DELETE")
TRANSACTIONS = {"WAL": 17_000, "DELETE": 3_000}
"""Of all databases of a mode together; a rollback journal costs several times as much."""
HOLD_SECONDS = 20
MAX_LAG_SECONDS = 1.0
WRITERS_SECONDS = 300.0
"""For all transactions; 80 on two cores with another test beside."""


def create(client: Client, path: str, page_size: int, mode: str) -> None:
    """Make a database with the tables of the workload."""
    client.call("open", path=path)
    client.call(
        "script",
        statements=[f"PRAGMA page_size={page_size}", f"PRAGMA journal_mode={mode}", *schema()],
    )
    client.call("close")


@pytest.mark.timeout(420)
def test_random_transactions_converge(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    sql = make_client("sql", "sqlite3")
    names = {}
    for size, mode in itertools.product(PAGE_SIZES, MODES):
        name = f"{mode.lower()}-{size}.db"
        names[name] = -(-TRANSACTIONS[mode] // (len(PAGE_SIZES) * len(KINDS)))
        create(sql, primary.path(name), size, mode)
    create(sql, primary.path("lag.db"), 4096, "WAL")
    for name in [*names, "lag.db"]:
        wait_present(replica, name)

    readers = [make_client("reader", "sqlite3", replica.path(name)) for name in names]
    lag = make_client("lag", primary.path("lag.db"), replica.path("lag.db"), 50)
    holder = make_client("long_reader", replica.path("wal-4096.db"), HOLD_SECONDS)
    assert holder.answer(20) == "holding"
    began = time.monotonic()
    writers = [
        (make_client("random_writer", kind, primary.path(name), seed + number, share), share)
        for name, share in names.items()
        for number, kind in enumerate(KINDS)
    ]
    for writer, share in writers:
        assert writer.answer(WRITERS_SECONDS)["done"] == share
    held = holder.answer(max(1.0, began + HOLD_SECONDS - time.monotonic()) + 30)
    assert held["reads"] > 0
    lags = lag.call("stop", 30)
    assert lags
    assert lags[-1] < MAX_LAG_SECONDS, f"lags from {lags[0]:.4f} to {lags[-1]:.4f} s"
    for reader in readers:
        assert reader.call("stop", 20)["reads"] > 0

    for name in names:
        wait_equal(primary, replica, name, 30)
        pages_equal(primary, replica, name)
        sql.call("open", path=replica.path(name), readonly=True)
        assert sql.call("execute", 30, statement="PRAGMA integrity_check") == [["ok"]]
