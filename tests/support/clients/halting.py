"""A client of a replica that writes under HALT: ``halting``.

Operations: halt(path); unhalt(); open(path, timeout); execute(statement); close(); work(path, number, count),
as many commits, answered with those that were acknowledged.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack

from litefs import client
from tests.support.clients.protocol import serve


class Halting:
    """One lock and one connection at a time."""

    def __init__(self) -> None:
        self._locks = ExitStack()
        self._connection: sqlite3.Connection | None = None

    def halt(self, path: str) -> None:
        self._locks.enter_context(client.halt(path))

    def unhalt(self) -> None:
        self._locks.close()

    def open(self, path: str, timeout: float = 5) -> None:
        self.close()
        self._connection = sqlite3.connect(path, timeout=timeout, isolation_level=None)

    def execute(self, statement: str) -> list[list[object]]:
        assert self._connection is not None
        return [list(row) for row in self._connection.execute(statement)]

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


def main() -> None:
    halting = Halting()
    serve(
        {
            "halt": halting.halt,
            "unhalt": halting.unhalt,
            "open": halting.open,
            "execute": halting.execute,
            "close": halting.close,
        }
    )


if __name__ == "__main__":
    main()
