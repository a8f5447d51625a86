"""Imports through any node, and what becomes of a target when one fails."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.node import Node, pages_equal, wait_equal
from tests.support.processes import Client, pause

TOKEN = "a-token-of-the-whole-cluster"
REPORTS = "a-token-of-one-database"
MEGABYTES = 20
"""More than the 16 MiB that the HTTP library takes of a request unless it is told."""


def make(path: Path, rows: int) -> int:
    """A database with an index, in a file of about a page a row; the root page of that index."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad)")
        db.execute("CREATE INDEX i ON t(v)")
        fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<?) "
        db.execute(fill + "INSERT INTO t SELECT i, i, zeroblob(3600) FROM n", (rows,))
        db.commit()
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='i'").fetchone()
    return int(root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.db"
    make(path, MEGABYTES * 256)
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The index lacks an entry that the table has: only an integrity check tells."""
    path = tmp_path / "damaged.db"
    root = make(path, 100)
    index = ("INSERT INTO sqlite_schema VALUES('index','i','t',?,'CREATE INDEX i ON t(v)')", (root,))
    forget, add = ("DELETE FROM sqlite_schema WHERE name='i'", ()), ("INSERT INTO t VALUES(1000, 5, '')", ())
    for statements in ((forget,), (add, index)):
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA writable_schema=ON")
            for statement, values in statements:
                db.execute(statement, values)
            db.commit()
    return path


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            yield data


def send(node: Node, name: str, path: Path, query: str = "", token: str = TOKEN) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(
        f"{node.url}/import?name={name}{query}", content=pieces(path), headers=headers, timeout=60
    )


def names(node: Node) -> list[str]:
    found: list[str] = node.files("list", path=str(node.mount))
    return sorted(found)


def test_an_import_through_a_replica(
    make_node: Callable[..., Node], make_client: Callable[..., Client], source: Path, damaged: Path
) -> None:
    http = {"auth-token": TOKEN, "tokens": [{"name": "r", "token": REPORTS, "databases": ["reports*"]}]}
    primary, replica = make_node("primary", http=http), make_node("replica", http=http)
    replica.configure(
        "lease", {"type": "static", "hostname": "primary", "advertise-url": primary.url, "candidate": False}
    )
    for node in (primary, replica):
        node.headers = {"Authorization": f"Bearer {TOKEN}"}
        node.start()
    answer = send(replica, "app.db", source)
    assert (answer.status_code, answer.text) == (200, "")
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=replica.path("app.db"), readonly=True)
    assert sql.call("execute", statement="SELECT count(*) FROM t") == [[MEGABYTES * 256]], "at once"
    before = wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")

    for node in (primary, replica):
        answer = send(node, "app.db", damaged)
        assert answer.status_code == 400
        assert "damaged" in answer.text
        assert send(node, "new.db", damaged).status_code == 400
        assert send(node, "new.db", Path(__file__)).status_code == 400
        assert send(node, "app.db", source, token=REPORTS).status_code == 403
    assert wait_equal(primary, replica, "app.db") == before, "a target that is refused is left as it was"
    assert "new.db" not in names(primary) + names(replica)

    assert send(replica, "reports.db", damaged, "&check=0", REPORTS).status_code == 200
    wait_equal(primary, replica, "reports.db")
    headers = {"Authorization": f"Bearer {REPORTS}"}
    for query, status in (("", 200), ("&check=0", 200), ("&check=1", 500)):
        answer = httpx.get(f"{replica.url}/export?name=reports.db{query}", headers=headers, timeout=60)
        assert answer.status_code == status
        assert status == 500 or answer.content[:15] == b"SQLite format 3"
    assert "damaged" in answer.text
    assert send(replica, "app.db", source, "&check=perhaps").status_code == 400


def test_a_primary_that_hangs_amid_an_import(primary_and_replica: tuple[Node, Node], source: Path) -> None:
    primary, replica = primary_and_replica
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        for piece in pieces(source):
            yield piece
            begun.set()
            go_on.wait(30)

    def ask() -> None:
        answers.append(httpx.post(f"{replica.url}/import?name=app.db", content=slowly(), timeout=60))

    answers: list[httpx.Response] = []
    thread = threading.Thread(target=ask)
    thread.start()
    assert primary.process is not None
    try:
        assert begun.wait(10)
        pause(primary.process.pid)
        begin = time.monotonic()
        go_on.set()
        thread.join(20)
        print(f"answered {time.monotonic() - begin:.1f} s after the primary hung")
    finally:
        primary.process.send_signal(signal.SIGCONT)
        go_on.set()
        thread.join(30)
    (answer,) = answers
    assert answer.status_code == 502
    assert "the connection to the primary was lost" in answer.text


def test_a_replica_without_a_primary(make_node: Callable[..., Node], source: Path) -> None:
    primary = make_node("primary")
    replica = make_node("replica", primary=primary).start()
    answer = httpx.post(f"{replica.url}/import?name=app.db", content=b"x" * 1000, timeout=30)
    assert answer.status_code in (502, 503)
    assert "cannot connect" in answer.text
