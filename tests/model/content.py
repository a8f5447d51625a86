"""What a database holds, as SQL sees it: one value per table and pragma, so that a difference has a name."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

Content = dict[str, str]
"""``table NAME`` → rows and their SHA-256; ``pragma NAME`` → value. ``{"error": NAME}``: it is unreadable."""

PRAGMAS = (
    "page_size",
    "page_count",
    "freelist_count",
    "auto_vacuum",
    "user_version",
    "application_id",
    "encoding",
    "schema_version",
)
"""``schema_version`` and ``page_count`` too: native and mount run the same statements."""

_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")

VERSIONS_OFFSET = 18
"""Of the file format versions in the header: 2, 2 is WAL, 1, 1 a rollback journal."""


def error_name(error: BaseException) -> str:
    """The name of SQLite's extended result code, or the exception's class where there is none."""
    return getattr(error, "sqlite_errorname", None) or type(error).__name__


def content(connection: sqlite3.Connection) -> Content:
    """Everything in the database of a connection that is inside a transaction. Raises sqlite3.Error."""
    found: Content = {}
    schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    found["schema"] = _digest(schema)
    for kind, name, _, _ in schema:
        if kind == "table":
            rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()
            found[f"table {name}"] = f"{len(rows)} rows {_digest(rows)}"
    for pragma in PRAGMAS:
        found[f"pragma {pragma}"] = str(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
    found["integrity"] = "; ".join(row[0] for row in connection.execute("PRAGMA integrity_check"))
    return found


def content_at(path: str) -> Content:
    """The content of a database file as a new connection that only reads sees it, and its journal mode."""
    try:
        connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None, timeout=0)
        try:
            connection.execute("BEGIN")
            found = content(connection)
            connection.execute("COMMIT")
            wal = connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        finally:
            connection.close()
    except sqlite3.Error as error:
        return {"error": error_name(error)}
    return {**found, "wal": str(wal)}


def content_of_image(path: Path) -> Content:
    """The content of a database file that nobody else has open, whose WAL, if it has one, does not count."""
    with path.open("r+b", buffering=0) as file:
        file.seek(VERSIONS_OFFSET)
        versions = file.read(2)
        if versions:
            file.seek(VERSIONS_OFFSET)
            file.write(b"\1\1")
    try:
        uri = f"file:{quote(str(path))}?immutable=1"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            found = content(connection)
        finally:
            connection.close()
        found["wal"] = str(versions == b"\2\2")
    except sqlite3.Error as error:
        found = {"error": error_name(error)}
    finally:
        if versions:
            with path.open("r+b", buffering=0) as file:
                file.seek(VERSIONS_OFFSET)
                file.write(versions)
    return found


def is_known(found: Content) -> bool:
    """Whether this tells what the database holds; an error that is due to a lock does not."""
    return "error" not in found or found["error"].startswith(_DAMAGED)


def differences(one: Content, other: Content) -> list[str]:
    """``NAME: ONE != OTHER`` for each part that differs."""
    return [
        f"{key}: {one.get(key)} != {other.get(key)}"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def _digest(rows: list[tuple[object, ...]]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
