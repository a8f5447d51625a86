"""Whole databases in and out of a node while clients write and the node itself looks at the wal-index."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client

ROWS = 12_000
"""Of about a page each: a copy takes long enough for some commits."""

FILL = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{}) "
    "INSERT INTO t(v, pad) SELECT 0, randomblob(3500) FROM n"
)
MANY = "id % 50 = 0"
"""All of these rows have one value after every transaction."""


@contextmanager
def repeating(step: Callable[[], object]) -> Iterator[list[int]]:
    """``step`` again and again in a thread, beside the block; yields how often it was done."""
    done, stop, failed = [0], threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            while not stop.is_set():
                step()
                done[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def made(node: Node, sql: Client) -> None:
    """``app.db`` in WAL mode, checkpointed at every commit."""
    sql.call("open", path=node.path("app.db"))
    for statement in (
        "PRAGMA journal_mode=WAL",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad)",
        FILL.format(ROWS),
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA wal_autocheckpoint=1",
    ):
        sql.call("execute", 60, statement=statement)


def waiting(node: Node, http: httpx.Client) -> Callable[[], object]:
    return lambda: http.get(f"{node.url}/db/app.db/wait?txid=1", timeout=60)


@pytest.mark.timeout(180)
def test_an_export_is_one_state(make_node: Callable[..., Node], make_client: Callable[..., Client]) -> None:
    node = make_node("primary").start()
    sql = make_client("sql", "sqlite3")
    made(node, sql)
    numbers = iter(range(1, 1 << 30))

    def write() -> None:
        sql.call("execute", 60, statement=f"UPDATE t SET v={next(numbers)} WHERE {MANY}")

    with (
        httpx.Client(http1=False, http2=True) as http,
        repeating(write) as writes,
        repeating(waiting(node, http)) as waits,
    ):
        for number in range(4):
            before = writes[0]
            copy = node.root / f"copy{number}"
            copy.write_bytes(httpx.get(f"{node.url}/export?name=app.db", timeout=60).content)
            with closing(sqlite3.connect(copy)) as db:
                values = db.execute(f"SELECT v, count(*) FROM t WHERE {MANY} GROUP BY v").fetchall()
                assert len(values) == 1, f"a copy of more than one state: {values}"
            print(f"export {number} beside {writes[0] - before} commits, {waits[0]} waits")
    assert writes[0] > 4


@pytest.mark.timeout(180)
def test_an_import_keeps_other_writers_out(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client], tmp_path: Path
) -> None:
    primary, replica = primary_and_replica
    sql, other = make_client("sql", "sqlite3"), make_client("sql", "sqlite3")
    made(primary, sql)
    wait_present(replica, "app.db")
    content = httpx.get(f"{primary.url}/export?name=app.db", timeout=60).content
    other.call("open", path=primary.path("app.db"), timeout=60)
    other.call("execute", statement="PRAGMA wal_autocheckpoint=1")

    def write() -> None:
        other.call("execute", 90, statement="UPDATE t SET v=v+1 WHERE id=1")

    with (
        httpx.Client(http1=False, http2=True) as http,
        repeating(write) as writes,
        repeating(waiting(primary, http)),
    ):
        for _ in range(2):
            answer = httpx.post(f"{primary.url}/import?name=app.db", content=content, timeout=60)
            assert answer.status_code == 200, answer.text
    print(f"{writes[0]} commits beside")
    assert writes[0] > 4
    assert other.call("execute", 30, statement="PRAGMA integrity_check") == [["ok"]]
    wait_equal(primary, replica, "app.db", 60)
    pages_equal(primary, replica, "app.db")
