"""Three kinds of SQLite clients behind one call: Python's sqlite3, apsw with its own SQLite, the shell."""

from __future__ import annotations

import sqlite3
import subprocess
from typing import Any, Literal, Protocol

import apsw

KINDS = ("sqlite3", "apsw", "shell")
_SENTINEL = "--end-of-answer--"


class SqlError(Exception):
    """A statement failed. ``busy``: another connection holds a lock, the transaction can be tried again."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.busy = "locked" in message or "busy" in message.lower()


class Engine(Protocol):
    """A connection that runs SQL text."""

    def run(self, statements: list[str]) -> list[str]:
        """Run the statements in order and return the first column of all rows as text. Raises SqlError."""

    def close(self) -> None:
        """Close the connection."""


class _Library:
    """sqlite3 or apsw."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, statements: list[str]) -> list[str]:
        rows: list[str] = []
        try:
            for statement in statements:
                rows.extend(str(row[0]) for row in self._connection.execute(statement))
        except (sqlite3.Error, apsw.Error) as error:
            raise SqlError(f"{statement[:80]}: {error}") from error
        return rows

    def close(self) -> None:
        self._connection.close()


class _Shell:
    """A long-lived ``sqlite3`` shell. After an error the rest of a list of statements is not executed."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            ["sqlite3", "-batch", "-noheader", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def run(self, statements: list[str]) -> list[str]:
        rows: list[str] = []
        for statement in statements:
            rows.extend(self._one(statement))
        return rows

    def _one(self, statement: str) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{statement};\n.print {_SENTINEL}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SqlError("the shell ended") from error
        rows = []
        for line in self._process.stdout:
            if line.rstrip("\n") == _SENTINEL:
                break
            rows.append(line.rstrip("\n"))
        else:
            raise SqlError("the shell ended")
        errors = [row for row in rows if "error" in row.lower()]
        if errors:
            raise SqlError(f"{statement[:80]}: {errors[0]}")
        return rows

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


def connect(kind: str, path: str, mode: Literal["ro", "rw", "rwc"] = "rwc", busy_ms: int = 10_000) -> Engine:
    """Open a database; ``mode`` as in SQLite URIs ("rw" does not create one). Raises SqlError."""
    uri = f"file:{path}?mode={mode}"
    try:
        if kind == "shell":
            engine: Engine = _Shell(uri)
        elif kind == "apsw":
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
            engine = _Library(apsw.Connection(uri, flags))
        else:
            engine = _Library(sqlite3.connect(uri, uri=True, isolation_level=None))
    except (sqlite3.Error, apsw.Error) as error:
        raise SqlError(f"open: {error}") from error
    # This pragma answers with a row, and nothing reads the file yet.
    engine.run([f"PRAGMA busy_timeout={busy_ms}"])
    return engine
