"""Clients that write: transactions of every kind, whose content a seed decides, wherever the primary is."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.support.node import Node
from tests.support.processes import Client, ClientError, ClientStuck

OPEN_SECONDS = 10.0
STATEMENT_SECONDS = 40.0
RETRY_SECONDS = 0.05
REST_SECONDS = 60.0
"""How long a transaction that is under way may take to end."""
PAGE_SIZES = (512, 1024, 4096, 8192)
ROW_LIMIT = 400
"""Rows of a table above which the next transaction deletes: databases stay small, so that there can be many
transactions."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One database: ``setup`` before its table is made, and whether its page size is changed now and then."""

    name: str
    setup: tuple[str, ...]
    repages: bool = False


KINDS = (
    Kind("wal.db", ("PRAGMA journal_mode=WAL",)),
    Kind("delete.db", ("PRAGMA page_size=1024", "PRAGMA journal_mode=DELETE"), repages=True),
    Kind("an app.db", ("PRAGMA auto_vacuum=FULL", "PRAGMA journal_mode=TRUNCATE")),
)

TABLE = "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a INTEGER, b BLOB)"


class Mixture:
    """Draws transactions, as lists of statements."""

    def __init__(self, kind: Kind, rng: random.Random) -> None:
        self._kind = kind
        self._rng = rng

    def next(self, rows: int) -> list[str]:
        """One more, for a table of about ``rows`` rows."""
        rng = self._rng
        if rows > ROW_LIMIT:
            return self._shrink()
        share = rng.random()
        if share < 0.03:
            return ["VACUUM"] if not self._kind.repages else self._repage()
        if share < 0.07:
            return self._transaction(self._insert(rng.randrange(40, 120), 3000))
        if share < 0.60:
            return [self._insert(rng.randrange(1, 4), rng.choice((10, 100, 100, 900, 6000)))]
        if share < 0.80:
            return [f"UPDATE t SET a={rng.getrandbits(40)} WHERE id%{rng.randrange(2, 30)}=1"]
        if share < 0.90:
            return [f"DELETE FROM t WHERE id%{rng.randrange(5, 30)}=2"]
        changes = [f"UPDATE t SET b={self._blob(200)} WHERE id%40={rng.randrange(40)}" for _ in range(3)]
        return self._transaction(*changes, self._insert(2, 50))

    def _shrink(self) -> list[str]:
        delete = f"DELETE FROM t WHERE id%{self._rng.randrange(4, 9)}>0"
        return [delete, "VACUUM"] if self._rng.random() < 0.5 else [delete]

    def _repage(self) -> list[str]:
        return [f"PRAGMA page_size={self._rng.choice(PAGE_SIZES)}", "VACUUM"]

    def _transaction(self, *statements: str) -> list[str]:
        return ["BEGIN IMMEDIATE", *statements, "COMMIT"]

    def _insert(self, rows: int, size: int) -> str:
        values = (f"({self._rng.getrandbits(40)},{self._blob(size)})" for _ in range(rows))
        return "INSERT INTO t(a,b) VALUES" + ",".join(values)

    def _blob(self, size: int) -> str:
        """Half of them cannot be compressed."""
        if self._rng.random() < 0.5:
            return f"x'{self._rng.randbytes(size).hex()}'"
        return f"x'{self._rng.randbytes(5).hex() * (size // 5)}'"


class Writer(threading.Thread):
    """Writes one database through a client process of its own, at the node that takes it; rests when told."""

    def __init__(
        self,
        kind: Kind,
        nodes: Sequence[Node],
        make_client: Callable[..., Client],
        rng: random.Random,
    ) -> None:
        super().__init__(daemon=True, name=f"writer of {kind.name}")
        self.kind = kind
        self.acknowledged = 0
        """Transactions that were answered."""
        self.refused: list[str] = []
        self._nodes = nodes
        self._make_client = make_client
        self._rng = rng
        self._mixture = Mixture(kind, rng)
        self._client: Client | None = None
        self._place = 0
        self._wanted = threading.Event()
        self._at_rest = threading.Event()
        self._ended = False

    # -- from other threads ---------------------------------------------------------------------------

    def go(self) -> None:
        """Write on."""
        self._at_rest.clear()
        self._wanted.set()
        if not self.is_alive():
            self.start()

    def rest(self) -> None:
        """Return when no transaction is under way."""
        self._wanted.clear()
        while not self._at_rest.wait(0.2):
            assert self.is_alive() or self._at_rest.is_set(), f"{self.name} died"

    def end(self) -> None:
        """For good; its client is its maker's."""
        self._ended = True
        self._wanted.set()
        if self.is_alive():
            self.join(REST_SECONDS)

    # -- the thread -----------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while True:
                if not self._wanted.is_set():
                    self._disconnect()
                    self._at_rest.set()
                    self._wanted.wait()
                if self._ended:
                    return
                self._work()
        finally:
            self._at_rest.set()

    def _work(self) -> None:
        try:
            client = self._connect()
            rows = client.call("execute", OPEN_SECONDS, statement="SELECT count(*) FROM t")[0][0]
            while self._wanted.is_set() and not self._ended:
                statements = self._mixture.next(rows)
                client.call("script", STATEMENT_SECONDS, statements=statements)
                self.acknowledged += 1
                rows = client.call("execute", OPEN_SECONDS, statement="SELECT count(*) FROM t")[0][0]
                # Bundles of one transaction as well as of many.
                time.sleep(self._rng.choice((0, 0, 0, 0.002, 0.01, 0.05)))
        except (ClientError, ClientStuck) as error:
            self.refused.append(str(error))
            self._give_up(isinstance(error, ClientStuck) or getattr(error, "kind", "") == "Ended")
            self._place = (self._place + 1) % len(self._nodes)
            time.sleep(RETRY_SECONDS)

    def _connect(self) -> Client:
        if self._client is None:
            self._client = self._make_client("sql", "sqlite3")
        path = self._nodes[self._place].path(self.kind.name)
        self._client.call("open", OPEN_SECONDS, path=path)
        for statement in (*self.kind.setup, TABLE):
            self._client.call("execute", STATEMENT_SECONDS, statement=statement)
        return self._client

    def _disconnect(self) -> None:
        """A connection that stays open would hold locks, or a WAL that no checkpoint can empty."""
        if self._client is not None:
            try:
                self._client.call("close", OPEN_SECONDS)
            except (ClientError, ClientStuck) as error:
                self._give_up(isinstance(error, ClientStuck))

    def _give_up(self, gone: bool) -> None:
        if gone and self._client is not None:
            with suppress(Exception):
                self._client.close()
            self._client = None
        elif self._client is not None:
            with suppress(ClientError, ClientStuck):
                self._client.call("close", OPEN_SECONDS)


def quick_check(path: str) -> str:
    """What SQLite says of a file of its own, none of a mount."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()
