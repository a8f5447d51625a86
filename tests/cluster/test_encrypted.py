"""Encrypted databases: replicated as they are if their header can be read, refused if not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from litefs.types import ZERO
from tests.support.node import Node, wait_equal
from tests.support.processes import Client, ClientError

PLAIN_HEADER = 32
MODES = ("DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF")
"""Not WAL: see clients/scrambled.py. On the replica the pages are read from a WAL in each mode."""


def test_encrypted_pages_are_replicated_if_the_header_is_plain(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    for mode in MODES:
        name = f"{mode.lower()}.db"
        writer = make_client("scrambled", primary.path(name), PLAIN_HEADER)
        for statement in (
            f"PRAGMA journal_mode={mode}",
            "CREATE TABLE t(a)",
            "INSERT INTO t VALUES('secret'),(zeroblob(9000))",
            "UPDATE t SET a=zeroblob(100) WHERE a<>'secret'",
            "VACUUM",
        ):
            writer.call("execute", statement=statement)
        wait_equal(primary, replica, name)
        assert "secret" not in replica.files("read", path=replica.path(name))
        reader = make_client("scrambled", replica.path(name), PLAIN_HEADER, "readonly")
        rows = reader.call("execute", statement="SELECT quote(a) FROM t")
        assert rows == [["'secret'"], [f"X'{'00' * 100}'"]]
        assert reader.call("execute", statement="PRAGMA integrity_check") == [["ok"]]


@pytest.mark.parametrize("mode", MODES)
def test_a_header_that_cannot_be_read_is_refused(
    make_node: Callable[..., Node], make_client: Callable[..., Client], mode: str
) -> None:
    primary = make_node("primary").start()
    writer = make_client("scrambled", primary.path("a.db"), 0)
    writer.call("execute", statement=f"PRAGMA journal_mode={mode}")
    with pytest.raises(ClientError, match="disk I/O error"):
        writer.call("execute", statement="CREATE TABLE t(a)")
    assert "refused: a.db: database header: offset 0: not a SQLite database" in primary.log_tail()
    assert primary.position("a.db") == ZERO
    plain = make_client("sql", "sqlite3")  # others are not affected
    plain.call("open", path=primary.path("b.db"))
    plain.call("script", statements=["CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"])
    assert primary.position("b.db") not in (None, ZERO)
