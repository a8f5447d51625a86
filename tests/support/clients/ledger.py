"""A writer that remembers what was acknowledged: ``ledger KIND PATH ACKS WRITER``.

Each transaction inserts the next row of its own and moves money between two accounts. Once COMMIT has
returned, the row's number is appended to the file ACKS, which lies outside the mount. After an error the
outcome is unknown: the writer closes, opens again until that works, and goes on with the next number.

Operations: pause() (answers when no transaction is open), resume(), progress(). A statement that takes longer
than STUCK_SECONDS ends the process with status 3: a client must never hang.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time

from tests.support.clients.engines import Engine, SqlError, connect
from tests.support.clients.protocol import serve
from tests.support.clients.workload import ACCOUNTS

BUSY_MS = 4000
STUCK_SECONDS = 10.0
STUCK_STATUS = 3
RETRY_SECONDS = 0.05
PAUSE_SECONDS = 0.001
"""Between two transactions: SQLite's locks are not fair, two tight loops starve each other anywhere."""


class Ledger(threading.Thread):
    """Writes until the process ends; pauses on request."""

    def __init__(self, kind: str, path: str, acks: str, writer: str) -> None:
        super().__init__(daemon=True)
        self._kind = kind
        self._path = path
        self._writer = writer
        self._random = random.Random(writer)
        self._acks = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        with open(acks, encoding="ascii") as file:
            self._number = max((int(line) for line in file), default=0)
        self._acknowledged = self._errors = 0
        self._last_error = ""
        self._paused = threading.Event()
        self._at_rest = threading.Event()
        self._moved_at = time.monotonic()

    def run(self) -> None:
        while True:
            engine = None
            try:
                # Not "rwc": between two mounts that would make a database in the bare directory.
                engine = connect(self._kind, self._path, "rw", BUSY_MS)
                engine.run(["PRAGMA synchronous=NORMAL"])
                while True:
                    self._rest()
                    self._transact(engine)
                    time.sleep(PAUSE_SECONDS)
            except SqlError as error:
                self._errors += 1
                self._last_error = str(error)
                if engine is not None:
                    with contextlib.suppress(SqlError):
                        engine.run(["ROLLBACK"])
                    with contextlib.suppress(Exception):
                        engine.close()
                self._moved_at = time.monotonic()
                self._rest()
                time.sleep(RETRY_SECONDS)

    def _rest(self) -> None:
        while self._paused.is_set():
            self._at_rest.set()
            self._moved_at = time.monotonic()
            time.sleep(0.005)
        self._at_rest.clear()

    def _transact(self, engine: Engine) -> None:
        # The number is used up whatever comes of it; one that failed may be there or not. After a restart of
        # this process it can meet a row whose acknowledgement was not written any more, hence OR IGNORE.
        self._number += 1
        source, target = self._random.sample(range(ACCOUNTS), 2)
        statements = (
            "BEGIN IMMEDIATE",
            f"INSERT OR IGNORE INTO ledger VALUES('{self._writer}',{self._number},randomblob(200))",
            f"UPDATE account SET balance=balance-1 WHERE id={source}",
            f"UPDATE account SET balance=balance+1 WHERE id={target}",
            "COMMIT",
        )
        for statement in statements:
            self._moved_at = time.monotonic()
            engine.run([statement])
        os.write(self._acks, f"{self._number}\n".encode())
        self._acknowledged += 1

    def watch(self) -> None:
        """End the process if a statement hangs."""
        while True:
            time.sleep(0.2)
            if time.monotonic() - self._moved_at > STUCK_SECONDS:
                print(f"stuck in {self._kind} on {self._path}", file=sys.stderr, flush=True)
                os._exit(STUCK_STATUS)

    def pause(self) -> None:
        self._paused.set()
        if not self._at_rest.wait(STUCK_SECONDS):
            raise TimeoutError("the writer does not come to rest")

    def resume(self) -> None:
        self._at_rest.clear()
        self._paused.clear()

    def progress(self) -> dict[str, object]:
        return {"acknowledged": self._acknowledged, "errors": self._errors, "last_error": self._last_error}


def main() -> None:
    ledger = Ledger(*sys.argv[1:])
    ledger.start()
    threading.Thread(target=ledger.watch, daemon=True).start()
    serve({"pause": ledger.pause, "resume": ledger.resume, "progress": ledger.progress})
    os._exit(0)


if __name__ == "__main__":
    main()
