"""A writer that finds the primary by writing: ``roaming INTERVAL_MS PATH…``, a database's path on each mount.

It inserts numbers into ``t`` wherever the last insert went, at the next mount after an error, until one is
acknowledged; a number whose insert failed is never used again, since its outcome may be unknown.

Operations: pause() (answers when no insert is under way), resume(), acknowledged(start): the list from that
index on of ``[number, place, began, ended, failures, longest]``. ``place`` counts the paths; ``began`` is
when the first attempt began that led to this acknowledgement, ``ended`` when that came (CLOCK_MONOTONIC, s);
``failures`` attempts came to nothing before it, the longest attempt took ``longest`` s.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time

from tests.support.clients.protocol import serve

PAUSE_SECONDS = 0.01
"""Before an attempt, once every mount has refused."""
BUSY_SECONDS = 5.0
REST_SECONDS = 30.0
"""How long an insert that is under way may take to end."""


class Roaming(threading.Thread):
    """Writes until the process ends; pauses on request."""

    def __init__(self, interval: float, paths: list[str]) -> None:
        super().__init__(daemon=True)
        self._interval = interval
        self._paths = paths
        self._place = self._number = 0
        self._connection: sqlite3.Connection | None = None
        self._acknowledged: list[list[float]] = []
        self._running, self._at_rest = threading.Event(), threading.Event()
        self._at_rest.set()

    def run(self) -> None:
        while True:
            if not self._running.is_set():
                self._at_rest.set()
                self._running.wait()
            self._insert()
            time.sleep(self._interval)

    def _insert(self) -> None:
        """One number that is acknowledged, or as many attempts as are made before a pause."""
        began, longest, failures = time.monotonic(), 0.0, 0
        while self._running.is_set():
            self._number += 1
            at = time.monotonic()
            done = self._attempt()
            ended = time.monotonic()
            longest = max(longest, ended - at)
            if done:
                self._acknowledged.append([self._number, self._place, began, ended, failures, longest])
                return
            failures += 1
            self._place = (self._place + 1) % len(self._paths)
            if failures % len(self._paths) == 0:
                time.sleep(PAUSE_SECONDS)

    def _attempt(self) -> bool:
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(
                    f"file:{self._paths[self._place]}?mode=rw",
                    uri=True,
                    timeout=BUSY_SECONDS,
                    isolation_level=None,
                    check_same_thread=False,
                )
            self._connection.execute("INSERT INTO t VALUES(?)", (self._number,))
            return True
        except sqlite3.Error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            return False

    def pause(self) -> None:
        self._running.clear()
        if not self._at_rest.wait(REST_SECONDS):
            raise TimeoutError("the insert that is under way does not end")

    def resume(self) -> None:
        self._at_rest.clear()
        self._running.set()

    def acknowledged(self, start: int) -> list[list[float]]:
        return self._acknowledged[start:]


def main() -> None:
    writer = Roaming(float(sys.argv[1]) / 1000, sys.argv[2:])
    writer.start()
    operations = {"pause": writer.pause, "resume": writer.resume, "acknowledged": writer.acknowledged}
    serve(operations)


if __name__ == "__main__":
    main()
