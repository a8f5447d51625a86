"""``strict-verify`` and ``data.compress`` on a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.types import START
from tests.support.node import Node
from tests.support.processes import Client, ClientError


def record_sizes(node: Node) -> list[int]:
    with LogReader(DataDir(node.data).database_dir("app.db").log) as reader:
        tip = reader.tip().txid
        assert reader.seek(START)
        return [entry.size for entry in reader.read(tip)]


def test_a_page_that_is_not_as_committed_ends_commits(
    make_node: Callable[..., Node], make_client: Callable[..., Client], tmp_path: Path
) -> None:
    data = {"dir": str(tmp_path / "primary/data"), "compress": False}
    node = make_node("primary", data=data, **{"strict-verify": True}).start()
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=node.path("app.db"))
    sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "CREATE TABLE u(a)"])
    sql.call("script", statements=["INSERT INTO t VALUES(zeroblob(5000))"] * 5)
    assert min(record_sizes(node)[-5:]) > 2 * 4096, "pages that are zeros are not compressed"
    sql.call("execute", statement="PRAGMA wal_checkpoint(TRUNCATE)")
    with (node.data / "dbs/app.db/database").open("r+b") as file:
        file.seek(-500, 2)  # an overflow page of the last row, which no later statement reads
        file.write(b"\x55")
    sql.call("execute", statement="INSERT INTO u VALUES(1)")
    with pytest.raises(ClientError):
        sql.call("execute", statement="INSERT INTO u VALUES(2)")
    assert "app.db: strict-verify: 1 pages are not as committed" in node.log.read_text()
