"""A full disk: clients are told so, nothing is lost or made up, and all goes on when there is space again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from tests.fs.harness import python, serving
from tests.fs.replay import rebuilt, replay

WRITER = """
import random, sqlite3, sys, time
path, mode, seed, count, tolerant = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "full"
rng = random.Random(seed)
errors = set()
known = None
until = time.monotonic() + 15
def rows(db):
    return db.execute("SELECT count(*), total(id), total(length(b)) FROM t").fetchone()
for i in range(count):
    assert time.monotonic() < until, errors
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=1)
        db.execute("PRAGMA journal_mode=" + mode)
        db.execute("PRAGMA cache_size=5")
        db.execute("PRAGMA synchronous=" + rng.choice(["OFF", "NORMAL", "FULL"]))
        db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, b BLOB)")
        for _ in range(rng.randrange(1, 6)):
            before = rows(db)
            if known is not None:
                assert before == known, (before, known)
            db.execute("BEGIN IMMEDIATE")
            for _ in range(rng.choice([1, 3, 40])):
                db.execute("INSERT INTO t(b) VALUES(?)", (rng.randbytes(rng.randrange(3000)),))
            if rng.random() < 0.5:
                db.execute("DELETE FROM t WHERE id % 3 = ?", (rng.randrange(3),))
            known = None
            inside = rows(db)
            db.execute("COMMIT")
            known = inside
        if mode == "WAL" and rng.random() < 0.5:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
    except sqlite3.OperationalError as error:
        errors.add(str(error))
        if not tolerant:
            raise
        known = None
        try:
            db.close()
        except (sqlite3.Error, NameError):
            pass
print("|".join(sorted(errors)))
"""
ROWS = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
for row in db.execute("SELECT id, hex(b) FROM t ORDER BY id"):
    print(*row)
"""
EMPTY = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("DELETE FROM t")
db.execute("VACUUM")
"""
EXPECTED = {
    "database or disk is full",
    "disk I/O error",
    "unable to open database file",
    "database is locked",
}


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
def test_full_disk(tmp_path: Path, small_disk: Path, mode: str) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    log = DataDir(small_disk).database_dir("a.db").log
    filler = small_disk / "filler"
    seen_errors: set[str] = set()
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        for round_ in range(4):
            free = os.statvfs(small_disk).f_bavail * 4096
            filler.write_bytes(bytes(max(0, free - rng.choice([0, 4096, 50_000, 200_000, 600_000]))))
            text = python(WRITER, path, mode, seed + round_, 8, "full", timeout=60)
            seen_errors |= set(text.strip().split("|")) - {""}
            filler.unlink()
            assert python(WRITER, path, mode, seed - round_, 1, "space").strip() == ""
            db = rebuilt(log, tmp_path / "rebuilt.db")
            expected = "".join(
                f"{id_} {b}\n" for id_, b in db.execute("SELECT id, hex(b) FROM t ORDER BY id")
            )
            db.close()
            assert python(ROWS, path) == expected
            python(EMPTY, path)
        assert seen_errors <= EXPECTED
        assert seen_errors & {"database or disk is full", "disk I/O error"}
        tip = replay(log)[0]
        fs.stop()
    with serving(tmp_path) as fs:
        assert replay(log)[0] == tip
        assert python(ROWS, fs.mount / "a.db") == ""
