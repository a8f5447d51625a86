"""An empty replica beside a big primary: snapshots arrive while commits go on, none waits for another.

``LITEFS_SNAPSHOT_MB`` sets the size of the primary in MB (1024 by default); its content does not compress.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, spawn

MEGABYTES = int(os.environ.get("LITEFS_SNAPSHOT_MB", "1024"))
BLOB = 1 << 20


def make_big(path: Path, megabytes: int) -> None:
    """A database of random megabyte blobs, outside any mount."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE big(id INTEGER PRIMARY KEY, data BLOB)")
    connection.executemany("INSERT INTO big(data) VALUES(?)", ((os.urandom(BLOB),) for _ in range(megabytes)))
    connection.commit()
    connection.close()


def import_file(node: Node, name: str, path: Path) -> None:
    """``litefs import`` from a process of its own."""
    command = ["-m", "litefs.cli.main", "import", "-url", node.url, "-name", name, str(path)]
    process = spawn([sys.executable, *command])
    assert process.wait(120) == 0


@pytest.mark.timeout(300)
def test_snapshot_arrives_while_the_primary_commits(
    tmp_path: Path, make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    source = tmp_path / "source.db"
    make_big(source, MEGABYTES)
    primary = make_node("primary").start()
    import_file(primary, "big.db", source)
    source.unlink()
    writer = make_client("sql", "apsw")
    small = make_client("sql", "sqlite3")
    small.call("open", path=primary.path("small.db"))
    small.call(
        "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"]
    )
    writer.call("open", path=primary.path("big.db"))
    writer.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(n INTEGER PRIMARY KEY, a)"])

    replica = make_node("replica", primary=primary).start()
    began = time.monotonic()
    small_at = big_at = longest = 0.0
    number = 0
    while time.monotonic() < began + 120:
        number += 1
        start = time.monotonic()
        writer.call("execute", statement=f"INSERT INTO t VALUES({number}, randomblob(1000))")
        if number % 50 == 0:
            # Pages that the snapshot has perhaps sent already, or is about to send.
            change = f"UPDATE big SET data=zeroblob(1000) WHERE id={number % MEGABYTES + 1}"
            writer.call("execute", statement=change)
        longest = max(longest, time.monotonic() - start)
        if not small_at and replica.position("small.db") is not None:
            small_at = time.monotonic() - began
        if replica.position("big.db") is not None:
            big_at = time.monotonic() - began
            break
        time.sleep(0.01)
    print(
        f"small after {small_at:.2f} s, big after {big_at:.2f} s; {number} commits, longest {longest:.3f} s"
    )
    assert big_at, f"no snapshot of {MEGABYTES} MB within 120 s\n{replica.log_tail()}"
    assert small_at
    assert small_at < big_at, "the small database waited for the big one's snapshot"
    assert number > 10, "the primary did not commit meanwhile"
    assert longest < 2.0, "a commit waited for the snapshot"
    wait_present(replica, "big.db")
    for name in ("big.db", "small.db"):
        wait_equal(primary, replica, name, 60)
    pages_equal(primary, replica, "small.db")
    pages_equal(primary, replica, "big.db", 120)
