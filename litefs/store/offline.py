"""Looking at a database that somebody put into the data directory while no node ran."""

from __future__ import annotations

import sqlite3
import urllib.parse
from pathlib import Path

from litefs.errors import FormatError, LiteFSError
from litefs.sqlite.header import SIZE as DATABASE_HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.store.paths import DatabaseDir


def offline_database(directory: DatabaseDir) -> tuple[DatabaseHeader, int]:
    """(header, pages) of the database file, with an offline WAL folded in.

    Raises LiteFSError with what is wrong.
    """
    database = directory.database
    size = database.stat().st_size if database.exists() else 0
    if size == 0:
        raise FormatError("no database file" if not database.exists() else "the file is empty")
    if directory.wal.exists() and directory.wal.stat().st_size:
        _fold_wal(database)
        size = database.stat().st_size
    with database.open("rb") as file:
        header = DatabaseHeader.parse(file.read(DATABASE_HEADER_SIZE))
    commit = header.trusted_page_count(size)
    if not commit or commit * header.page_size > size:
        raise FormatError(
            f"a database of {commit} pages of {header.page_size} bytes in a file of {size} bytes"
        )
    return header, commit


def _fold_wal(database: Path) -> None:
    """Let SQLite itself checkpoint a WAL that was left offline: without a log, it alone holds those
    transactions.
    """
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(database))}?mode=rw", uri=True)
        try:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise FormatError(f"SQLite cannot read it: {error}") from error
    if busy:
        raise LiteFSError("another process has it open")
