"""What others do to a database on the mount while a SQLite client is at work, or after it died."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litefs.store.log import Log
from litefs.store.paths import DataDir
from litefs.store.sums import SumsFile
from tests.fs.harness import Fs, python, serving
from tests.fs.replay import replay
from tests.fs.test_drop import MAKE, READ
from tests.fs.test_raw import COPY, agree, log_of, sample, txid

SESSION = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
for line in sys.stdin:
    try:
        print(db.execute(line).fetchall(), flush=True)
    except sqlite3.Error as error:
        print(error, flush=True)
"""
DO = """
import errno, os, sys
try:
    getattr(os, sys.argv[1])(*(int(word) if word.isdigit() else word for word in sys.argv[2:]))
    print("done")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
FSYNC = """
import os, sys
fd = os.open(sys.argv[1], getattr(os, sys.argv[2]))
os.fsync(fd)
os.close(fd)
"""


class Sql:
    """A SQLite client in a process of its own; ``ask`` runs one statement."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, statement: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def client(path: Path) -> Iterator[Sql]:
    sql = Sql(path)
    try:
        yield sql
    finally:
        sql.process.kill()
        sql.process.communicate()


def tip(fs: Fs) -> int:
    return replay(log_of(fs))[0].txid


@pytest.mark.parametrize("flags", ["O_RDONLY", "O_RDWR"])
@pytest.mark.parametrize("mode", ["MEMORY", "OFF"])
def test_an_fsync_by_somebody_else_is_no_commit(tmp_path: Path, mode: str, flags: str) -> None:
    """A backup tool syncs what it finds, in the middle of a transaction whose pages are in the file."""
    with serving(tmp_path) as fs:
        sample(tmp_path / "first.db", "DELETE", 100)
        python(COPY, tmp_path / "first.db", fs.mount / "a.db")
        with client(fs.mount / "a.db") as sql:
            for statement in (f"PRAGMA journal_mode={mode}", "PRAGMA cache_size=5", "BEGIN"):
                sql.ask(statement)
            assert sql.ask("UPDATE t SET b = zeroblob(700)") == "[]"
            python(FSYNC, fs.mount / "a.db", flags)
            time.sleep(0.2)  # some sweeps
            assert tip(fs) == 1, "an open transaction was logged"
            assert sql.ask("COMMIT") == "[]"
            assert tip(fs) == 2
        agree(fs, tmp_path)


def test_an_fsync_by_somebody_else_ends_no_copy(tmp_path: Path) -> None:
    """Half of one in place of a database of the same size looks whole."""
    script = """
import os, sys
data = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "r+b", buffering=0) as file:
    file.write(data[:20 * 1024])
    fd = os.open(sys.argv[2], os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    print(open(sys.argv[2] + "-pos").read()[:16])
    file.write(data[20 * 1024:])
"""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        for seed in (1, 2):
            rows = sample(tmp_path / f"{seed}.db", "DELETE", 100, seed)
        assert (tmp_path / "1.db").stat().st_size == (tmp_path / "2.db").stat().st_size
        python(COPY, tmp_path / "1.db", path)
        assert python(script, tmp_path / "2.db", path) == f"{1:016x}\n"
        assert txid(fs) == 2
        assert agree(fs, tmp_path) == rows


def test_a_copy_over_a_database_whose_wal_is_in_use_is_turned_away(tmp_path: Path) -> None:
    """Natively the copy would succeed, and the next checkpoint would mix the two."""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        rows = sample(tmp_path / "first.db", "DELETE", 100)
        with client(path) as sql:
            for statement in ("PRAGMA page_size=1024", "PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"):
                sql.ask(statement)
            sql.ask("INSERT INTO t VALUES('kept')")
            assert python(DO, "truncate", path, 0) == "EBUSY\n"
            assert sql.ask("SELECT * FROM t") == "[('kept',)]"
            sql.ask("INSERT INTO t VALUES('more')")
        assert python(READ, path) == "[('kept',), ('more',)]\n"
        assert "copied over" in (tmp_path / "fs.log").read_text()
        python(COPY, tmp_path / "first.db", path)
        assert agree(fs, tmp_path) == rows
        assert txid(fs) > 1


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_damaged_database_can_be_removed_and_replaced(tmp_path: Path, how: str) -> None:
    """It serves reads only, for good; what is left to its owner is to put another one in its place."""
    with serving(tmp_path) as fs:
        for name in ("a.db", "new.db"):
            python(MAKE, fs.mount / name, "DELETE", name)
        fs.process.kill()
        fs.process.wait(5)
    directory = DataDir(fs.data).database_dir("a.db")
    sums = SumsFile(directory.sums)
    point, page_size = sums.point, sums.sums.page_size
    sums.close()
    shutil.rmtree(directory.log)
    Log.create(directory.log, point, page_size).close()  # as retention leaves it: no page image is there
    with directory.database.open("r+b") as file:
        file.seek(page_size + 100)
        file.write(b"changed")
    with serving(tmp_path) as fs:
        assert any("damaged" in line for line in fs.mounted.reports), fs.mounted.reports
        paths = [fs.mount / "a.db"] if how == "unlink" else [fs.mount / "new.db", fs.mount / "a.db"]
        assert python(DO, how, *paths) == "done\n"
        if how == "unlink":
            python(MAKE, fs.mount / "a.db", "DELETE", "new.db")
        assert python(READ, fs.mount / "a.db") == "[('new.db',)]\n"
        assert python(DO, "unlink", fs.mount / "a.db") == "done\n"
