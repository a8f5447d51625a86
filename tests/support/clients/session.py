"""Sessions that write on one node and read on another: ``session``.

Operations: run(writer, reader, number, count, seed), commits, each awaited and read on the reader's node;
look(path); wait(path, txid, seconds).
"""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing

from litefs import client
from tests.support.clients.protocol import serve


def run(writer: str, reader: str, number: int, count: int, seed: int) -> dict[str, object]:
    """Commit ``count`` times; after each, wait for it at the reader and read. Returns what went back, and the
    slowest wait in seconds.
    """
    rng = random.Random(seed)
    back: list[tuple[int, int]] = []
    slowest = 0.0
    seen = -1
    with (
        closing(sqlite3.connect(writer, timeout=20, isolation_level=None)) as write,
        closing(sqlite3.connect(f"file:{reader}?mode=ro", uri=True, timeout=20)) as read,
    ):
        for value in range(count):
            write.execute("UPDATE session SET value=? WHERE id=?", (value, number))
            at = client.position(writer)
            begin = time.monotonic()
            client.wait(reader, at if rng.random() < 0.5 else at.txid, timeout=20)
            slowest = max(slowest, time.monotonic() - begin)
            found = read.execute("SELECT value FROM session WHERE id=?", (number,)).fetchone()[0]
            if found < value or found < seen:
                back.append((value, found))
            seen = found
    return {"back": back, "slowest": slowest}


def look(path: str) -> dict[str, object]:
    """What the helper says of a database and its node."""
    place = client.locate(path)
    return {
        "name": place.name,
        "mount": str(place.mount),
        "position": str(client.position(path)),
        "primary": client.primary(path),
        "is_primary": client.is_primary(path),
        "lag": client.lag(path),
    }


def wait(path: str, txid: int, seconds: float) -> str:
    return str(client.wait(path, txid, seconds))


if __name__ == "__main__":
    serve({"run": run, "look": look, "wait": wait})
