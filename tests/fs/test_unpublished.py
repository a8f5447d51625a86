"""A commit that is in the log but in no wal-index is never lost, never overwritten, and soon seen by all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from litefs.link.messages import Unpublished
from litefs.store.paths import DataDir
from litefs.types import Role
from tests.fs.harness import Fs, python, serving, wait_for
from tests.fs.replay import rebuilt, replay
from tests.fs.unpublished import publishing, wal_of, write_wal

SETUP = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS t(a)")
print(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
"""
HOLDER = (
    SETUP
    + """
print(db.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
for line in sys.stdin:
    print(db.execute("SELECT group_concat(a) FROM t").fetchone()[0], flush=True)
"""
)
INSERT = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
errors = 0
while True:
    try:
        db.execute("INSERT INTO t VALUES(?)", (sys.argv[2],))
        break
    except sqlite3.OperationalError as error:
        errors += 1
        assert errors < 50, error
        time.sleep(0.02)
print(errors, db.execute("SELECT group_concat(a) FROM t").fetchone()[0])
"""


def log_of(fs: Fs, name: str = "a.db") -> Path:
    return DataDir(fs.data).database_dir(name).log


def logged_rows(fs: Fs, scratch: Path) -> str:
    """What the log alone says is in the table."""
    db = rebuilt(log_of(fs), scratch / "rebuilt.db")
    try:
        return str(db.execute("SELECT group_concat(a) FROM t").fetchone()[0])
    finally:
        db.close()


@pytest.mark.parametrize("holder", [True, False])
def test_first_commit_of_a_wal(tmp_path: Path, holder: bool) -> None:
    """The salts of the first commit stand in no wal-index yet: its client draws them anew."""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        command = [sys.executable, "-c", HOLDER if holder else SETUP, str(path)]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdin is not None
        try:
            client.stdout.readline()
            if holder:
                assert client.stdout.readline() == "0\n"
            else:
                client.wait(5)
            wal = tmp_path / "foreign-wal"
            wal.write_bytes(wal_of(fs, "a.db", tmp_path, "INSERT INTO t VALUES('first')"))
            assert write_wal(fs, "a.db", wal) == "done"
            assert logged_rows(fs, tmp_path) == "first"
            with publishing(fs, "a.db"):
                if holder:

                    def seen() -> bool:
                        assert client.stdin is not None
                        assert client.stdout is not None
                        client.stdin.write("\n")
                        client.stdin.flush()
                        return client.stdout.readline() == "first\n"

                    wait_for(seen, 5, "sight of the commit")
                errors, rows = python(INSERT, path, "second").split()
            assert rows == "first,second"
            assert int(errors) <= 1
            assert logged_rows(fs, tmp_path) == "first,second"
        finally:
            client.kill()
            client.communicate()


def test_repeating_a_commit_after_the_deadline_is_not_acknowledged(tmp_path: Path) -> None:
    """Its outcome is unknown to this node then, however often its client asks."""
    with serving(tmp_path) as fs:
        python(SETUP, fs.mount / "a.db")
        wal = tmp_path / "foreign-wal"
        wal.write_bytes(wal_of(fs, "a.db", tmp_path, "INSERT INTO t VALUES('first')"))
        assert write_wal(fs, "a.db", wal) == "done"
        tip = replay(log_of(fs))[0]
        fs.become(Role.PRIMARY, deadline_ns=1)
        assert write_wal(fs, "a.db", wal, 32) == "EIO"
        fs.become(Role.PRIMARY)
        assert write_wal(fs, "a.db", wal, 32) == "done"
        assert replay(log_of(fs))[0] == tip


def test_nothing_is_written_over_a_logged_frame(tmp_path: Path) -> None:
    with serving(tmp_path) as fs:
        python(SETUP, fs.mount / "a.db")
        wal, other = tmp_path / "foreign-wal", tmp_path / "other-wal"
        wal.write_bytes(wal_of(fs, "a.db", tmp_path, "INSERT INTO t VALUES('first')"))
        other.write_bytes(wal_of(fs, "a.db", tmp_path, "INSERT INTO t VALUES('other')"))
        assert write_wal(fs, "a.db", wal) == "done"
        assert write_wal(fs, "a.db", other, 32) == "EIO"
        assert fs.expect(Unpublished).name == "a.db"
        assert write_wal(fs, "a.db", other) == "EIO", "a new header while pages are only in the WAL"
        script = """
import errno, os, sys
for action in (lambda: os.truncate(sys.argv[1], 0), lambda: os.truncate(sys.argv[1], 4000), lambda: os.unlink(sys.argv[1])):
    try:
        print(action())
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
        assert python(script, fs.mount / "a.db-wal").split() == ["EIO"] * 3
        assert python(INSERT, fs.mount / "a.db", "second").split() == ["0", "first,second"]
        assert logged_rows(fs, tmp_path) == "first,second"


BIG = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("PRAGMA synchronous=OFF")
db.execute("PRAGMA cache_size=-200000")
db.execute("CREATE TABLE IF NOT EXISTS t(a)")
db.execute("BEGIN")
db.execute("INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 40) SELECT zeroblob(1000000) FROM n")
db.execute("INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 40) SELECT randomblob(1000000) FROM n")
print("commit", flush=True)
try:
    db.execute("COMMIT")
    print("committed")
except sqlite3.OperationalError as error:
    print(error)
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
def test_a_deadline_that_passes_during_the_append(tmp_path: Path, mode: str) -> None:
    """The client hears of an error, the commit is in the log: once the node may answer again, all see it."""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python(SETUP.replace("WAL", mode, 1), path)
        command = [sys.executable, "-c", BIG, str(path), mode]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == "commit\n"
            log = log_of(fs)
            wait_for(
                lambda: sum(path.stat().st_size for path in log.iterdir()) > 10 << 20, 10, "append", 0.001
            )
            fs.become(Role.PRIMARY, deadline_ns=1)
            assert client.stdout.readline() == "disk I/O error\n"
        finally:
            client.kill()
            client.communicate()
        fs.become(Role.PRIMARY)
        with publishing(fs, "a.db"):
            count = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*), sum(length(a)) FROM t').fetchone())"
            assert python(count, path).split() == ["80", "80000000"]
            insert = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('DELETE FROM t'); db.execute('INSERT INTO t VALUES(1)')"
            python(insert, path)
        assert logged_rows(fs, tmp_path) == "1"
