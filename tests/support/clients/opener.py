"""A reader that opens the database for each read, as applications do for each request: ``opener PATH SQL``.

Reads from the start; ``stop`` answers how often, and what failed.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time

from tests.support.clients.protocol import serve

PAUSE_SECONDS = 0.002
BUSY_SECONDS = 10.0


class Opener(threading.Thread):
    """Reads until told to stop."""

    def __init__(self, path: str, statement: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._statement = statement
        self._stopping = threading.Event()
        self._reads = 0
        self._errors: list[str] = []

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS)
                try:
                    connection.execute(self._statement).fetchall()
                finally:
                    connection.close()
                self._reads += 1
            except sqlite3.Error as error:
                self._errors.append(f"{error.sqlite_errorname}: {error}")
            time.sleep(PAUSE_SECONDS)

    def stop(self) -> dict[str, object]:
        self._stopping.set()
        self.join(2 * BUSY_SECONDS)
        return {"reads": self._reads, "errors": self._errors}


def main() -> None:
    opener = Opener(*sys.argv[1:])
    opener.start()
    serve({"stop": opener.stop})


if __name__ == "__main__":
    main()
