"""Capture on a real mount: whatever clients do, the log alone rebuilds the database they see."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from litefs.clock import boottime_ns
from litefs.store.paths import DataDir
from litefs.types import Position, Role
from tests.fs.harness import Fs, python, serving, wait_for
from tests.fs.replay import rebuilt, replay

WORKLOAD = """
import random, sqlite3, sys
path, mode, page_size, seed, count, sync = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
rng = random.Random(seed)
db = sqlite3.connect(path, isolation_level=None, timeout=10)
db.execute(f"PRAGMA page_size={page_size}")
db.execute(f"PRAGMA journal_mode={mode}")
db.execute(f"PRAGMA synchronous={sync}")
db.execute("PRAGMA cache_size=10")
db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b BLOB)")
db.execute("CREATE INDEX IF NOT EXISTS ta ON t(a)")
for i in range(count):
    what = rng.random()
    if what < 0.35:
        db.execute("INSERT INTO t(a, b) VALUES (?, ?)", (rng.random(), rng.randbytes(rng.randrange(2000))))
    elif what < 0.5:
        db.execute("UPDATE t SET a = ? WHERE id % 7 = ?", (rng.random(), rng.randrange(7)))
    elif what < 0.6:
        db.execute("DELETE FROM t WHERE id % 11 = ?", (rng.randrange(11),))
    elif what < 0.8:
        db.execute("BEGIN")
        for _ in range(rng.randrange(1, 60)):
            db.execute("INSERT INTO t(a, b) VALUES (?, ?)", (rng.random(), rng.randbytes(rng.randrange(3000))))
        db.execute("SAVEPOINT s")
        db.execute("UPDATE t SET b = zeroblob(500) WHERE id % 3 = 0")
        if rng.random() < 0.5:
            db.execute("ROLLBACK TO s")
        db.execute("COMMIT" if rng.random() < 0.7 else "ROLLBACK")
    elif what < 0.9 and mode == "WAL":
        db.execute("PRAGMA wal_checkpoint(%s)" % rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]))
    elif what < 0.92:
        db.execute("PRAGMA page_size=%d" % rng.choice([512, 1024, 65536]))
        db.execute("VACUUM")
    else:
        db.execute("UPDATE t SET a = a WHERE id = 1")
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
for row in db.execute("SELECT id, a, hex(b) FROM t ORDER BY id"):
    print(*row)
"""


def contents(log: Path, target: Path) -> str:
    with rebuilt(log, target) as db:
        rows = db.execute("SELECT id, a, hex(b) FROM t ORDER BY id")
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
    db.close()
    return text


def position(fs: Fs, name: str) -> Position:
    return Position.parse(
        python("import sys; print(open(sys.argv[1]).read(), end='')", fs.mount / f"{name}-pos")
    )


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_log_rebuilds_what_clients_see(tmp_path: Path, mode: str, page_size: int) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    sync = random.Random(seed).choice(["OFF", "NORMAL", "FULL"])
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    with serving(tmp_path) as fs:
        seen = python(WORKLOAD, fs.mount / "a.db", mode, page_size, seed, 60, sync)
        assert contents(log, tmp_path / "rebuilt.db") == seen
        assert replay(log)[0] == position(fs, "a.db")
        again = python(WORKLOAD, fs.mount / "a.db", mode, page_size, seed + 1, 20, sync)
        assert contents(log, tmp_path / "rebuilt.db") == again
        fs.stop()
    # the database file alone holds it all after a clean stop
    after = python(WORKLOAD, tmp_path / "data" / "dbs" / "a.db" / "database", mode, page_size, 0, 0, sync)
    assert after == again


def test_changes_that_cancel_in_the_checksum_are_logged(tmp_path: Path) -> None:
    """The database checksum is an XOR of CRCs: equal changes of two pages leave it as it was."""
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
for table in "gt":
    db.execute(f"CREATE TABLE {table}(id INTEGER PRIMARY KEY, a, b)")
    db.execute(f"INSERT INTO {table} VALUES (1, 64, x'00')")
for step in range(1, 6):
    before = open(sys.argv[1] + "-pos").read()
    db.execute("BEGIN")
    for table in "gt":
        db.execute(f"UPDATE {table} SET a = 64 + {step}")
    db.execute("COMMIT")
    after = open(sys.argv[1] + "-pos").read()
    assert int(after[:16], 16) == int(before[:16], 16) + 1, "not logged"
    assert after[17:] == before[17:], "the changes do not cancel"
assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
for row in db.execute("SELECT * FROM t"):
    print(row[0], row[1], row[2].hex().upper())
"""
    with serving(tmp_path) as fs:
        seen = python(script, fs.mount / "a.db")
        assert contents(DataDir(tmp_path / "data").database_dir("a.db").log, tmp_path / "rebuilt.db") == seen


def test_a_database_that_shrinks_under_a_checkpoint(tmp_path: Path) -> None:
    """The checkpoint then copies pages that are beyond the end: nobody waits for them."""
    script = """
import apsw, sys
class File(apsw.VFSFile):
    def xWrite(self, data, offset):
        if then:
            then.pop()()
        super().xWrite(data, offset)
class Vfs(apsw.VFS):
    def __init__(self):
        super().__init__("pausing", "")
    def xOpen(self, name, flags):
        return File("", name, flags) if flags[0] & apsw.SQLITE_OPEN_MAIN_DB else super().xOpen(name, flags)
def shrink():
    db.execute("DELETE FROM t WHERE id > 5")
    db.execute("VACUUM")
vfs = Vfs()
then = []
db = apsw.Connection(sys.argv[1])
for statement in ("PRAGMA page_size=512", "PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0",
                  "CREATE TABLE t(id INTEGER PRIMARY KEY, a)"):
    db.execute(statement).fetchall()
db.execute("INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 200)"
           " SELECT i, randomblob(300) FROM n")
checkpointer = apsw.Connection(sys.argv[1], vfs="pausing")
checkpointer.execute("SELECT count(*) FROM t").fetchall()
then.append(shrink)
checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
assert not then, "the checkpoint wrote nothing"
busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
assert busy == [(0, 0, 0)], busy
db.execute("INSERT INTO t(a) VALUES (x'01')")
assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
for row in db.execute("SELECT id, hex(a) FROM t"):
    print(*row)
"""
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    with serving(tmp_path) as fs:
        seen = python(script, fs.mount / "a.db")
        with rebuilt(log, tmp_path / "rebuilt.db") as db:
            rows = db.execute("SELECT id, hex(a) FROM t").fetchall()
        assert "".join(f"{row[0]} {row[1]}\n" for row in rows) == seen


def test_big_transaction_is_streamed(tmp_path: Path) -> None:
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)")
db.execute("INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 6000) SELECT i, i, randomblob(3000) FROM n")
db.execute("UPDATE t SET a = -a")
for row in db.execute("SELECT id, a, hex(b) FROM t ORDER BY id"):
    print(*row)
"""
    with serving(tmp_path) as fs:
        for mode in ("WAL", "DELETE"):
            seen = python(script, fs.mount / f"{mode}.db", mode, timeout=60)
            log = DataDir(tmp_path / "data").database_dir(f"{mode}.db").log
            assert contents(log, tmp_path / "rebuilt.db") == seen


def test_a_small_commit_after_a_big_rollback(tmp_path: Path) -> None:
    """What was spilled into the WAL and rolled back lies far behind the end of the next commit."""
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA cache_size=10")
db.execute("CREATE TABLE t(a)")
db.execute("BEGIN")
db.executemany("INSERT INTO t VALUES(?)", ((bytes(3000),) for _ in range(2000)))
db.execute("ROLLBACK")
for commit in range(600):
    db.execute("INSERT INTO t VALUES(randomblob(3000))")
print(db.execute("SELECT count(*) FROM t").fetchone(), db.execute("PRAGMA integrity_check").fetchone())
"""
    with serving(tmp_path) as fs:
        assert python(script, fs.mount / "a.db") == "(600,) ('ok',)\n"


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_commit_after_the_deadline_is_refused_and_leaves_nothing(tmp_path: Path, mode: str) -> None:
    script = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)")
count = 0
until = time.monotonic() + 10
while time.monotonic() < until:
    try:
        db.execute("INSERT INTO t(a) VALUES (?)", (count,))
        count += 1
        time.sleep(0.01)
    except sqlite3.OperationalError as e:
        print("error", e)
        break
print(count, db.execute("SELECT count(*) FROM t").fetchone()[0])
"""
    for attempt in ("first", "second", "third"):
        root = tmp_path / attempt
        root.mkdir()
        with serving(root, Role.NONE) as fs:
            fs.become(Role.PRIMARY, boottime_ns() + 1_500_000_000)
            error, counts = python(script, fs.mount / "a.db", mode).splitlines()
            assert error == "error disk I/O error"
            if "its outcome is not known yet" in (root / "fs.log").read_text():
                continue  # the deadline passed between the append and the reply: another case, and rare
            committed, visible = map(int, counts.split())
            assert committed == visible > 0
            log = DataDir(root / "data").database_dir("a.db").log
            with rebuilt(log, root / "rebuilt.db") as db:
                assert db.execute("SELECT count(*) FROM t").fetchone()[0] == committed
            db.close()
            fs.become(Role.PRIMARY)
            python(
                "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('DELETE FROM t')",
                fs.mount / "a.db",
            )
            return
    pytest.fail("the deadline never passed before an append")


def test_killed_writer_leaves_a_commit_that_the_next_one_sees(tmp_path: Path) -> None:
    """The client dies between the commit frame and its publication: the log has it, nobody may write over it."""
    writer = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a)")
print("ready", flush=True)
while True:
    db.execute("INSERT INTO t(a) VALUES (1)")
    print(db.execute("SELECT max(id) FROM t").fetchone()[0], flush=True)
"""
    import subprocess
    import sys

    count = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM t').fetchone()[0])"
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    with serving(tmp_path) as fs:
        for _ in range(8):
            client = subprocess.Popen(
                [sys.executable, "-c", writer, str(fs.mount / "a.db")], stdout=subprocess.PIPE
            )
            try:
                assert client.stdout is not None
                assert client.stdout.readline() == b"ready\n"
                time.sleep(random.random() * 0.2)
            finally:
                client.kill()
                output, _ = client.communicate()
            acknowledged = int(output.split()[-1]) if output.split() else 0
            seen = int(python(count, fs.mount / "a.db"))
            assert seen >= acknowledged
            with rebuilt(log, tmp_path / "rebuilt.db") as db:
                assert db.execute("SELECT count(*) FROM t").fetchone()[0] == seen
            db.close()


def test_replica_role_refuses_writers_but_lets_them_read(tmp_path: Path) -> None:
    with serving(tmp_path) as fs:
        python(
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA journal_mode=WAL'); db.execute('CREATE TABLE t(a)')",
            fs.mount / "a.db",
        )
        fs.stop()
    script = """
import os, sqlite3, sys
for action in (lambda: os.open(sys.argv[1], os.O_RDWR), lambda: open(sys.argv[1] + "-journal", "w"), lambda: os.unlink(sys.argv[1])):
    try:
        action()
        print("done")
    except OSError as e:
        print(e.strerror)
print(open(sys.argv[1], "rb").read(15))
"""
    (tmp_path / "data/dbs/a.db/database-wal").touch()
    with serving(tmp_path, Role.REPLICA) as fs:
        lines = python(script, fs.mount / "a.db").splitlines()
        assert lines == ["Read-only file system"] * 3 + ["b'SQLite format 3'"]


def test_names_and_directories(tmp_path: Path) -> None:
    script = """
import os, sqlite3, sys
os.chdir(sys.argv[1])
os.mkdir("sub"); os.mkdir("sub/deep")
sqlite3.connect("sub/deep/x.db").execute("CREATE TABLE t(a)")
sqlite3.connect("y.db").execute("CREATE TABLE t(a)")
print(sorted(os.listdir(".")), os.listdir("sub"), sorted(os.listdir("sub/deep")))
for action in (lambda: os.rmdir("sub"), lambda: os.rename("y.db", "z.db"), lambda: os.unlink("y.db"), lambda: open("nodb-wal", "w"), lambda: open("sub/deep/x.db-pos", "w"), lambda: os.mknod("f")):
    try:
        action()
        print("done")
    except OSError as e:
        print(e.strerror)
print(open(".lag").read(), os.statvfs(".").f_namemax, open("sub/deep/x.db-pos").read()[:17])
os.chdir("/")
"""
    with serving(tmp_path) as fs:
        lines = python(script, fs.mount).splitlines()
    assert lines[0] == "['.lag', 'sub', 'y.db', 'y.db-pos'] ['deep'] ['x.db']"
    assert lines[1:7] == [
        "Directory not empty",
        "Device or resource busy",
        "done",
        "Invalid argument",
        "Permission denied",
        "Operation not permitted",
    ]
    assert lines[7:] == ["+000000000", " 200 0000000000000001/"]
    with serving(tmp_path) as fs:
        assert (
            python("import os, sys; print(sorted(os.listdir(sys.argv[1])))", fs.mount / "sub/deep").strip()
            == "['x.db']"
        )


def test_mount_ends_with_its_node(tmp_path: Path) -> None:
    with serving(tmp_path) as fs:
        python(
            "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('CREATE TABLE t(a)')",
            fs.mount / "a.db",
        )
        fs._socket.close()
        wait_for(lambda: fs.process.poll() is not None, 10, "end of the fs process")
        assert not (fs.mount / "a.db").exists()
