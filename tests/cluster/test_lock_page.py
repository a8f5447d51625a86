"""A database grows past 1 GiB: SQLite never uses the page that holds its lock bytes. The files are sparse."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litefs.sqlite.header import DatabaseHeader
from tests.support.node import Node, wait_equal, wait_present
from tests.support.processes import Client

PAGE_SIZE = 65536
LOCK_PAGE = (1 << 30) // PAGE_SIZE + 1
PAGE_COUNT_OFFSET = 28


def almost_1_gib(path: Path) -> None:
    """A sparse database whose next page but one would be the lock page; what lies between is unused."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={PAGE_SIZE}")
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
    with path.open("r+b") as file:
        file.seek(PAGE_COUNT_OFFSET)
        file.write((LOCK_PAGE - 2).to_bytes(4, "big"))
        file.truncate((LOCK_PAGE - 2) * PAGE_SIZE)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_grows_past_the_lock_page(
    tmp_path: Path, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client], mode: str
) -> None:
    primary, replica = primary_and_replica
    almost_1_gib(tmp_path / "source.db")
    copy = ["cp", "--sparse=always", str(tmp_path / "source.db"), primary.path("a.db")]
    subprocess.run(copy, check=True, timeout=60)
    sql, reader = make_client("sql", "sqlite3"), make_client("sql", "apsw")
    sql.call("open", path=primary.path("a.db"))
    sql.call("execute", statement=f"PRAGMA journal_mode={mode}")
    wait_present(replica, "a.db", 60)
    rows = []
    for number in range(1, 6):
        row = f"{number:04d}" * 50_000
        sql.call("execute", statement=f"INSERT INTO t VALUES({number},'{row}')")
        rows.append([row])
        wait_equal(primary, replica, "a.db", 60)
        reader.call("open", path=replica.path("a.db"), readonly=True)
        assert reader.call("execute", statement="SELECT a FROM t ORDER BY id") == rows
    assert sql.call("execute", statement="PRAGMA page_count")[0][0] > LOCK_PAGE + 10
    sql.call("close")
    reader.call("close")
    assert replica.stop() == primary.stop() == 0
    for node in (primary, replica):
        with node.data.joinpath("dbs", "a.db", "database").open("rb") as file:
            assert DatabaseHeader.parse(file.read(100)).page_count > LOCK_PAGE
            file.seek((LOCK_PAGE - 1) * PAGE_SIZE)
            assert file.read(PAGE_SIZE) == bytes(PAGE_SIZE)
