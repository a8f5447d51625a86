"""An application on one node: ``application NODE HISTORY SEED NAME=MOUNT…``.

Like the same application on the other nodes it writes whenever its node is primary: unique rows into a
database in WAL mode and one in DELETE mode, a register by compare-and-set, and a row of its own that a
session then reads on one node after the other, each time after ``litefs.client.wait``. What it did goes into
HISTORY (tests/faults/history.py).

Operation: stop(), which answers when nothing is under way any more.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

from litefs import client
from litefs.errors import LiteFSError, PositionMismatch, WaitTimeout
from litefs.types import Position
from tests.faults.history import Journal
from tests.support.clients.protocol import serve

BUSY_SECONDS = 2.0
PACE_SECONDS = 0.03
RETRY_SECONDS = 0.1
WAIT_SECONDS = 3.0
STOP_SECONDS = 60.0
SIZES = {0: 900, 20_000: 95, 1_200_000: 5}
"""Bytes of a row, and how often relative to the others; a commit of more than 1 MiB is made in a thread."""
REOPEN = 0.1
"""How many reads are made over a new connection though the old one works."""


class Task(threading.Thread):
    """Does something again and again until it is no longer ``wanted``."""

    def __init__(
        self, name: str, mounts: dict[str, Path], node: str, journal: Journal, rng: random.Random
    ) -> None:
        super().__init__(daemon=True, name=name)
        self.mounts, self.node, self.journal, self.rng = mounts, node, journal, rng
        self.wanted = True

    def path(self, node: str) -> str:
        """Of its database, through the mount of a node."""
        return str(self.mounts[node] / f"{self.name}.db")

    def is_replica(self) -> bool:
        """Whether ``.primary`` names another node. Raises OSError."""
        return (self.mounts[self.node] / ".primary").exists()

    def run(self) -> None:
        while self.wanted:
            try:
                self.work()
            except (sqlite3.Error, LiteFSError, OSError):
                time.sleep(RETRY_SECONDS)

    def work(self) -> None:
        """A piece of it. Raises sqlite3.Error, LiteFSError, OSError, after which it begins anew."""
        raise NotImplementedError


def connect(path: str, mode: str) -> sqlite3.Connection:
    """A connection in autocommit mode. Raises sqlite3.Error."""
    uri = f"file:{quote(path)}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


class Writer(Task):
    """Inserts unique rows, or sets the register, over one connection until that fails."""

    def work(self) -> None:
        if self.is_replica():
            time.sleep(RETRY_SECONDS)
            return
        with contextlib.closing(connect(self.path(self.node), "rw")) as connection:
            while self.wanted:
                self.write(connection)
                time.sleep(PACE_SECONDS)

    def write(self, connection: sqlite3.Connection) -> None:
        """One transaction. Raises sqlite3.Error, after which the connection is of no use any more."""
        connection.execute("BEGIN IMMEDIATE")
        value = self.journal.next()
        previous = ""
        try:
            if self.name == "register":
                previous = connection.execute("SELECT value FROM register").fetchone()[0]
                connection.execute("UPDATE register SET value=? WHERE value=?", (value, previous))
            else:
                (size,) = self.rng.choices(list(SIZES), list(SIZES.values()))
                connection.execute("INSERT INTO t(value, data) VALUES(?, randomblob(?))", (value, size))
        except sqlite3.Error:
            self.journal.failed(value)
            raise
        self.commit(connection, value, previous)

    def commit(self, connection: sqlite3.Connection, value: str, previous: str = "") -> None:
        """COMMIT, and tell the history. Raises sqlite3.Error."""
        self.journal.invoke(value, previous)
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            # Busy is said before anything is written; every other error leaves the outcome open.
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            self.journal.end(value, "failed" if busy else "unknown")
            raise
        self.journal.end(value, "ok")


class Session(Writer):
    """Writes the row of its node when it can, and reads all rows on the nodes, never a state older than the
    one it saw before."""

    def __init__(
        self, name: str, mounts: dict[str, Path], node: str, journal: Journal, rng: random.Random
    ) -> None:
        super().__init__(name, mounts, node, journal, rng)
        self._readers: dict[str, sqlite3.Connection] = {}
        self._forget()

    def _forget(self) -> None:
        self._seen = (0,) * len(self.mounts)
        self._token: Position | None = None

    def work(self) -> None:
        try:
            if not self.is_replica():
                with contextlib.closing(connect(self.path(self.node), "rw")) as connection:
                    for _ in range(5):
                        self._await_all_seen()
                        self.write(connection)
                        time.sleep(PACE_SECONDS)
                        self._look(self.rng.choice(list(self.mounts)))
            self._look(self.rng.choice(list(self.mounts)))
            time.sleep(PACE_SECONDS)
        except PositionMismatch:
            self._forget()  # what it saw was never acknowledged, or given up: the application begins anew
            raise

    def write(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        value = self.journal.next()
        try:
            statement = "UPDATE session SET number=?, value=? WHERE node=?"
            connection.execute(statement, (self.journal.number, value, self.node))
        except sqlite3.Error:
            self.journal.failed(value)
            raise
        self.commit(connection, value)
        self._token = client.position(self.path(self.node))
        index = sorted(self.mounts).index(self.node)
        self._seen = (*self._seen[:index], self.journal.number, *self._seen[index + 1 :])

    def _await_all_seen(self) -> None:
        """On the primary: a write, too, follows what the session saw. What the primary does not have by now
        was given up."""
        try:
            self._await_seen(self.node)
        except WaitTimeout:
            self._forget()
            raise

    def _await_seen(self, node: str) -> None:
        if self._token is not None:
            client.wait(self.path(node), self._token, WAIT_SECONDS)

    def _look(self, node: str) -> None:
        path = self.path(node)
        self._await_seen(node)
        found = tuple(row[0] for row in self._rows(node))
        self.journal.read(node, sorted(self.mounts), self._seen, found)
        self._token, self._seen = client.position(path), found

    def _rows(self, node: str) -> list[tuple[int]]:
        """Mostly over a connection of before, which may have seen its node change its role, or die."""
        if node in self._readers and self.rng.random() < REOPEN:
            self._readers.pop(node).close()
        if node not in self._readers:
            self._readers[node] = connect(self.path(node), "ro")
        try:
            return self._readers[node].execute("SELECT number FROM session ORDER BY node").fetchall()
        except sqlite3.Error:
            self._readers.pop(node).close()
            raise


def main() -> None:
    node, directory, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    mounts = {name: Path(path) for name, path in (word.split("=", 1) for word in sys.argv[4:])}
    tasks: list[Task] = []
    for name in ("wal", "delete", "register", "session"):
        kind = Session if name == "session" else Writer
        rng = random.Random(f"{seed}/{name}/{node}")
        tasks.append(kind(name, mounts, node, Journal(directory, name, node), rng))
    for task in tasks:
        task.start()

    def stop() -> None:
        for task in tasks:
            task.wanted = False
        for task in tasks:
            task.join(STOP_SECONDS)
            if task.is_alive():
                raise TimeoutError(f"{task.name} on {node} does not come to an end")

    serve({"stop": stop})
    os._exit(0)


if __name__ == "__main__":
    main()
