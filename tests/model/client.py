"""A client process of the model: several connections of one library, or shells, run one statement at a time.

``client KIND`` with KIND ``sqlite3``, ``apsw`` or ``shell``. Every operation answers an outcome,
``{"rows": …, "error": …, "open": …}``: the rows as text, the name of SQLite's error or "", and whether the
connection is inside a transaction afterwards.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import subprocess
import sys
from typing import Any, Protocol

import apsw

from tests.model.content import error_name
from tests.support.clients.protocol import serve

Outcome = dict[str, Any]
_LONG = 60
_SENTINEL = "--end-of-answer--"
_ERROR = re.compile(r"(?:Parse|Runtime)? ?error[^:]*: (.*?)(?: \((\d+)\))?$", re.IGNORECASE)


def shown(value: object) -> str:
    """A value as text; a long one by its length and digest."""
    text = repr(value)
    if len(text) <= _LONG:
        return text
    return f"{type(value).__name__}[{len(text)}] {hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Connection(Protocol):
    """What a kind of client can do."""

    in_transaction: bool

    def run(self, statement: str) -> list[str]: ...
    def close(self) -> None: ...


class Library:
    """A connection of sqlite3 or apsw, which may also hold one half-read SELECT."""

    def __init__(self, kind: str, uri: str) -> None:
        if kind == "apsw":
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
            self.handle: Any = apsw.Connection(uri, flags)
        else:
            self.handle = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0, cached_statements=0)
        self._cursor: Any = None

    @property
    def in_transaction(self) -> bool:
        return bool(self.handle.in_transaction)

    def run(self, statement: str) -> list[str]:
        return [_row(row) for row in self.handle.execute(statement)]

    def begin_select(self, statement: str) -> list[str]:
        """Run a SELECT up to its first row, and keep it open."""
        self.end_select()
        self._cursor = self.handle.execute(statement)
        row = next(iter(self._cursor), None)
        return [] if row is None else [_row(row)]

    def end_select(self) -> list[str]:
        """The rest of the rows of the SELECT that is open, if there is one."""
        cursor, self._cursor = self._cursor, None
        return [] if cursor is None else [_row(row) for row in cursor]

    def backup(self, target: str, pages: int) -> list[str]:
        """Copy the main database to another file with the backup API, ``pages`` at a time. Only of apsw:
        Python's sqlite3 would repeat a step that meets a lock for ever.
        """
        to = apsw.Connection(target)
        try:
            with to.backup("main", self.handle, "main") as copy:
                while not copy.done:
                    copy.step(pages)
        finally:
            to.close()
        return []

    def close(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            cursor.close()
        if isinstance(self.handle, apsw.Connection):
            self.handle.close(True)
        else:
            self.handle.close()


class Shell:
    """A long-lived ``sqlite3`` shell; whether it is in a transaction is told from its answers."""

    def __init__(self, uri: str) -> None:
        self.in_transaction = False
        self._process = subprocess.Popen(
            ["sqlite3", "-batch", "-init", os.devnull, "-quote", uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def run(self, statement: str) -> list[str]:
        """Run a statement, or a command if it begins with a dot."""
        end = "" if statement.startswith(".") else ";"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{statement}{end}\n.print {_SENTINEL}\n")
        self._process.stdin.flush()
        rows: list[str] = []
        for line in self._process.stdout:
            if line == _SENTINEL + "\n":
                break
            rows.append(line.rstrip("\n"))
        else:
            raise OSError("the shell ended")
        for row in rows:
            if found := _ERROR.match(row):
                raise ShellError(found[2] or "", found[1])
        self._note(statement)
        return [shown(row) for row in rows]

    def _note(self, statement: str) -> None:
        words = statement.upper().split()
        if words[0] == "BEGIN":
            self.in_transaction = True
        elif words[0] == "COMMIT" or words == ["ROLLBACK"]:
            self.in_transaction = False

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)


class ShellError(Exception):
    """What the shell printed; its name is the code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.sqlite_errorname = f"shell {code}".strip()


def _row(row: tuple[object, ...]) -> str:
    return ", ".join(map(shown, row))


def _name(error: BaseException) -> str:
    if isinstance(error, apsw.Error):
        result = getattr(error, "extendedresult", 0)
        names = {**apsw.mapping_result_codes, **apsw.mapping_extended_result_codes}
        return str(names.get(result, type(error).__name__))
    return error_name(error)


class Connections:
    """The connections of this process, by number."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._open: dict[int, Any] = {}

    def _outcome(self, number: int, operation: Any) -> Outcome:
        rows: list[str] = []
        error = ""
        try:
            rows = operation()
        except (sqlite3.Error, apsw.Error, ShellError) as exc:
            error = f"{_name(exc)}: {exc}"
        except KeyError:
            error = "no such connection"
        connection = self._open.get(number)
        return {"rows": rows, "error": error, "open": connection is not None and connection.in_transaction}

    def open(self, connection: int, uri: str) -> Outcome:
        def run() -> list[str]:
            made = Shell(uri) if self._kind == "shell" else Library(self._kind, uri)
            self._open[connection] = made
            return []

        return self._outcome(connection, run)

    def sql(self, connection: int, statement: str) -> Outcome:
        return self._outcome(connection, lambda: self._open[connection].run(statement))

    def burst(self, connection: int, statements: list[str]) -> Outcome:
        """Several statements at once, each whatever became of the one before; errors stand among the rows."""

        def run() -> list[str]:
            rows = []
            for statement in statements:
                outcome = self.sql(connection, statement)
                rows += [*outcome["rows"], outcome["error"]]
            return rows

        return self._outcome(connection, run)

    def begin_select(self, connection: int, statement: str) -> Outcome:
        return self._outcome(connection, lambda: self._open[connection].begin_select(statement))

    def end_select(self, connection: int) -> Outcome:
        return self._outcome(connection, lambda: self._open[connection].end_select())

    def backup(self, connection: int, target: str, pages: int) -> Outcome:
        return self._outcome(connection, lambda: self._open[connection].backup(target, pages))

    def close(self, connection: int) -> Outcome:
        def run() -> list[str]:
            self._open.pop(connection).close()
            return []

        return self._outcome(connection, run)


def main() -> None:
    connections = Connections(sys.argv[1])
    names = ("open", "sql", "burst", "begin_select", "end_select", "backup", "close")
    serve({name: getattr(connections, name) for name in names})


if __name__ == "__main__":
    main()
