"""Does to a few databases of a mount what users do, at random: ``mixture MOUNT SOURCES SEED SECONDS``.

SQL in every journal mode, copies, renamings, removals, half copies and foreign syncs, by as many of these
processes as are started. Errors that SQLite or the mount give are counted and passed over. Prints the counts.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

NAMES = ("a.db", "b.db", "c.db")
MODES = ("WAL", "WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF")


class Mixture:
    """One process's random choices; ``sources`` holds databases to copy."""

    def __init__(self, mount: Path, sources: Path, seed: int) -> None:
        self._mount = mount
        self._sources = sorted(sources.iterdir())
        self._random = random.Random(seed)
        self._own = mount / f".temporary-{seed}"

    def step(self) -> None:
        """One operation. Raises OSError, sqlite3.Error."""
        path = self._mount / self._random.choice(NAMES)
        draw = self._random.random()
        if draw < 0.72:
            self._sql(path)
        elif draw < 0.77:
            path.unlink()
        elif draw < 0.82:
            path.rename(self._mount / self._random.choice(NAMES))
        elif draw < 0.88:
            self._copy(path)
        elif draw < 0.92:
            self._copy(self._own)
            self._own.rename(path)
        elif draw < 0.95:
            self._half(path)
        elif draw < 0.97:
            os.listdir(self._mount)
        else:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _copy(self, path: Path) -> None:
        shutil.copyfile(self._random.choice(self._sources), path)

    def _half(self, path: Path) -> None:
        """A copy in two pieces, between which its process may be killed."""
        data = self._random.choice(self._sources).read_bytes()
        half = self._random.randrange(len(data))
        with path.open("wb", buffering=0) as file:
            file.write(data[:half])
            if self._random.random() < 0.2:
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(data[half:])

    def _sql(self, path: Path) -> None:
        db = sqlite3.connect(path, isolation_level=None, timeout=self._random.choice([0.1, 2]))
        try:
            db.execute("PRAGMA cache_size=5")
            mode = self._random.choice(MODES)
            db.execute(f"PRAGMA journal_mode={mode}").fetchall()
            db.execute(f"PRAGMA synchronous={self._random.choice(['OFF', 'NORMAL', 'FULL'])}")
            db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b BLOB)")
            for _ in range(self._random.randrange(1, 12)):
                self._statement(db, can_roll_back=mode != "OFF")
        finally:
            db.close()

    def _statement(self, db: sqlite3.Connection, *, can_roll_back: bool) -> None:
        draw = self._random.random()
        if draw < 0.5:
            self._insert(db)
        elif draw < 0.6:
            db.execute("DELETE FROM t WHERE id % 5 = ?", (self._random.randrange(5),))
        elif draw < 0.7:
            db.execute("VACUUM")
        elif draw < 0.78:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        else:
            db.execute("BEGIN IMMEDIATE")
            for _ in range(self._random.randrange(30)):
                self._insert(db)
            if self._random.random() < 0.02:
                os.kill(os.getpid(), signal.SIGKILL)
            db.execute("ROLLBACK" if can_roll_back and self._random.random() < 0.3 else "COMMIT")

    def _insert(self, db: sqlite3.Connection) -> None:
        row = (self._random.random(), self._random.randbytes(self._random.randrange(3000)))
        db.execute("INSERT INTO t(a, b) VALUES (?, ?)", row)


def main() -> None:
    mount, sources, seed, seconds = sys.argv[1:]
    mixture, count = Mixture(Path(mount), Path(sources), int(seed)), Counter[str]()
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        try:
            mixture.step()
            count["done"] += 1
        except (OSError, sqlite3.Error) as error:
            count[f"{type(error).__name__} {getattr(error, 'errno', None) or error}"] += 1
    print(dict(count))


if __name__ == "__main__":
    main()
