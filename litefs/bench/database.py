"""The database of a run: made here, recognised as ours by its application id, checked and removed.

``entry(id, num, data)``: ``num`` counts the rows, filled ones first; client c of n writes the numbers
``filled + c``, ``filled + c + n`` and so on, ``data`` is :class:`Content` of the number. ``litefs_bench`` has
one row: how it was made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from litefs.bench.content import Content
from litefs.bench.settings import BenchError, Settings

APPLICATION_ID = 0x4C46424E
"""``LFBN``, at offset 68 of our databases (https://www.sqlite.org/fileformat2.html)."""

FILL_ROWS = 10_000
"""Rows of one transaction of a fill."""

_BUSY = 5
"""SQLITE_BUSY (https://www.sqlite.org/rescode.html); the low byte of an extended code."""

_REPLICA = "; is this a replica's mount? Write on the primary's, or read with -reuse what was kept there"

_MADE = ("owner", "seed", "row_size", "rows")


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection was in the way: what failed can be tried again."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == _BUSY


def connect(path: Path, settings: Settings, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit with the settings that every client has. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=settings.busy_timeout)
    connection.execute(f"PRAGMA synchronous={settings.synchronous}")
    connection.execute(f"PRAGMA cache_size={settings.cache_size}")
    return connection


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors and those of the file system into BenchErrors that name the path."""
    try:
        yield
    except sqlite3.Error as error:
        raise BenchError(f"{path}: {error}{_REPLICA if 'readonly' in str(error) else ''}") from error
    except OSError as error:
        raise BenchError(
            f"{path}: {error.strerror}{_REPLICA if error.errno == errno.EROFS else ''}"
        ) from error


def this_process() -> str:
    """A name that no other process has, also after a restart of the machine (proc(5), starttime)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot} {os.getpid()} {_start_time(os.getpid())}"


def _start_time(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return ""
    return text[text.rindex(")") + 2 :].split()[19]


def _is_another(owner: str) -> bool:
    """Whether a process that runs now, other than this one, made a database."""
    words = owner.split()
    if len(words) != 3 or not words[1].isdigit():
        return False
    own = this_process()
    return owner != own and words[0] == own.split()[0] and _start_time(int(words[1])) == words[2]


def made(path: Path) -> dict[str, object] | None:
    """How a database was made, or None if it is not ours. Raises BenchError if it cannot be read."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with explained(path), contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        try:
            if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                return None
            row = connection.execute(f"SELECT {', '.join(_MADE)} FROM litefs_bench").fetchone()
        except sqlite3.DatabaseError as error:
            if is_busy(error):
                raise
            return None  # no database, or not ours
        return dict(zip(_MADE, row or (), strict=False))


def create(path: Path, settings: Settings, progress: Callable[[float], None] | None = None) -> None:
    """Make the database, and fill it if the workload wants that; one that an earlier run left is replaced.

    ``progress`` is told the share of the rows that are there. Raises BenchError, also if there is a database
    that we have not made, or one that a running bench uses.
    """
    clear(path)
    with explained(path):
        path.touch(exist_ok=False)
        try:
            with contextlib.closing(connect(path, settings)) as connection:
                _lay_out(connection, path, settings)
                _fill(connection, settings, progress)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except BaseException:
            remove(path)
            raise


def _lay_out(connection: sqlite3.Connection, path: Path, settings: Settings) -> None:
    connection.execute(f"PRAGMA page_size={settings.page_size}")
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"CREATE TABLE litefs_bench({', '.join(_MADE)})")
    row = (this_process(), settings.seed, settings.row_size, settings.filled)
    connection.execute("INSERT INTO litefs_bench VALUES(?,?,?,?)", row)
    (mode,) = connection.execute(f"PRAGMA journal_mode={settings.journal_mode}").fetchone()
    if mode.upper() != settings.journal_mode:
        raise BenchError(f"{path}: journal mode {settings.journal_mode} cannot be had here, but {mode}")
    connection.execute("CREATE TABLE entry(id INTEGER PRIMARY KEY, num INTEGER, data BLOB)")


def _fill(
    connection: sqlite3.Connection, settings: Settings, progress: Callable[[float], None] | None
) -> None:
    content = Content(settings.seed, settings.row_size)
    for first in range(0, settings.filled, FILL_ROWS):
        numbers = range(first, min(first + FILL_ROWS, settings.filled))
        connection.execute("BEGIN IMMEDIATE")
        rows = ((number, content(number)) for number in numbers)
        connection.executemany("INSERT INTO entry(num, data) VALUES(?,?)", rows)
        connection.execute("COMMIT")
        if progress is not None:
            progress(numbers.stop / settings.filled)


def reuse(path: Path, settings: Settings) -> Settings:
    """The settings with what is so of a database that ``-keep`` left: seed, rows, page size and journal mode.

    Raises BenchError.
    """
    if not path.exists():
        raise BenchError(f"{path} does not exist: make it with -keep, on the primary if this is a replica")
    found = made(path)
    if not found or not found["rows"]:
        raise BenchError(f"{path} was not filled by litefs bench: make one with `litefs bench read -keep`")
    seed, row_size, rows = (int(str(found[key])) for key in ("seed", "row_size", "rows"))
    with explained(path), contextlib.closing(connect(path, settings, read_only=True)) as connection:
        (page_size,), (mode,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "journal_mode")
        )
    return replace(
        settings,
        seed=seed,
        row_size=row_size,
        rows=rows,
        page_size=page_size,
        journal_mode=mode.upper(),
    )


def clear(path: Path) -> None:
    """Remove a database that an earlier run left. Raises BenchError if it is another one, or in use."""
    if not os.path.lexists(path):
        return
    found = made(path)
    if found is None:
        raise BenchError(f"{path} was not made by litefs bench: move it away, or choose another -name")
    if _is_another(str(found.get("owner"))):
        raise BenchError(f"{path} is in use by another litefs bench: choose another -name")
    remove(path)


def remove(path: Path) -> None:
    """Remove the database and what lies beside it; nobody has it open. Raises BenchError."""
    with explained(path):
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).unlink()
