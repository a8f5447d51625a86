"""``litefs import`` and ``litefs export``: a database in or out of a running node, streamed over HTTP/2."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from litefs.cli.connection import FLAGS, WORK_TIMEOUT, Connection
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.progress import Advance, progress
from litefs.config_types import Duration
from litefs.errors import FormatError, LiteFSError
from litefs.sqlite.header import SIZE as HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.store import fileops

CHUNK = 1 << 20
"""Bytes read, sent or written at a time."""

_SIDE_FILES = ("-journal", "-wal", "-shm")

_NAME_FLAG = Flag("name", "name of the database in the cluster", "NAME")
_IMPORT_FLAGS = (
    _NAME_FLAG,
    Flag("no-check", "take the file as it is, without an integrity check by the node"),
    *FLAGS,
)
_EXPORT_FLAGS = (
    _NAME_FLAG,
    Flag("no-check", "keep the file as it came, without an integrity check"),
    *FLAGS,
)

USAGE = {
    "import": "Usage:\n\n  litefs import [ARGUMENTS] PATH\n\n"
    "Sends the SQLite database at PATH into the cluster, replacing the database NAME if there is one. Any\n"
    "node may be given; whatever fails leaves the old database as it was.\n\n"
    f"Arguments:\n\n{describe(_IMPORT_FLAGS)}",
    "export": "Usage:\n\n  litefs export [ARGUMENTS] PATH\n\n"
    "Writes a consistent copy of the database NAME to PATH, replacing PATH when all of it has arrived and\n"
    "is a sound database.\n\n"
    f"Arguments:\n\n{describe(_EXPORT_FLAGS)}",
}
SPECS = {"import": Spec(_IMPORT_FLAGS, paths=True), "export": Spec(_EXPORT_FLAGS, paths=True)}


def import_command(argv: Sequence[str]) -> int:
    """``litefs import``. Raises UsageError, LiteFSError."""
    arguments, path = _arguments(_IMPORT_FLAGS, argv)
    started = time.monotonic()
    check = "no-check" not in arguments.switches
    import_database(Connection.of(arguments), arguments.values["name"], path, check=check)
    _report("Import", arguments.values["name"], started)
    return 0


def export_command(argv: Sequence[str]) -> int:
    """``litefs export``. Raises UsageError, LiteFSError."""
    arguments, path = _arguments(_EXPORT_FLAGS, argv)
    started = time.monotonic()
    check = "no-check" not in arguments.switches
    export_database(Connection.of(arguments), arguments.values["name"], path, check=check)
    _report("Export", arguments.values["name"], started)
    return 0


def import_database(node: Connection, name: str, path: Path, *, check: bool = True) -> None:
    """Send the database file at ``path`` to ``node`` as ``name``; with ``check`` the node checks it first.

    Raises FormatError, before anything is sent, for a file that is no SQLite database or is not complete
    without its journal or WAL; PeerError if the node cannot be reached or refuses, NotTrusted, AccessDenied.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise LiteFSError(f"cannot read {path}: {error.strerror}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        _require_database(file, size, path)
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        query = None if check else {"check": "0"}
        with node.client() as client, progress(f"import of {name}", size) as advance:
            node.greet(client)
            content = _chunks(file, size, path, advance)
            with node.exchange(
                client,
                "POST",
                "/import",
                name,
                query=query,
                headers=headers,
                content=content,
                timeout=WORK_TIMEOUT,
            ):
                pass


def export_database(node: Connection, name: str, path: Path, *, check: bool = True) -> None:
    """Write the database ``name`` of ``node`` to ``path``, with ``check`` if it is sound; on failure ``path``
    is as it was.

    Journal, WAL and wal-index that lie beside ``path`` belong to its old content and go with it: SQLite
    would apply them to the new one. Raises DatabaseNotFound, PeerError, NotTrusted, AccessDenied,
    FormatError, LiteFSError (the file cannot be written).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            with node.client() as client:
                node.greet(client)
                with node.exchange(client, "GET", "/export", name, timeout=WORK_TIMEOUT) as response:
                    length = response.headers.get("content-length", "")
                    total = int(length) if length.isdecimal() else None
                    with progress(f"export of {name}", total) as advance:
                        for chunk in response.iter_bytes(CHUNK):
                            file.write(chunk)
                            advance(len(chunk))
            file.flush()
            fileops.fsync(file.fileno())
        with temporary.open("rb") as file:
            _require_header(file, temporary.stat().st_size, f"the answer of {node.url}")
        if check:
            require_sound(temporary, f"{name} of {node.url}")
        for suffix in _SIDE_FILES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        fileops.rename(temporary, path)
        fileops.sync_dir(path.parent)
    except OSError as error:
        raise LiteFSError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_sound(path: Path, what: str) -> None:
    """Raise FormatError unless SQLite's integrity check finds nothing wrong with the database at ``path``,
    which nobody else has open; LiteFSError if it cannot be checked here."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(os.fspath(path.absolute()))}?mode=ro&immutable=1", uri=True)
        ) as connection:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.OperationalError as error:  # of modules and collations that only the application has
        raise LiteFSError(f"{what} cannot be checked here: {error}; -no-check takes it unchecked") from None
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise FormatError(f"{what} is damaged: {found}; -no-check takes it as it is")


def _arguments(flags: Sequence[Flag], argv: Sequence[str]) -> tuple[Arguments, Path]:
    arguments = parse_flags(flags, argv)
    if not arguments.values["name"]:
        raise UsageError("database name required: -name NAME")
    if not arguments.rest:
        raise UsageError("path required")
    if len(arguments.rest) > 1:
        raise UsageError("too many arguments")
    return arguments, Path(arguments.rest[0])


def _report(action: str, name: str, started: float) -> None:
    print(f'{action} of database "{name}" in {Duration(round(time.monotonic() - started, 6))}')


def _require_database(file: BinaryIO, size: int, path: Path) -> None:
    """Raise FormatError unless the file alone is a whole database."""
    _require_header(file, size, str(path))
    for suffix in ("-wal", "-journal"):
        beside = path.with_name(path.name + suffix)
        if beside.exists() and beside.stat().st_size > 0:
            raise FormatError(
                f"{path} is not complete without {beside.name}; open and close it with sqlite3 first, "
                "or import a copy made with .backup or VACUUM INTO"
            )


def _require_header(file: BinaryIO, size: int, what: str) -> None:
    """Raise FormatError unless ``file`` begins like a database and has whole pages."""
    try:
        header = DatabaseHeader.parse(file.read(HEADER_SIZE))
    except FormatError as error:
        raise FormatError(f"{what} is not a SQLite database: {error}") from None
    if size % header.page_size:
        raise FormatError(
            f"{what} is not a SQLite database: {size} bytes are no whole pages of {header.page_size}"
        )
    pages = header.trusted_page_count(size)
    if size < pages * header.page_size:
        raise FormatError(f"{what} is cut off: {size} bytes of {pages} pages of {header.page_size}")


def _chunks(file: BinaryIO, size: int, path: Path, advance: Advance) -> Iterator[bytes]:
    """The first ``size`` bytes of the file, as announced; ``advance`` is told of each piece. Raises
    FormatError if it shrank meanwhile."""
    file.seek(0)
    left = size
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise FormatError(f"{path} became shorter while it was read")
        left -= len(chunk)
        yield chunk
        advance(len(chunk))
