"""Holds one read transaction and compares all content again and again: ``long_reader PATH SECONDS``.

Answers "holding" when the snapshot is taken, and at the end ``{"reads": …}`` or an error.
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys
import time

from tests.support.clients.protocol import reply, reply_error


class SnapshotChanged(Exception):
    """The same query gave another answer in the same transaction."""


def digest(connection: sqlite3.Connection) -> str:
    content = hashlib.sha256()
    for table in ("account", "item"):
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY id"):
            content.update(repr(row).encode())
    return content.hexdigest()


def hold(path: str, seconds: float) -> dict[str, int]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=10)
    connection.execute("BEGIN")
    first = digest(connection)
    reply("holding")
    reads = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if digest(connection) != first:
            raise SnapshotChanged(f"after {reads} equal reads")
        reads += 1
        time.sleep(0.1)
    check = connection.execute("PRAGMA integrity_check").fetchall()
    if check != [("ok",)]:
        raise SnapshotChanged(f"integrity_check: {check}")
    connection.execute("COMMIT")
    connection.close()
    return {"reads": reads}


def main() -> None:
    try:
        reply(hold(sys.argv[1], float(sys.argv[2])))
    except Exception as error:
        reply_error(error)


if __name__ == "__main__":
    main()
