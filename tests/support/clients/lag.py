"""How long a row takes from its commit to a reader elsewhere: ``lag WRITE_PATH READ_PATH INTERVAL_MS``.

Inserts a row each interval on one connection while a second one polls for it; one process, so one clock.
Measures from the start; ``stop`` answers the lags in seconds, sorted; a row never seen counts as 1e9.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time

from tests.support.clients.protocol import serve

POLL_SECONDS = 0.0005
DRAIN_SECONDS = 5.0


class LagMeter:
    """A writing and a polling thread."""

    def __init__(self, write_path: str, read_path: str, interval: float) -> None:
        self._write_path = write_path
        self._read_path = read_path
        self._interval = interval
        self._stopping = threading.Event()
        self._written: dict[int, float] = {}
        self._lags: list[float] = []
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._guard, args=(function,), daemon=True)
            for function in (self._write, self._poll)
        ]

    def start(self) -> None:
        connection = sqlite3.connect(self._write_path, isolation_level=None, timeout=10)
        connection.execute("CREATE TABLE IF NOT EXISTS beat(id INTEGER PRIMARY KEY)")
        connection.close()
        for thread in self._threads:
            thread.start()

    def _guard(self, function: object) -> None:
        try:
            assert callable(function)
            function()
        except Exception as error:
            self._failure = error

    def _write(self) -> None:
        connection = sqlite3.connect(self._write_path, isolation_level=None, timeout=10)
        connection.execute("PRAGMA synchronous=NORMAL")
        (row,) = connection.execute("SELECT coalesce(max(id), 0) FROM beat").fetchone()
        next_at = time.monotonic()
        while not self._stopping.is_set():
            row += 1
            connection.execute("INSERT INTO beat VALUES(?)", (row,))
            self._written[row] = time.monotonic()
            next_at += self._interval
            time.sleep(max(0.0, next_at - time.monotonic()))
        connection.close()

    def _poll(self) -> None:
        connection = self._open_reader()
        seen = 0
        drained_at = None
        while drained_at is None or time.monotonic() < drained_at:
            if self._stopping.is_set() and drained_at is None:
                drained_at = time.monotonic() + DRAIN_SECONDS
            newest = None
            with contextlib.suppress(sqlite3.OperationalError):
                (newest,) = connection.execute("SELECT max(id) FROM beat").fetchone()
            now = time.monotonic()
            for row in [row for row in list(self._written) if seen < row <= (newest or 0)]:
                # A reader can see a commit before its writer's own call has returned.
                self._lags.append(max(0.0, now - self._written.pop(row)))
                seen = max(seen, row)
            if drained_at is not None and not self._written and not self._threads[0].is_alive():
                break
            time.sleep(POLL_SECONDS)
        connection.close()

    def _open_reader(self) -> sqlite3.Connection:
        deadline = time.monotonic() + 10
        while True:
            try:
                connection = sqlite3.connect(
                    f"file:{self._read_path}?mode=ro", uri=True, isolation_level=None, timeout=0.5
                )
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                return connection
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def stop(self) -> list[float]:
        self._stopping.set()
        for thread in self._threads:
            thread.join(DRAIN_SECONDS + 10)
        if self._failure is not None:
            raise self._failure
        return sorted([*self._lags, *(1e9 for _ in self._written)])


def main() -> None:
    write_path, read_path, interval = sys.argv[1:]
    meter = LagMeter(write_path, read_path, float(interval) / 1000)
    meter.start()
    serve({"stop": meter.stop})


if __name__ == "__main__":
    main()
