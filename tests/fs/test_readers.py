"""Readers of the mount: mapped files, other users, and connections that outlive their node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.harness import python, serving
from tests.support.node import Node

MAPPED = """
import sqlite3, sys
def connect():
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    db.execute("PRAGMA mmap_size=1073741824")
    return db
writer = connect()
writer.execute("PRAGMA journal_mode=" + sys.argv[2])
writer.execute("CREATE TABLE t(a)")
reader = connect()
expected = 0
for step in range(6):
    writer.execute("INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300)"
                   " SELECT randomblob(3000) FROM n")
    if sys.argv[2] == "WAL":
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert reader.execute("SELECT count(*), sum(length(a)) FROM t").fetchone() == (300, 900000)
    assert reader.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    writer.execute("DELETE FROM t")
    writer.execute("VACUUM")
    if sys.argv[2] == "WAL":
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert reader.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
print("fine")
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_mapped_database_that_grows_and_shrinks(tmp_path: Path, mode: str) -> None:
    with serving(tmp_path) as fs:
        assert python(MAPPED, fs.mount / "a.db", mode) == "fine\n"


OLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=2)
db.execute("PRAGMA mmap_size=" + sys.argv[3])
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("CREATE TABLE IF NOT EXISTS t(a)")
print(db.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
for line in sys.stdin:
    try:
        print(db.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
    except sqlite3.Error as error:
        print("error", error, flush=True)
"""
INSERT = """
import sqlite3, sys
sqlite3.connect(sys.argv[1], isolation_level=None).execute("INSERT INTO t VALUES(1)")
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, "primary")
    yield made
    made.discard()


@pytest.mark.parametrize("which", ["node", "both", "fs"])
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("mmap_size", [0, 1 << 30])
def test_old_connections_fail_or_see_the_new_state(node: Node, which: str, mode: str, mmap_size: int) -> None:
    """Killed, restarted, written to: a connection of the old mount never answers from before."""
    node.start()
    path = node.path("a.db")
    command = [sys.executable, "-c", OLD, path, mode, str(mmap_size)]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == "0\n"
        killed = node.fs_pid()
        if which == "fs":
            time.sleep(1.2)  # the node process has seen the files that it guards
        node.kill(which)  # type: ignore[arg-type]
        if which == "fs":
            node.wait_recovered(killed)
        else:
            node.start()
        python(INSERT, path)
        for _ in range(2):
            client.stdin.write("\n")
            client.stdin.flush()
            answer = client.stdout.readline()
            if not answer:  # a mapped page that is no longer in memory: the kernel has nobody to ask for it
                assert mmap_size
                assert client.wait(5) == -signal.SIGBUS
                break
            assert answer == "1\n" or answer.startswith("error"), answer
    finally:
        client.kill()
        client.communicate()
    assert node.stop() == 0


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user may pass through, unlike ``tmp_path``, which each start of pytest closes."""
    with tempfile.TemporaryDirectory(prefix="litefs-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


def test_another_user_on_the_mount(public_path: Path) -> None:
    """allow_other: an application under its own user reads and writes what it owns, and so it stays."""
    fuse = {"dir": str(public_path / "primary/mnt"), "allow-other": True, "uid": 65534, "gid": 65534}
    node = Node(public_path, "primary", fuse=fuse)
    script = """
import os, sqlite3, sys
os.setgid(65534); os.setuid(65534)
for mode in ("WAL", "DELETE"):
    db = sqlite3.connect(sys.argv[1] + mode, isolation_level=None)
    db.execute("PRAGMA journal_mode=" + mode)
    db.execute("CREATE TABLE t(a)"); db.execute("INSERT INTO t VALUES(1)")
    print(db.execute("SELECT count(*) FROM t").fetchone()[0], {os.stat(sys.argv[1] + mode).st_uid})
    if mode == "WAL":
        print(*(os.stat(sys.argv[1] + mode + end).st_uid for end in ("-wal", "-shm")))
"""
    try:
        os.chown(node.mount, 65534, 65534)
        node.start()
        assert python(script, node.path("a.db")).splitlines() == ["1 {65534}", "65534 65534", "1 {65534}"]
    finally:
        node.discard()
