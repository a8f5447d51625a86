"""Clients and the fs process killed at random: what was acknowledged is there, and the log is what all see."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from tests.fs.harness import Fs, python, serving, wait_for
from tests.fs.replay import rebuilt
from tests.fs.unpublished import publishing

WRITER = """
import random, sqlite3, sys
path, mode, writer, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
number = 0
db = None
while True:
    try:
        if db is None:
            psow = rng.choice("01")
            db = sqlite3.connect(f"file:{path}?psow={psow}", uri=True, isolation_level=None, timeout=10)
            db.execute("PRAGMA journal_mode=" + mode)
            db.execute("PRAGMA synchronous=" + rng.choice(["OFF", "NORMAL", "FULL"]))
            db.execute("PRAGMA wal_autocheckpoint=" + rng.choice(["5", "50", "1000"]))
            db.execute("PRAGMA cache_size=" + rng.choice(["5", "200"]))
            db.execute("CREATE TABLE IF NOT EXISTS t(writer, number, b, PRIMARY KEY(writer, number))")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT OR REPLACE INTO t VALUES(?, ?, ?)", (writer, number, rng.randbytes(rng.randrange(600))))
        if rng.random() < 0.3:
            db.execute("SAVEPOINT s")
            db.execute("UPDATE t SET b = randomblob(length(b)) WHERE abs(random()) % 5 = 0")
            if rng.random() < 0.5:
                db.execute("ROLLBACK TO s")
        if rng.random() < 0.1:
            db.execute("ROLLBACK")
            continue
        db.execute("COMMIT")
        print(number, flush=True)
        number += 1
        if rng.random() < 0.1:
            db.execute("PRAGMA wal_checkpoint(%s)" % rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]))
        if rng.random() < 0.05:
            db.close()
            db = None
    except sqlite3.OperationalError as error:
        print(error, file=sys.stderr, flush=True)
        if db is not None:
            db.close()
        db = None
"""
READ = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
if len(sys.argv) > 2:
    print(*db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
for row in db.execute("SELECT writer, number, hex(b) FROM t ORDER BY writer, number"):
    print(*row)
"""


class Writers:
    """Writer processes over one database, and what they were told is committed."""

    def __init__(self, fs: Fs, mode: str, rng: random.Random, errors: Path) -> None:
        self._path, self._mode, self._rng = fs.mount / "a.db", mode, rng
        self._errors = errors
        self._running: dict[int, subprocess.Popen[str]] = {}
        self._next = 0
        self.acknowledged: set[tuple[int, int]] = set()

    def start(self, first: int = 0) -> None:
        writer = self._next = max(self._next + 1, first)
        arguments = map(str, (self._path, self._mode, writer, self._rng.randrange(1 << 30)))
        with self._errors.open("a") as errors:
            self._running[writer] = subprocess.Popen(
                [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def kill(self, writer: int | None = None) -> None:
        writer = self._rng.choice(list(self._running)) if writer is None else writer
        process = self._running.pop(writer)
        process.kill()
        output, _ = process.communicate(timeout=20)
        self.acknowledged |= {(writer, int(line)) for line in output.split("\n")[:-1]}

    def kill_all(self) -> None:
        for writer in list(self._running):
            self.kill(writer)


def logged(log: Path, scratch: Path) -> str:
    db = rebuilt(log, scratch / "rebuilt.db")
    rows = db.execute("SELECT writer, number, hex(b) FROM t ORDER BY writer, number")
    text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
    db.close()
    return text


def check(acknowledged: set[tuple[int, int]], text: str) -> None:
    rows = {(int(line.split(" ")[0]), int(line.split(" ")[1])) for line in text.splitlines()}
    assert not acknowledged - rows, "acknowledged, but lost"


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
def test_kills(tmp_path: Path, mode: str) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    acknowledged: set[tuple[int, int]] = set()
    first = 0
    for _ in range(2):
        with serving(tmp_path) as fs:
            path = fs.mount / "a.db"
            writers = Writers(fs, mode, rng, tmp_path / "writers.log")
            try:
                if first:
                    before = python(READ, path)
                    check(acknowledged, before)
                    assert logged(log, tmp_path) == before, "after the fs process was killed"
                writers.start(first + 1)
                wait_for(lambda: (fs.data / "dbs/a.db/sums").exists(), 5, "a database")
                with publishing(fs, "a.db"):
                    for _ in range(3):
                        writers.start()
                    for _ in range(12):
                        time.sleep(rng.random() * 0.25)
                        writers.kill()
                        writers.start()
                    writers.kill_all()
                    check(writers.acknowledged, logged(log, tmp_path))
                    wait_for(
                        lambda path=path: logged(log, tmp_path) == python(READ, path),
                        5,
                        "sight of the log's tip",
                    )
                    assert python(READ, path, "checkpoint").partition("\n")[2] == logged(log, tmp_path)
                    for _ in range(3):
                        writers.start()
                    time.sleep(0.2 + rng.random() * 0.5)
                fs.process.kill()
                fs.process.wait(5)
            finally:
                writers.kill_all()
                print((tmp_path / "writers.log").read_text()[-3000:])
            first = writers._next + 1
            acknowledged |= writers.acknowledged
    with serving(tmp_path) as fs:
        text = python(READ, fs.mount / "a.db")
        check(acknowledged, text)
        assert logged(log, tmp_path) == text
        assert len(acknowledged) > 20
        fs.stop()
