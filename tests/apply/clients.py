"""SQLite clients that run in processes of their own: ``python clients.py PATH KIND [MMAP_SIZE]``.

``sum``: check the invariant in transaction after transaction until stdin ends, then print a JSON report.
``reopen``: the same with a new connection each time. ``ask``: run each line of stdin, print its first row
or error as JSON.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from pathlib import Path

TOTAL = 10_000
"""Sum of all balances, in every state that was ever committed."""


def connect(path: str, mmap_size: int) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
    connection.execute(f"PRAGMA mmap_size={mmap_size}")
    return connection


def check(connection: sqlite3.Connection, deep: bool) -> int:
    """One read transaction; returns the number of the last transaction that it saw."""
    connection.execute("BEGIN")
    (first,) = connection.execute("SELECT sum(balance) FROM account").fetchone()
    (seen,) = connection.execute("SELECT n FROM step").fetchone()
    if deep:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert verdict == "ok", verdict
    (second,) = connection.execute("SELECT sum(balance) FROM account").fetchone()
    connection.execute("COMMIT")
    assert first == second == TOTAL, f"sum {first}, then {second}"
    return int(seen)


def watch(path: str, mmap_size: int, reopen: bool) -> dict[str, object]:
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    connection = connect(path, mmap_size)
    last = rounds = 0
    print("ready", flush=True)
    while not stop.is_set():
        if reopen:
            connection.close()
            connection = connect(path, mmap_size)
        seen = check(connection, deep=rounds % 50 == 0)
        assert seen >= last, f"went back from {last} to {seen}"
        last, rounds = seen, rounds + 1
    return {"rounds": rounds, "last": check(connection, deep=True)}


def main() -> None:
    path, kind = sys.argv[1:3]
    mmap_size = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    if kind != "ask":
        print(json.dumps(watch(path, mmap_size, kind == "reopen")), flush=True)
        return
    writable = len(sys.argv) > 4
    connection = (
        sqlite3.connect(path, isolation_level=None, timeout=1) if writable else connect(path, mmap_size)
    )
    if writable:
        connection.execute(f"PRAGMA mmap_size={mmap_size}")
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer = {"row": connection.execute(line).fetchone()}
        except sqlite3.Error as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
