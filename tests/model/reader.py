"""Readers of a replica: connections that stay open, each in a transaction from one look to the next."""

from __future__ import annotations

import contextlib
import sqlite3
from urllib.parse import quote

from tests.model.content import Content, content, error_name, is_known
from tests.support.clients.protocol import serve


def seen(connection: sqlite3.Connection) -> Content:
    """The content, or that it is damaged. Raises sqlite3.Error for any other error."""
    try:
        return content(connection)
    except sqlite3.Error as error:
        found = {"error": error_name(error)}
        if is_known(found):
            return found
        raise


class Readers:
    """One connection for each path."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[sqlite3.Connection, Content]] = {}

    def look(self, path: str) -> dict[str, object]:
        """``before``: what the transaction saw when it began, ``held``: what it sees now, both {} at first.

        ``now``: what the next one sees, which is left open; ``error``: why the one that was open failed.
        """
        before: Content = {}
        held: Content = {}
        error = ""
        if path in self._open:
            connection, before = self._open[path]
            try:
                held = content(connection)
                connection.execute("ROLLBACK")
                connection.execute("BEGIN")
                self._open[path] = connection, content(connection)
            except sqlite3.Error as exc:
                error = error_name(exc)
                self.drop(path)
        if path not in self._open:
            connection = sqlite3.connect(
                f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None, timeout=0, cached_statements=0
            )
            connection.execute("BEGIN")
            self._open[path] = connection, seen(connection)
        return {"before": before, "held": held, "now": self._open[path][1], "error": error}

    def drop(self, path: str) -> None:
        """Close a connection, if there is one."""
        if path in self._open:
            with contextlib.suppress(sqlite3.Error):
                self._open.pop(path)[0].close()


def main() -> None:
    readers = Readers()
    serve({"look": readers.look, "drop": readers.drop})


if __name__ == "__main__":
    main()
