"""Clients that commit over several attached databases, and what of it is found in files and logs."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from litefs.store.paths import DataDir
from tests.fs.harness import Fs, python
from tests.fs.replay import rebuilt

MODES = ("DELETE", "TRUNCATE", "PERSIST")
MAKE = """
import sqlite3, sys
for path, mode in zip(sys.argv[1::2], sys.argv[2::2]):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=" + mode)
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, pad BLOB)")
    db.execute("CREATE TABLE history(n INTEGER PRIMARY KEY)")
    db.executemany("INSERT INTO t VALUES(?, 100, zeroblob(1500))", [(i,) for i in range(10)])
    db.close()
"""
OPEN = """
import sqlite3, sys
def attached(paths, synchronous="FULL"):
    db = sqlite3.connect(paths[0], isolation_level=None, timeout=20)
    names = ["main"]
    for number, path in enumerate(paths[1:]):
        db.execute("ATTACH ? AS d%d" % number, (path,))
        names.append("d%d" % number)
    for name in names:
        db.execute("PRAGMA %s.synchronous=%s" % (name, synchronous))
    return db, names
"""
TRANSFER = (
    OPEN
    + """
import random
seed, *paths = sys.argv[1:]
rng = random.Random(int(seed))
while True:
    chosen = sorted(rng.sample(paths, rng.randrange(2, len(paths) + 1)))  # nobody waits in a circle
    try:
        db, names = attached(chosen, rng.choice(["NORMAL", "FULL"]))
        for _ in range(rng.randrange(1, 20)):
            amounts = [rng.randrange(100) for _ in names[1:]]
            db.execute("PRAGMA cache_size=%d" % rng.choice([2, 100]))
            db.execute("BEGIN IMMEDIATE")
            for name, amount in zip(names, [-sum(amounts), *amounts]):
                row = rng.randrange(10)
                db.execute("UPDATE %s.t SET v = v + ? WHERE id = ?" % name, (amount, row))
                db.execute("UPDATE %s.t SET pad = randomblob(1500) WHERE id <> ?" % name, (row,))
                db.execute("INSERT INTO %s.history SELECT coalesce(max(n), 0) + 1 FROM %s.history" % (name, name))
            if rng.random() < 0.1:
                db.execute("ROLLBACK")
                continue
            db.execute("COMMIT")
            print("committed", flush=True)
    except sqlite3.OperationalError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        db.close()
"""
)
"""Moves amounts between databases; what all have together never changes."""
TOTAL = """
import sqlite3, sys
total = 0
for path in sys.argv[1:]:
    db = sqlite3.connect(path, isolation_level=None, timeout=20)
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    total += db.execute("SELECT sum(v) FROM t").fetchone()[0]
    db.close()
print(total)
"""
SUM = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT sum(v) FROM t').fetchone()[0])"


def log_of(root: Path, name: str) -> Path:
    return DataDir(root / "data").database_dir(name).log


def make(fs: Fs, modes: dict[str, str]) -> list[Path]:
    """A database for each name, in that journal mode."""
    paths = [fs.mount / name for name in modes]
    python(MAKE, *(word for path, mode in zip(paths, modes.values(), strict=True) for word in (path, mode)))
    return paths


def sums_in_logs(root: Path, names: list[str]) -> list[int]:
    """What the logs alone say."""
    found = []
    for name in names:
        db = rebuilt(log_of(root, name), root / "rebuilt.db")
        found.append(db.execute("SELECT sum(v) FROM t").fetchone()[0])
        db.close()
    return found


def txid(fs: Fs, path: Path) -> int:
    return int(python("import sys; print(open(sys.argv[1] + '-pos').read()[:16])", path), 16)


class Transfers:
    """Processes that move amounts between the databases."""

    def __init__(self, paths: list[Path], rng: random.Random, errors: Path) -> None:
        self._paths, self._rng, self._errors = paths, rng, errors
        self._running: list[subprocess.Popen[str]] = []
        self.committed = 0

    def start(self) -> None:
        arguments = [str(self._rng.randrange(1 << 30)), *map(str, self._paths)]
        with self._errors.open("a") as errors:
            self._running.append(
                subprocess.Popen(
                    [sys.executable, "-c", TRANSFER, *arguments],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )

    def kill(self) -> None:
        process = self._running.pop(self._rng.randrange(len(self._running)))
        process.kill()
        output, _ = process.communicate(timeout=20)
        self.committed += output.count("committed")

    def kill_all(self) -> None:
        while self._running:
            self.kill()
