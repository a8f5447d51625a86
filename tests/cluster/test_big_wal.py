"""A WAL that only grows (``wal_autocheckpoint=0``) until one checkpoint empties it. In the soak: 1.1 GB."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client

WAL_BYTES = 1_100_000_000 if "LITEFS_SOAK" in os.environ else 60_000_000
ROW_BYTES = 5_000_000
ROWS = 8
"""They are rewritten over and over, so that the database stays small."""


@pytest.mark.timeout(600)
def test_a_wal_that_grows_without_bounds(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    path = primary.path("a.db")
    sql.call("open", path=path)
    for statement in (
        "PRAGMA journal_mode=WAL",
        "PRAGMA wal_autocheckpoint=0",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a)",
    ):
        sql.call("execute", statement=statement)
    wait_present(replica, "a.db")
    for number in range(WAL_BYTES // ROW_BYTES + 1):
        value = f"replace(hex(zeroblob({ROW_BYTES // 8})),'00','{number:08d}')"
        sql.call("execute", 60, statement=f"INSERT OR REPLACE INTO t VALUES({number % ROWS},{value})")
    assert primary.files("describe", path=path + "-wal")["size"] > WAL_BYTES
    assert sql.call("execute", 120, statement="PRAGMA wal_checkpoint(TRUNCATE)") == [[0, 0, 0]]
    assert primary.files("describe", path=path + "-wal")["size"] == 0
    wait_equal(primary, replica, "a.db", 120)
    pages_equal(primary, replica, "a.db")
    sql.call("open", path=replica.path("a.db"), readonly=True)
    newest = sql.call("execute", 60, statement="SELECT max(substr(a,1,8)), count(*) FROM t")
    assert newest == [[f"{number:08d}", ROWS]]
    assert sql.call("execute", 60, statement="PRAGMA integrity_check") == [["ok"]]
