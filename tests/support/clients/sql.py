"""SQL on request: ``sql DRIVER``, with DRIVER ``sqlite3`` or ``apsw``.

Operations: open(path, readonly, timeout), execute(statement), script(statements), close(), page_digest(path).
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from typing import Any
from urllib.parse import quote

import apsw

from tests.support.clients.protocol import serve


class SqlClient:
    """One connection at a time."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._connection: Any = None

    def open(self, path: str, readonly: bool = False, timeout: float = 5) -> None:
        self.close()
        if self._driver == "apsw":
            writable = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            flags = apsw.SQLITE_OPEN_READONLY if readonly else writable
            self._connection = apsw.Connection(path, flags=flags)
            self._connection.set_busy_timeout(int(timeout * 1000))
        else:
            mode = "ro" if readonly else "rwc"
            self._connection = sqlite3.connect(
                f"file:{quote(path)}?mode={mode}", uri=True, timeout=timeout, isolation_level=None
            )

    def execute(self, statement: str) -> list[list[Any]]:
        return [list(row) for row in self._connection.execute(statement)]

    def script(self, statements: list[str]) -> None:
        for statement in statements:
            self.execute(statement)

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


def page_digest(path: str) -> dict[str, object]:
    """SHA-256 over the pages of a database as one read transaction sees them, and over each MiB of them.

    The online backup copies every page as it is but for the schema cookie and what follows from it on page 1:
    those are the copy's own, and alike for equal sources. Opened read-write, which a replica's mount makes
    read-only: a client that was killed may have left a hot journal, which a reader could not roll back.
    """
    source = sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=10)
    target = sqlite3.connect(":memory:")
    try:
        source.backup(target)
        image = target.serialize()
    finally:
        target.close()
        source.close()
    parts = [hashlib.sha256(image[at : at + 2**20]).hexdigest() for at in range(0, len(image), 2**20)]
    return {"size": len(image), "digest": hashlib.sha256(image).hexdigest(), "parts": parts}


def main() -> None:
    client = SqlClient(sys.argv[1])
    serve(
        {
            "open": client.open,
            "execute": client.execute,
            "script": client.script,
            "close": client.close,
            "page_digest": page_digest,
        }
    )


if __name__ == "__main__":
    main()
