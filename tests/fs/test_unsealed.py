"""Transactions whose frames SQLite leaves without salts and checksums (litefs/capture/unsealed.py)."""

from __future__ import annotations

import random
from pathlib import Path

from litefs.store.paths import DataDir
from tests.fs.harness import python, serving
from tests.fs.replay import rebuilt

ROWS = "SELECT 0, id, a FROM n UNION ALL SELECT 1, id, hex(a) FROM t ORDER BY 1, 2"
WORKLOAD = """
import random, sqlite3, sys
path, seed, ending = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rng = random.Random(seed)
db = sqlite3.connect(path, isolation_level=None, timeout=10)
for pragma in ("page_size=512", "journal_mode=WAL", "cache_size=4", "wal_autocheckpoint=0"):
    db.execute(f"PRAGMA {pragma}")
db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a)")
db.execute("CREATE TABLE IF NOT EXISTS n(id INTEGER PRIMARY KEY, a)")
fill = ("INSERT INTO t(a) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)"
        " SELECT randomblob(300) FROM n")
for i in range(12):
    db.execute("BEGIN")
    db.execute("INSERT INTO n(a) VALUES (1)")
    if rng.random() < 0.5:
        db.execute(fill % rng.randrange(1, 40))
    db.execute("SAVEPOINT s")
    db.execute(fill % rng.randrange(20, 60))
    db.execute("UPDATE t SET a = randomblob(301)")
    if rng.random() < 0.8:
        db.execute("ROLLBACK TO s")
        if rng.random() < 0.8:
            db.execute(fill % rng.choice((1, 2, 5, 30, 90)))
    db.execute("COMMIT" if rng.random() < 0.9 else "ROLLBACK")
    for _ in range(rng.randrange(3)):
        db.execute("INSERT INTO n(a) VALUES (2)")
    if rng.random() < 0.2:
        db.execute("PRAGMA wal_checkpoint(%s)" % rng.choice(["PASSIVE", "TRUNCATE", "RESTART"]))
    if rng.random() < 0.2:
        db.execute("DELETE FROM t")
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
for row in db.execute("SELECT 0, id, a FROM n UNION ALL SELECT 1, id, hex(a) FROM t ORDER BY 1, 2"):
    print(*row)
sys.stdout.flush()
if ending == "killed":
    import os
    os.kill(os.getpid(), 9)
"""


def test_every_commit_is_logged_whatever_sqlite_seals(tmp_path: Path) -> None:
    """SQLite 3.40 breaks the chain of its WAL in most of these runs; newer ones seal everything."""
    first = random.randrange(1 << 30)
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    with serving(tmp_path) as fs:
        for seed in range(first, first + 6):
            print(f"seed {seed}")
            seen = python(WORKLOAD, fs.mount / "a.db", seed, "closed")
            with rebuilt(log, tmp_path / "rebuilt.db") as db:
                rows = db.execute(ROWS)
                assert "".join(" ".join(map(str, row)) + "\n" for row in rows) == seen
            db.close()
