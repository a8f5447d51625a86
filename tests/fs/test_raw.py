"""Writes that no journal covers, on a real mount: journal_mode MEMORY and OFF, and files copied into it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from litefs.store.segments import list_segments
from litefs.types import Position, Role
from tests.fs.harness import Fs, python, serving, wait_for
from tests.fs.replay import rebuilt, replay

WORKLOAD = """
import random, sqlite3, sys
path, mode, sync, exclusive = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[6]
rng, count = random.Random(int(sys.argv[4])), int(sys.argv[5])
db = sqlite3.connect(path, isolation_level=None, timeout=20)
db.execute(f"PRAGMA locking_mode={exclusive}")
db.execute("PRAGMA page_size=1024")
db.execute("PRAGMA auto_vacuum=%s" % rng.choice(["NONE", "FULL", "INCREMENTAL"]))
db.execute("PRAGMA cache_size=5")
db.execute(f"PRAGMA synchronous={sync}")
modes = ["MEMORY", "OFF", "DELETE", "TRUNCATE", "PERSIST", "WAL"] if mode == "any" else [mode]
db.execute("PRAGMA journal_mode=" + rng.choice(modes))
db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b BLOB)")
db.execute("CREATE INDEX IF NOT EXISTS ta ON t(a)")
for i in range(count):
    what = rng.random()
    if what < 0.35:
        row = (rng.random(), rng.randbytes(rng.randrange(2000)))
        db.execute("INSERT INTO t(a, b) VALUES (?, ?)", row)
    elif what < 0.5:
        db.execute("UPDATE t SET a = ? WHERE id % 7 = ?", (rng.random(), rng.randrange(7)))
    elif what < 0.6:
        db.execute("DELETE FROM t WHERE id % 5 = ?", (rng.randrange(5),))
    elif what < 0.8:
        undone = db.execute("PRAGMA journal_mode").fetchone()[0] != "off"
        db.execute("BEGIN IMMEDIATE")
        for _ in range(rng.randrange(1, 40)):
            row = (rng.random(), rng.randbytes(rng.randrange(3000)))
            db.execute("INSERT INTO t(a, b) VALUES (?, ?)", row)
        db.execute("SAVEPOINT s")
        db.execute("UPDATE t SET b = zeroblob(500) WHERE id % 3 = 0")
        if undone and rng.random() < 0.5:
            db.execute("ROLLBACK TO s")
        db.execute("ROLLBACK" if undone and rng.random() < 0.3 else "COMMIT")
    elif what < 0.85:
        db.execute("PRAGMA page_size=%d" % rng.choice([512, 1024, 4096]))
        db.execute("VACUUM")
    elif what < 0.9:
        db.execute("PRAGMA incremental_vacuum")
    else:
        try:
            db.execute("PRAGMA journal_mode=" + rng.choice(modes)).fetchall()
        except sqlite3.OperationalError as error:
            assert "locked" in str(error), error
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
"""
ROWS = """
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1], timeout=20).execute("SELECT id, a, hex(b) FROM t ORDER BY id"):
    print(*row)
"""
COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"


def log_of(fs: Fs, name: str = "a.db") -> Path:
    return DataDir(fs.data).database_dir(name).log


def logged(fs: Fs, scratch: Path, name: str = "a.db") -> str:
    with closing(rebuilt(log_of(fs, name), scratch / "rebuilt.db")) as db:
        rows = db.execute("SELECT id, a, hex(b) FROM t ORDER BY id").fetchall()
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def txid(fs: Fs, name: str = "a.db") -> int:
    text = python("import sys; print(open(sys.argv[1]).read(), end='')", fs.mount / f"{name}-pos")
    return Position.parse(text).txid


def agree(fs: Fs, scratch: Path, name: str = "a.db") -> str:
    """The log gives what clients see, at the latest after a few sweeps; returns that."""
    seen = python(ROWS, fs.mount / name)
    wait_for(lambda: log_of(fs, name).exists() and logged(fs, scratch, name) == seen, 5, "agreement", 0.05)
    return seen


def sample(path: Path, mode: str, rows: int, seed: int = 0) -> str:
    """A database outside the mount; its rows."""
    rng = random.Random(seed)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA page_size=1024")
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b BLOB)")
        db.execute("BEGIN")
        for _ in range(rows):
            db.execute("INSERT INTO t(a, b) VALUES (?, ?)", (rng.random(), rng.randbytes(700)))
        db.execute("COMMIT")
    return python(ROWS, path)


@pytest.mark.parametrize("sync", ["OFF", "NORMAL", "FULL", "EXTRA"])
@pytest.mark.parametrize("mode", ["MEMORY", "OFF", "any"])
def test_log_rebuilds_what_writers_without_a_journal_leave(tmp_path: Path, mode: str, sync: str) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    with serving(tmp_path) as fs:
        for round_, exclusive in enumerate(("NORMAL", "EXCLUSIVE", "NORMAL")):
            python(WORKLOAD, fs.mount / "a.db", mode, sync, seed + round_, 25, exclusive)
            seen = agree(fs, tmp_path)
        fs.stop()
    assert python(ROWS, tmp_path / "data" / "dbs" / "a.db" / "database") == seen
    with serving(tmp_path) as fs:
        assert fs.mounted.reports == []
        assert python(ROWS, fs.mount / "a.db") == seen


def test_modes_change_while_readers_are_open_and_no_writer_is_turned_away(tmp_path: Path) -> None:
    reader = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=20)
until = time.monotonic() + 4
while time.monotonic() < until:
    n, a = db.execute("SELECT count(*), total(length(a)) FROM t").fetchone()
    assert n % 3 == 0 and a == n * 900, (n, a)
"""
    writer = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
modes, until, i = sys.argv[2].split(), time.monotonic() + 4, 0
while time.monotonic() < until:
    i += 1
    if i % 5 == 0:
        try:
            db.execute("PRAGMA journal_mode=" + modes[i // 5 % len(modes)]).fetchall()
        except sqlite3.OperationalError as error:
            assert "locked" in str(error), error
        db.execute("PRAGMA synchronous=" + ["OFF", "FULL", "NORMAL"][i // 5 % 3])
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO t VALUES(zeroblob(?))", [(900,)] * 3)
    db.execute("COMMIT")
print(i)
"""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python("import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('CREATE TABLE t(a)')", path)
        scripts = [
            (reader, ""),
            (reader, ""),
            (writer, "MEMORY OFF DELETE WAL TRUNCATE"),
            (writer, "OFF PERSIST MEMORY"),
        ]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(path), modes],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for script, modes in scripts
        ]  # fmt: skip
        try:
            results = [process.communicate(timeout=60) for process in processes]
            assert [process.returncode for process in processes] == [0] * 4, results
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        count = sum(int(out) for out, _ in results[2:]) * 3
        with_log = "SELECT count(*) FROM t"

        def rows() -> int:
            with closing(rebuilt(log_of(fs), tmp_path / "rebuilt.db")) as db:
                return int(db.execute(with_log).fetchone()[0])

        wait_for(lambda: rows() == count, 5, "all transactions", 0.1)


@pytest.mark.parametrize("mode", ["MEMORY", "OFF"])
def test_a_commit_after_the_deadline_is_refused(tmp_path: Path, mode: str) -> None:
    """Before it wrote anything: with OFF nothing could be rolled back."""
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
for line in sys.stdin:
    try:
        db.execute(line).fetchall()
        print("done", flush=True)
    except sqlite3.OperationalError as error:
        print(error, flush=True)
"""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        pipe = subprocess.PIPE
        client = subprocess.Popen(
            [sys.executable, "-c", script, str(path), mode], stdin=pipe, stdout=pipe, text=True
        )

        def ask(line: str) -> str:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(line + "\n")
            client.stdin.flush()
            return client.stdout.readline().strip()

        try:
            assert ask("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)") == "done"
            assert txid(fs) == 1
            fs.become(Role.PRIMARY, deadline_ns=1)
            assert ask("INSERT INTO t VALUES(1, 0, x'00')") == "disk I/O error"
            assert txid(fs) == 1
            fs.become(Role.PRIMARY)
            assert agree(fs, tmp_path) == ""
            assert ask("INSERT INTO t VALUES(2, 0, x'00')") == "done"
            assert logged(fs, tmp_path) == "2 0 00\n"
        finally:
            client.kill()
            client.communicate()


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_copied_database_becomes_one_transaction(tmp_path: Path, mode: str) -> None:
    first = sample(tmp_path / "first.db", mode, 400, 1)
    second = sample(tmp_path / "second.db", "DELETE", 3000, 2)
    smaller = sample(tmp_path / "smaller.db", mode, 50, 3)
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python(COPY, tmp_path / "first.db", path)
        assert txid(fs) == 1
        assert logged(fs, tmp_path) == first == python(ROWS, path)
        reader = subprocess.Popen(
            [
                sys.executable, "-c",
                "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
                "print(db.execute('SELECT count(*) FROM sqlite_master').fetchone(), flush=True); input()",
                str(path),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "(1,)\n"
            for source, rows in (("second.db", second), ("smaller.db", smaller), ("first.db", first)):
                before = txid(fs)
                python(COPY, tmp_path / source, path)
                assert txid(fs) == before + 1
                assert logged(fs, tmp_path) == rows
        finally:
            reader.kill()
            reader.communicate()
        python(WORKLOAD, path, "any", "FULL", 7, 10, "NORMAL")
        agree(fs, tmp_path)


def test_a_file_that_is_no_database_stays_local_until_one_is_copied_over_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database\n" * 1000)
    rows = sample(tmp_path / "first.db", "DELETE", 100)
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python(COPY, tmp_path / "text", path)
        time.sleep(0.2)
        assert txid(fs) == 0
        assert python("import sys; print(len(open(sys.argv[1]).read()))", path) == "12000\n"
        python("import os, sys; f = open(sys.argv[1], 'a'); f.write('more'); f.flush(); os.fsync(f)", path)
        python(COPY, tmp_path / "first.db", path)
        assert txid(fs) == 1
        assert logged(fs, tmp_path) == rows
    assert (tmp_path / "fs.log").read_text().count("the file stays on this node") >= 1


def test_a_killed_copy_is_served_for_reading_only_until_a_whole_one(tmp_path: Path) -> None:
    rows = sample(tmp_path / "first.db", "DELETE", 100)
    other = sample(tmp_path / "other.db", "DELETE", 200, 1)
    half = (
        "import os, sys; f = open(sys.argv[2], 'wb', buffering=0);"
        "f.write(open(sys.argv[1], 'rb').read(5000)); os.kill(os.getpid(), 9)"
    )
    insert = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('INSERT INTO t(a) VALUES(0)')"
    )
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python(COPY, tmp_path / "first.db", path)
        with pytest.raises(AssertionError):
            python(half, tmp_path / "other.db", path)
        wait_for(lambda: "incomplete copy" in (tmp_path / "fs.log").read_text(), 5, "a log line")
        assert logged(fs, tmp_path) == rows
        with pytest.raises(AssertionError):
            python(insert, path)
        assert logged(fs, tmp_path) == rows
        python(COPY, tmp_path / "other.db", path)
        assert logged(fs, tmp_path) == other
        python(insert, path)
        assert txid(fs) == 3
        with pytest.raises(AssertionError):
            python(half, tmp_path / "first.db", path)
        wait_for(lambda: (tmp_path / "fs.log").read_text().count("incomplete copy") == 2, 5, "a log line")
        fs.process.send_signal(signal.SIGKILL)
        fs.process.wait(5)
    with serving(tmp_path) as fs:  # recovery takes it back to the log
        assert len(python(ROWS, fs.mount / "a.db").splitlines()) == 201
        agree(fs, tmp_path)


@pytest.mark.parametrize("mode", ["OFF", "MEMORY"])
def test_fs_process_killed_in_the_middle(tmp_path: Path, mode: str) -> None:
    """What was not logged is taken back from the log."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    script = f"""
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode={mode}")
db.execute("PRAGMA cache_size=5")
db.execute("BEGIN")
db.execute("UPDATE t SET b = randomblob(700)")
print("spilled", flush=True)
input()
"""
    with serving(tmp_path) as fs:
        python(WORKLOAD, fs.mount / "a.db", mode, "FULL", seed, 15, "NORMAL")
        seen = agree(fs, tmp_path)
        command = [sys.executable, "-c", script, str(fs.mount / "a.db")]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "spilled\n"
            time.sleep(0.2)  # some sweeps: an open transaction is none of theirs
            before = replay(log_of(fs))[0]
            fs.process.send_signal(signal.SIGKILL)
            fs.process.wait(5)
        finally:
            client.kill()
            client.communicate()
    with serving(tmp_path) as fs:
        assert txid(fs) == before.txid
        assert agree(fs, tmp_path) == seen


def test_a_stop_logs_what_nobody_synced(tmp_path: Path) -> None:
    with serving(tmp_path) as fs:
        python(WORKLOAD, fs.mount / "a.db", "MEMORY", "OFF", 1, 10, "NORMAL")
        seen = python(ROWS, fs.mount / "a.db")
        fs.stop()
    shutil.copy(tmp_path / "data" / "dbs" / "a.db" / "database", tmp_path / "copy.db")
    assert python(ROWS, tmp_path / "copy.db") == seen


def test_a_big_commit_of_each_kind(tmp_path: Path) -> None:
    """More than the request loop does itself: by fsync, by sweep, by copy."""
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=MEMORY")
db.execute("PRAGMA synchronous=" + sys.argv[2])
db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b)")
db.execute("BEGIN")
db.executemany("INSERT INTO t(b) VALUES(zeroblob(?))", [(40000,)] * 100)
db.execute("COMMIT")
"""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        for sync in ("FULL", "OFF"):
            python(script, path, sync)
            agree(fs, tmp_path)
        before = txid(fs)
        rows = python(ROWS, path)
        vacuum = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('VACUUM INTO ?', [sys.argv[2]])"
        python(vacuum, path, tmp_path / "big.db")
        python(COPY, tmp_path / "big.db", path)
        assert txid(fs) == before + 1
        assert logged(fs, tmp_path) == rows
        python(COPY, tmp_path / "big.db", path)
        assert txid(fs) == before + 1, "a copy of the same content is no transaction"


@pytest.mark.parametrize("mode", ["MEMORY", "OFF", "DELETE"])
def test_a_file_keeps_its_kind_under_another_name(tmp_path: Path, mode: str) -> None:
    """Until SQLite itself takes one for a database: this one has a tail behind its last page."""
    sample(tmp_path / "first.db", "DELETE", 50)
    (tmp_path / "longer").write_bytes((tmp_path / "first.db").read_bytes() + b"tail")
    insert = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("INSERT INTO t(a) VALUES(0)")
"""
    with serving(tmp_path) as fs:
        python(COPY, tmp_path / "longer", fs.mount / "longer.db")
        assert txid(fs, "longer.db") == 0
        python("import os, sys; os.rename(*sys.argv[1:])", fs.mount / "longer.db", fs.mount / "other.db")
        time.sleep(0.2)
        assert txid(fs, "other.db") == 0
        python(insert, fs.mount / "other.db", mode)
        assert txid(fs, "other.db") == 1
        assert len(agree(fs, tmp_path, "other.db").splitlines()) == 51


@contextmanager
def client(script: str, *args: object, says: str) -> Iterator[None]:
    """A client that has said so, and waits; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == says + "\n"
        yield
    finally:
        process.kill()
        process.communicate()


NEXT_WRITER = """
import sqlite3, sys, time
first, second = (sqlite3.connect(sys.argv[1], isolation_level=None) for _ in range(2))
for db in (first, second):
    db.execute("PRAGMA synchronous=OFF")
first.execute("CREATE TABLE t(a)")
time.sleep(0.5)
first.execute("PRAGMA journal_mode=" + sys.argv[2])
second.execute("BEGIN")
first.execute("INSERT INTO t VALUES(1)")
second.execute("INSERT INTO t VALUES(2)")
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("mode", ["MEMORY", "OFF"])
def test_a_commit_is_logged_while_the_next_transaction_is_open(tmp_path: Path, mode: str) -> None:
    """Its pages are not kept back for the record of the transaction that begins before the sweep."""
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    with serving(tmp_path) as fs:
        with client(NEXT_WRITER, fs.mount / "a.db", mode, says="open"):
            time.sleep(0.2)  # some sweeps
            with rebuilt(log, tmp_path / "rebuilt.db") as db:
                assert db.execute("SELECT a FROM t").fetchall() == [(1,)]
            db.close()
        fs.stop()


IDLE_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("PRAGMA synchronous=OFF")
db.execute("CREATE TABLE t(a)")
db.execute("INSERT INTO t VALUES(1)")
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("mode", ["MEMORY", "OFF"])
def test_a_commit_that_nothing_follows_is_logged_though_nobody_syncs_or_closes(
    tmp_path: Path, mode: str
) -> None:
    """The sweep alone sees it: the connection stays open, and writes no more. Nor does the test open anything
    on the mount, because the close of any file of the database sweeps as well.
    """
    log = DataDir(tmp_path / "data").database_dir("a.db").log

    def rows() -> list[tuple[int]]:
        if not list_segments(log):
            return []
        with closing(rebuilt(log, tmp_path / "rebuilt.db")) as db:
            if not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
                return []
            found: list[tuple[int]] = db.execute("SELECT a FROM t").fetchall()
            return found

    with serving(tmp_path) as fs:
        with client(IDLE_WRITER, fs.mount / "a.db", mode, says="done"):
            wait_for(lambda: rows() == [(1,)], 10, "the sweep")
        fs.stop()
