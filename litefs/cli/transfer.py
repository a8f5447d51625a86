"""``litefs import`` and ``litefs export``: a database in or out of a running node, streamed over HTTP/2."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from litefs.cli.connection import FLAGS, Connection
from litefs.cli.flags import Arguments, Flag, UsageError, describe, parse_flags
from litefs.config_types import Duration
from litefs.errors import FormatError, LiteFSError, PeerError
from litefs.sqlite.header import SIZE as HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.store import fileops

CHUNK = 1 << 20
"""Bytes read, sent or written at a time."""

_SIDE_FILES = ("-journal", "-wal", "-shm")

_FLAGS = (
    Flag("name", "name of the database in the cluster", "NAME"),
    *FLAGS,
)

USAGE = {
    "import": "Usage:\n\n  litefs import [ARGUMENTS] PATH\n\n"
    "Sends the SQLite database at PATH to the primary, replacing the database NAME if there is one.\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}",
    "export": "Usage:\n\n  litefs export [ARGUMENTS] PATH\n\n"
    "Writes a consistent copy of the database NAME to PATH, replacing PATH when all of it has arrived.\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}",
}


def import_command(argv: Sequence[str]) -> int:
    """``litefs import``. Raises UsageError, LiteFSError."""
    arguments, path = _arguments(argv)
    started = time.monotonic()
    import_database(Connection.of(arguments), arguments.values["name"], path)
    _report("Import", arguments.values["name"], started)
    return 0


def export_command(argv: Sequence[str]) -> int:
    """``litefs export``. Raises UsageError, LiteFSError."""
    arguments, path = _arguments(argv)
    started = time.monotonic()
    export_database(Connection.of(arguments), arguments.values["name"], path)
    _report("Export", arguments.values["name"], started)
    return 0


def import_database(node: Connection, name: str, path: Path) -> None:
    """Send the database file at ``path`` to the primary ``node`` as ``name``.

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
        content = _chunks(file, size, path)
        with node.client() as client:
            info = node.greet(client)
            if not info.is_primary:
                # Said before gigabytes are sent for nothing.
                primary = info.primary.hostname or "not known there"
                raise PeerError(f"{node.url} is not the primary, which is {primary}")
            with node.exchange(client, "POST", "/import", name, headers=headers, content=content):
                pass


def export_database(node: Connection, name: str, path: Path) -> None:
    """Write the database ``name`` of ``node`` to ``path``; on failure ``path`` is as it was.

    Journal, WAL and wal-index that lie beside ``path`` belong to its old content and go with it: SQLite
    would apply them to the new one. Raises DatabaseNotFound, PeerError, NotTrusted, AccessDenied,
    FormatError, LiteFSError (the file cannot be written).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            with node.client() as client:
                node.greet(client)
                with node.exchange(client, "GET", "/export", name) as response:
                    for chunk in response.iter_bytes(CHUNK):
                        file.write(chunk)
            file.flush()
            fileops.fsync(file.fileno())
        with temporary.open("rb") as file:
            _require_header(file, temporary.stat().st_size, f"the answer of {node.url}")
        for suffix in _SIDE_FILES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        fileops.rename(temporary, path)
        fileops.sync_dir(path.parent)
    except OSError as error:
        raise LiteFSError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _arguments(argv: Sequence[str]) -> tuple[Arguments, Path]:
    arguments = parse_flags(_FLAGS, argv)
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


def _chunks(file: BinaryIO, size: int, path: Path) -> Iterator[bytes]:
    """The first ``size`` bytes of the file, as announced. Raises FormatError if it shrank meanwhile."""
    file.seek(0)
    left = size
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise FormatError(f"{path} became shorter while it was read")
        left -= len(chunk)
        yield chunk
