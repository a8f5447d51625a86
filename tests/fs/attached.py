"""Clients that commit over several attached databases, and what of it is found in files and logs."""

from __future__ import annotations

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
