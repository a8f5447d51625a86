"""A source of real transactions, captured from a real SQLite database, and clients in processes of their
own."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litefs.store.database import Database
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.types import START, Point, Position
from tests.apply.clients import TOTAL

ACCOUNTS = 100
WAIT = 30.0
"""Seconds that any step of a client may take."""


class Source:
    """A primary in miniature: random transactions of SQLite, each captured as an LTX record in a log of its
    own."""

    def __init__(self, directory: Path, page_size: int, mode: str, seed: int) -> None:
        directory.mkdir()
        self.random = random.Random(seed)
        self.path = directory / "source.db"
        self.page_size = page_size
        self.mode = mode
        self.steps = 0
        self.pages: list[bytes] = []
        """The database after the last captured transaction."""
        self._wal_offset = 32
        self._salt = b""
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        for pragma in (
            f"page_size={page_size}",
            f"journal_mode={mode}",
            "wal_autocheckpoint=0",
            "synchronous=OFF",
        ):
            self.connection.execute(f"PRAGMA {pragma}")
        log = DatabaseDir("source", directory / "captured")
        log.create()
        self.database = Database.open(log)
        self._reader: LogReader | None = None
        self._setup()

    def _setup(self) -> None:
        run = self.connection.execute
        run("BEGIN")
        run("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER)")
        run("CREATE TABLE step(n INTEGER)")
        run("CREATE TABLE junk(id INTEGER PRIMARY KEY, text, data BLOB)")
        run("CREATE INDEX junk_text ON junk(text)")
        run("INSERT INTO step VALUES(0)")
        for number in range(ACCOUNTS):
            run("INSERT INTO account VALUES(?, ?)", (number, TOTAL // ACCOUNTS))
        run("COMMIT")
        self._capture()

    @property
    def position(self) -> Position:
        return self.database.position

    @property
    def point(self) -> Point:
        return self.database.point

    def body(self) -> bytes:
        """The database file as it should be."""
        return b"".join(self.pages)

    def step(self) -> None:
        """One random transaction, captured."""
        rng, run = self.random, self.connection.execute
        self.steps += 1
        run("BEGIN IMMEDIATE")
        run("UPDATE step SET n = ?", (self.steps,))
        amount = rng.randrange(50)
        for account, change in zip(rng.sample(range(ACCOUNTS), 2), (amount, -amount), strict=True):
            run("UPDATE account SET balance = balance + ? WHERE id = ?", (change, account))
        kind = rng.random()
        if kind < 0.6:
            for _ in range(rng.randrange(1, 6)):
                row = (
                    rng.randbytes(4).hex(),
                    rng.randbytes(rng.randrange(1, min(2 * self.page_size, 20_000))),
                )
                run("INSERT INTO junk(text, data) VALUES(?, ?)", row)
        elif kind < 0.8:
            run("DELETE FROM junk WHERE id % 7 = ?", (rng.randrange(7),))
        run("COMMIT")
        if kind > 0.98:
            run("VACUUM")
        elif kind > 0.95 and self.mode == "wal":
            self._capture()
            run("PRAGMA wal_checkpoint(TRUNCATE)")
        self._capture()

    def take(self) -> list[bytes]:
        """The records since the last call."""
        if self._reader is None:
            self._reader = LogReader(self.database.dir.log)
            assert self._reader.seek(START)
        bodies = []
        while entries := self._reader.read(self.position.txid, 1 << 20):
            bodies += [entry.body or entry.open().read() for entry in entries]
        return bodies

    def vacuum(self, page_size: int) -> None:
        """VACUUM to another page size, captured as a full record."""
        run = self.connection.execute
        run("PRAGMA journal_mode=delete")
        self._log(self._file_change())
        run(f"PRAGMA page_size={page_size}")
        run("VACUUM")
        data = self.path.read_bytes()
        self.page_size = page_size
        self.pages = [data[at : at + page_size] for at in range(0, len(data), page_size)]
        count = len(self.pages)
        numbers = struct.pack(f"={count}I", *range(1, count + 1))
        self.database.commit_stream(numbers, [(numbers, data)], count, 1_700_000_000_000, page_size)
        run(f"PRAGMA journal_mode={self.mode}")
        self._log(self._file_change())

    def _capture(self) -> None:
        self._log(self._wal_commits() if self.mode == "wal" else self._file_change())

    def _log(self, changes: Iterator[tuple[dict[int, bytes], int]]) -> None:
        for pages, commit in changes:
            numbers = sorted(pages)
            self.database.commit(
                struct.pack(f"={len(numbers)}I", *numbers),
                b"".join(pages[number] for number in numbers),
                commit,
                1_700_000_000_000 + self.steps,
                page_size=self.page_size,
                fill=lambda pgno: bytes(self.page_size),
            )
            del self.pages[commit:]
            self.pages += [bytes(self.page_size)] * (commit - len(self.pages))
            for number in numbers:
                self.pages[number - 1] = pages[number]

    def _wal_commits(self) -> Iterator[tuple[dict[int, bytes], int]]:
        """The commits that are new in the WAL file. A finished commit is always valid: nobody else writes."""
        with self.path.with_name("source.db-wal").open("rb") as file:
            salt = file.read(32)[16:24]
            if salt != self._salt:
                self._salt, self._wal_offset = salt, 32
            base = self._wal_offset
            file.seek(base)
            data = file.read()
        pages: dict[int, bytes] = {}
        for at in range(0, len(data), 24 + self.page_size):
            pgno, commit, salt = struct.unpack_from(">II8s", data, at)
            if salt != self._salt:
                break
            pages[pgno] = data[at + 24 : at + 24 + self.page_size]
            self._wal_offset = base + at + 24 + self.page_size
            if commit:
                yield {number: page for number, page in pages.items() if number <= commit}, commit
                pages = {}

    def _file_change(self) -> Iterator[tuple[dict[int, bytes], int]]:
        data, size = self.path.read_bytes(), self.page_size
        new = [data[at : at + size] for at in range(0, len(data), size)]
        changed = {
            n: page for n, page in enumerate(new, 1) if n > len(self.pages) or self.pages[n - 1] != page
        }
        if changed or len(new) != len(self.pages):
            yield changed, len(new)

    def close(self) -> None:
        self.connection.close()
        if self._reader is not None:
            self._reader.close()
        self.database.close()


class Client:
    """A process of ``clients.py``. Every answer is waited for with a bound."""

    def __init__(self, path: Path, kind: str, mmap_size: int = 0, *, writable: bool = False) -> None:
        command = [
            sys.executable,
            str(Path(__file__).with_name("clients.py")),
            str(path),
            kind,
            str(mmap_size),
        ]
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            command + ["writable"] * writable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        self._timer = threading.Timer(4 * WAIT, self.process.kill)
        self._timer.start()
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.wait(WAIT)}"
        return line.strip()

    def ask(self, sql: str) -> Any:
        """The first row of a statement, or its error as text."""
        assert self.process.stdin is not None
        self.process.stdin.write(sql + "\n")
        self.process.stdin.flush()
        answer = json.loads(self._line())
        return answer["error"] if "error" in answer else answer["row"]

    def report(self) -> dict[str, int]:
        """End a watching client; its report."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        report: dict[str, int] = json.loads(self._line())
        return report

    def close(self) -> None:
        self._timer.cancel()
        self.process.kill()
        self.process.wait(WAIT)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def clients(*made: Client) -> Iterator[None]:
    """End the clients whatever happens."""
    try:
        yield
    finally:
        for client in made:
            client.close()
