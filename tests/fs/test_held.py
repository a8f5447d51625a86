"""Commits that wait for replicas, on a real mount: this test is the node process that knows of replicas."""

from __future__ import annotations

import select
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from litefs.link.messages import Deadline, Holding, Replication, SetRole
from litefs.link.rules import SyncRules
from litefs.store.paths import DataDir
from litefs.store.sums import SumsFile
from litefs.types import Role
from tests.fs.harness import Fs, python, serving, wait_for

DATABASES = 120
"""More than the 99 requests that pyfuse3 works at by default."""

CREATE = """
import sqlite3, sys
root, count = sys.argv[1], int(sys.argv[2])
for n in range(count):
    db = sqlite3.connect(f"{root}/{n}.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t(x)")
"""

INSERT_EVERYWHERE = """
import sqlite3, sys, threading
root, count = sys.argv[1], int(sys.argv[2])
def insert(n):
    db = sqlite3.connect(f"{root}/{n}.db", isolation_level=None)
    db.execute("INSERT INTO t VALUES(1)")
    print("done", flush=True)
threads = [threading.Thread(target=insert, args=(n,)) for n in range(count)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""

READ = (
    "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM t').fetchone()[0])"
)

INSERT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
try:
    db.execute("INSERT INTO t VALUES(1)")
    print("committed")
except sqlite3.OperationalError as error:
    print(error)
"""


def tell(fs: Fs, *, waiting: bool = True, hold: int = 0, counted: int = 1, released: int = 0) -> None:
    names = [f"{n}.db" for n in range(DATABASES)] if released else []
    settled = not waiting or counted > 0
    fs.send(Replication(waiting, counted, counted, settled, hold, dict.fromkeys(names, released)))


def last_txid(fs: Fs, name: str) -> int:
    with closing(SumsFile(DataDir(fs.data).database_dir(name).sums)) as file:
        return file.sums.snapshot()[0]


def test_held_commits_of_many_databases_hold_up_nobody_else(tmp_path: Path) -> None:
    with serving(tmp_path, sync=SyncRules(1, timeout=8, degrade=True)) as fs:
        tell(fs, waiting=False)
        python(CREATE, fs.mount, DATABASES + 1)
        before = last_txid(fs, "0.db")
        tell(fs, hold=1)
        assert fs.expect(Holding) == Holding(1)
        command = [sys.executable, "-c", INSERT_EVERYWHERE, str(fs.mount), str(DATABASES)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            try:
                wait_for(
                    lambda: all(last_txid(fs, f"{n}.db") > before for n in range(DATABASES)),
                    6,
                    "commits",
                    0.1,
                )
                # a database with a held commit keeps new connections waiting: the kernel has its WAL locked
                assert python(READ, fs.mount / f"{DATABASES}.db", timeout=6) == "0\n"
                assert client.stdout is not None
                assert not select.select([client.stdout], [], [], 0)[0], "answered before it was released"
                tell(fs, hold=1, released=before + 1)
                assert client.stdout.read().count("done") == DATABASES
            finally:
                client.kill()


@pytest.mark.parametrize("end", ["role", "deadline", "node"])
def test_what_ends_the_wait_is_an_error_to_the_client(tmp_path: Path, end: str) -> None:
    with serving(tmp_path, sync=SyncRules(1, timeout=8)) as fs:
        tell(fs, released=1000)
        python(CREATE, fs.mount, 1)
        fs.send(SetRole(Role.PRIMARY, term=2, deadline_ns=1 << 62))  # what was released counts no more
        tell(fs)
        before = last_txid(fs, "0.db")
        command = [sys.executable, "-c", INSERT, str(fs.mount / "0.db")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            try:
                wait_for(lambda: last_txid(fs, "0.db") > before, 10, "a commit")
                assert client.poll() is None
                if end == "role":
                    fs.send(SetRole(Role.REPLICA, term=3))
                elif end == "deadline":
                    fs.send(Deadline(1))
                else:
                    fs.hang_up()
                assert client.communicate(timeout=10)[0] == "disk I/O error\n"
            finally:
                client.kill()
