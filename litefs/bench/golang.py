"""What Go's ``litefs-bench`` does, for scripts that were written for it: one client, figures each second.

Its table is ``t(id, num, data)`` with an index on ``num``. ``insert`` is transactions of 1 to N rows under a
HALT lock, now and then with a VACUUM or a truncating checkpoint; ``query`` reads rows from the newest on.
The database is the user's: it stays, and one that has other tables is refused.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from litefs import client
from litefs.bench.database import explained
from litefs.bench.settings import BenchError

MODES = ("insert", "query")

BUSY_SECONDS = 5.0
STATS_SECONDS = 1.0
VACUUM_ONE_IN, TRUNCATE_ONE_IN = 100, 10

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, num INTEGER, data TEXT)",
    "CREATE INDEX IF NOT EXISTS idx ON t (num)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoSettings:
    """The flags of ``litefs-bench``, with its defaults."""

    mode: str
    journal_mode: str = ""
    """That of the database, if empty."""
    seed: int = 0
    """0: another one each time."""
    cache_size: int = -2000
    iterations: int = 0
    """0: without end."""
    max_row_size: int = 256
    max_rows: int = 10
    rate: float = 0.0
    """Iterations a second; 0: as fast as possible. What was missed is not made up for."""


class GoBench:
    """One run on a database file."""

    def __init__(self, path: Path, settings: GoSettings, stop: Callable[[], bool]) -> None:
        self._path = path
        self._settings = settings
        self._stop = stop
        self._seed = settings.seed or time.time_ns()
        self.transactions = 0
        self.rows = 0

    def run(self) -> None:
        """All iterations, or until ``stop()``. Raises BenchError, and what HALT raises."""
        print(f"running litefs-bench: seed={self._seed}", flush=True)
        with explained(self._path), contextlib.closing(self._connect()) as connection:
            self._migrate(connection)
            ended = threading.Event()
            stats = threading.Thread(target=self._report, args=(ended,), daemon=True)
            stats.start()
            try:
                self._iterate(connection)
            finally:
                ended.set()
                stats.join()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=BUSY_SECONDS)
        connection.execute(f"PRAGMA cache_size={self._settings.cache_size}")
        return connection

    @contextlib.contextmanager
    def _writing(self, connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        """A connection that may write: on a replica one that is opened under a HALT lock."""
        if not _on_replica(self._path):
            yield connection
            return
        with client.halt(self._path), contextlib.closing(self._connect()) as halted:
            yield halted

    def _migrate(self, connection: sqlite3.Connection) -> None:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
        if tables - {"t"}:
            raise BenchError(f"{self._path} has other tables: give a database that is only for the bench")
        if self._settings.journal_mode:
            connection.execute(f"PRAGMA journal_mode={self._settings.journal_mode}").fetchall()
        if not tables:
            with self._writing(connection) as writer:
                for statement in _SCHEMA:
                    writer.execute(statement)

    def _iterate(self, connection: sqlite3.Connection) -> None:
        iteration = {"insert": self._insert, "query": self._query}[self._settings.mode]
        period = 1 / self._settings.rate if self._settings.rate else 0.0
        due, number = time.monotonic(), 0
        while not self._stop() and (not self._settings.iterations or number < self._settings.iterations):
            due = max(due, time.monotonic())
            iteration(connection, random.Random(self._seed + number))
            number += 1
            due += period
            while period and not self._stop() and (left := due - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))

    def _insert(self, connection: sqlite3.Connection, draw: random.Random) -> None:
        rows = []
        for _ in range(draw.randint(1, self._settings.max_rows)):
            size = draw.randrange(self._settings.max_row_size)
            rows.append((draw.getrandbits(63), draw.randbytes(size).hex()[:size]))
        with self._writing(connection) as writer:
            writer.execute("BEGIN")
            try:
                writer.executemany("INSERT INTO t (num, data) VALUES (?, ?)", rows)
                writer.execute("COMMIT")
            except sqlite3.Error:
                writer.rollback()
                raise
            self.transactions += 1
            self.rows += len(rows)
            if draw.randrange(VACUUM_ONE_IN) == 0:
                writer.execute("VACUUM")
            if draw.randrange(TRUNCATE_ONE_IN) == 0:
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _query(self, connection: sqlite3.Connection, draw: random.Random) -> None:
        wanted = draw.randint(1, self._settings.max_rows)
        (newest,) = connection.execute("SELECT max(id) FROM t").fetchone()
        if newest is None:
            return
        first = draw.randint(1, newest)
        query = "SELECT id, num, data FROM t WHERE id >= ? LIMIT ?"
        self.rows += len(connection.execute(query, (first, wanted)).fetchall())
        self.transactions += 1

    def _report(self, ended: threading.Event) -> None:
        """A line each second, on stderr as Go's ``log`` writes it."""
        at, transactions, rows = time.monotonic(), 0, 0
        while not ended.wait(STATS_SECONDS):
            now, transactions_now, rows_now = time.monotonic(), self.transactions, self.rows
            stamp, seconds = time.strftime("%Y/%m/%d %H:%M:%S"), now - at
            figures = (transactions_now - transactions) / seconds, (rows_now - rows) / seconds
            print(f"{stamp} stats: tx/sec={figures[0]:.3f} rows/sec={figures[1]:.3f}", file=sys.stderr)
            at, transactions, rows = now, transactions_now, rows_now


def _on_replica(path: Path) -> bool:
    try:
        return client.primary(path) is not None
    except client.NotOnMount:
        return False
