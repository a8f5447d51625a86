"""Import, export, checkpoint and recovery of whole databases, as an ordinary SQLite client of the mount.

An import is SQLite's backup API writing through the mount, so it is captured like any transaction and
connected clients see it as one. Blocking, and for processes that do nothing else with the mount:
:mod:`litefs.apply.ownprocess`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from litefs.errors import DatabaseBusy, DatabaseNotFound, FormatError, LiteFSError, NotPrimary
from litefs.sqlite.header import SIZE as DATABASE_HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader

BUSY_SECONDS = 10.0
"""How long an import waits for writers, an export for a moment to read."""

_VERSIONS = slice(18, 20)
"""File format write and read version: 2, 2 means WAL (sqlite.org/fileformat, section 1.3)."""


def import_file(source: Path, target: Path, check: bool) -> None:
    """Replace the database *target* on the mount by the one in *source*, in one transaction; with *check*
    only if SQLite finds nothing wrong with it.

    Raises FormatError if *source* is no SQLite database or damaged, NotPrimary if the target is for reading
    only, LiteFSError if it cannot be written; then that is as it was.
    """
    with open(source, "rb") as file:
        header = DatabaseHeader.parse(file.read(DATABASE_HEADER_SIZE))
    try:
        with closing(sqlite3.connect(_uri(source, "mode=ro&immutable=1"), uri=True)) as origin:
            problem = _problem(origin) if check else None
            if problem is not None:
                raise FormatError(f"not imported, it is damaged: {problem} (check=0 takes it as it is)")
            target.parent.mkdir(parents=True, exist_ok=True)
            with _made(target), closing(sqlite3.connect(target, timeout=BUSY_SECONDS)) as mounted:
                _copy(origin, mounted, header.page_size)
                if header.is_wal:
                    mounted.execute("PRAGMA journal_mode=WAL")
    except sqlite3.DatabaseError as exc:
        if _primary_code(exc) == sqlite3.SQLITE_READONLY:
            raise NotPrimary("import failed: this node is not the primary any more") from exc
        if isinstance(exc, sqlite3.OperationalError):
            raise LiteFSError(f"import failed: {exc}") from exc
        raise FormatError(f"not imported: {exc}") from exc


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without what extends it; 0 if the error is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _problem(database: sqlite3.Connection) -> str | None:
    """The first thing that SQLite finds wrong."""
    found = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
    return None if found == "ok" else found


@contextmanager
def _made(target: Path) -> Iterator[None]:
    """Leave no empty file where there was none, if the block fails."""
    existed = target.exists()
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):
                if not target.stat().st_size:
                    target.unlink()
        raise


def _copy(origin: sqlite3.Connection, mounted: sqlite3.Connection, page_size: int) -> None:
    """Copy all of ``origin``, with pages of ``page_size`` bytes: no WAL could change those."""
    leaves_wal = (
        mounted.execute("PRAGMA page_size").fetchone()[0] != page_size
        and mounted.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    )
    if leaves_wal:
        mounted.execute("PRAGMA journal_mode=DELETE")
    try:
        origin.backup(mounted)
    except sqlite3.Error:
        if leaves_wal:
            mounted.execute("PRAGMA journal_mode=WAL")
        raise


def export_file(source: Path, target: Path, check: bool) -> None:
    """Write a consistent copy of the database *source* on the mount to *target*, with *check* one that SQLite
    finds sound.

    Raises DatabaseNotFound, LiteFSError.
    """
    if not source.exists():
        raise DatabaseNotFound("database not found")
    try:
        with closing(sqlite3.connect(_uri(source, "mode=ro"), uri=True, timeout=BUSY_SECONDS)) as mounted:
            mode = mounted.execute("PRAGMA journal_mode").fetchone()[0]
            with closing(sqlite3.connect(target)) as copy:
                mounted.backup(copy)
                problem = _problem(copy) if check else None
    except sqlite3.Error as exc:
        raise LiteFSError(f"export failed: {exc}") from exc
    if problem is not None:
        raise LiteFSError(f"not exported, it is damaged: {problem} (check=0 takes it as it is)")
    if mode == "wal":
        # the backup API writes a rollback-mode header; an export is the database as it is
        fd = os.open(target, os.O_RDWR)
        try:
            os.pwrite(fd, b"\x02\x02", _VERSIONS.start)
        finally:
            os.close(fd)


def empty_wal(target: Path) -> bool:
    """Checkpoint the database *target* on the mount and empty its WAL; False if readers or writers were in
    the way.
    """
    try:
        with closing(sqlite3.connect(_uri(target, "mode=rw"), uri=True, timeout=0.1)) as mounted:
            row: tuple[int, int, int] = mounted.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return row[0] == 0
    except sqlite3.Error:
        return False


def recover(target: Path, timeout: float) -> None:
    """Have SQLite roll back what a dead client left in a journal of *target* on the mount; who is the last to
    close it ends its WAL. Raises DatabaseBusy after ``timeout`` seconds, LiteFSError.
    """
    try:
        with closing(sqlite3.connect(_uri(target, "mode=rw"), uri=True, timeout=timeout)) as mounted:
            mounted.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as exc:
        busy = exc.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        raise (DatabaseBusy if busy else LiteFSError)(f"{target.name}: {exc}") from exc


def _uri(path: Path, query: str) -> str:
    return f"file:{quote(str(path))}?{query}"
