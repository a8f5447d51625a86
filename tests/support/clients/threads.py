"""A process with many threads, each with a connection of its own: ``threads PATH MODE CACHE THREADS COUNT``.

CACHE is ``shared`` or ``private``. Each thread moves amounts between accounts (see workload.py) COUNT times
and checks the constant sum after each. Answers once: ``{"done": …, "busy": …}``, or the error "Violated" if
a sum was wrong.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from tests.support.clients.protocol import reply, reply_error
from tests.support.clients.workload import ACCOUNTS, INVARIANT, INVARIANT_HOLDS

GIVE_UP_SECONDS = 60.0


class Violated(Exception):
    """A transaction saw a sum that no state has."""


class Thread:
    """One connection."""

    def __init__(self, path: str, mode: str, cache: str) -> None:
        uri = f"file:{quote(path)}?cache={cache}"
        self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0.05, check_same_thread=False)
        self._rng = random.Random(threading.get_ident())
        self.busy = 0
        self._execute(f"PRAGMA journal_mode={mode}")
        self._execute("PRAGMA synchronous=NORMAL")

    def _execute(self, statement: str) -> list[tuple[object, ...]]:
        """Repeat a statement until no lock is in its way: in no mode has anything to be rolled back."""
        until = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                return self._db.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                self.busy += 1
                time.sleep(self._rng.random() * 0.003)

    def transfer(self) -> None:
        """One transaction, and a look at the sum."""
        source, target = self._rng.sample(range(ACCOUNTS), 2)
        self._execute("BEGIN IMMEDIATE")
        self._execute(f"UPDATE account SET balance=balance-7 WHERE id={source}")
        self._execute(f"UPDATE account SET balance=balance+7 WHERE id={target}")
        self._execute("COMMIT")
        if (found := self._execute(INVARIANT)[0][0]) != INVARIANT_HOLDS:
            raise Violated(f"{found}; should be {INVARIANT_HOLDS}")

    def close(self) -> None:
        self._db.close()


def work(path: str, mode: str, cache: str, threads: int, count: int) -> dict[str, int]:
    def one(_: int) -> int:
        thread = Thread(path, mode, cache)
        try:
            for _ in range(count):
                thread.transfer()
        finally:
            thread.close()
        return thread.busy

    with ThreadPoolExecutor(threads) as pool:
        return {"busy": sum(pool.map(one, range(threads))), "done": threads * count}


def main() -> None:
    path, mode, cache, threads, count = sys.argv[1:]
    try:
        reply(work(path, mode, cache, int(threads), int(count)))
    except Exception as error:
        reply_error(error)


if __name__ == "__main__":
    main()
