"""The operations of each workload, as closures: the loop that calls them must not cost more than they do."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

from litefs.bench.content import Content
from litefs.bench.settings import CheckFailed, Settings

RING = 4
"""``large`` writes the places of so many transactions in turn: the database does not grow without end."""

LARGE_ROW = 64 << 10
"""Bytes of a row of ``large``."""

_KEYS = 1 << 16
"""Keys that are drawn before the clock runs; then they come again."""

_INSERT = "INSERT INTO entry(num, data) VALUES(?,?)"

Operation = Callable[[], int]
"""Does one, returns its kind: an index of :attr:`Operations.kinds`. Raises sqlite3.Error, CheckFailed."""


@dataclass(slots=True)
class Operations:
    """What a client does."""

    kinds: tuple[str, ...]
    run: Operation
    written: Callable[[], int] = lambda: 0
    """Rows that this client was told are committed (of ``large``: transactions)."""


def kinds(settings: Settings) -> tuple[str, ...]:
    """The names of a workload's kinds of operations."""
    return {"mixed": ("read", "insert"), "lag": ("commit", "visible"), "catch-up": ("commit",)}.get(
        settings.workload, (settings.workload,)
    )


def operations(settings: Settings, connection: sqlite3.Connection, client: int) -> Operations:
    """The operations of client number ``client`` on a connection of its own."""
    content = Content(settings.seed, settings.row_size)
    match settings.workload:
        case "read":
            return Operations(kinds(settings), _read(settings, connection, content, client))
        case "scan":
            return Operations(kinds(settings), _scan(settings, connection, content))
        case "batch":
            return _batch(settings, connection, content, client)
        case "large":
            return _large(settings, connection, client)
        case "mixed":
            return _mixed(settings, connection, content, client)
        case _:
            run, written = _insert(settings, connection, content, client)
            return Operations(kinds(settings)[:1], run, written)


def _insert(
    settings: Settings, connection: sqlite3.Connection, content: Content, client: int
) -> tuple[Operation, Callable[[], int]]:
    execute, step = connection.cursor().execute, settings.clients
    first = number = settings.filled + client

    def insert() -> int:
        nonlocal number
        execute(_INSERT, (number, content(number)))
        number += step
        return 0

    return insert, lambda: (number - first) // step


def _batch(settings: Settings, connection: sqlite3.Connection, content: Content, client: int) -> Operations:
    cursor, step = connection.cursor(), settings.clients
    first = number = settings.filled + client
    size = settings.batch * step

    def batch() -> int:
        nonlocal number
        cursor.execute("BEGIN IMMEDIATE")
        cursor.executemany(_INSERT, ((each, content(each)) for each in range(number, number + size, step)))
        cursor.execute("COMMIT")
        number += size
        return 0

    return Operations(kinds(settings), batch, lambda: (number - first) // step)


def _keys(settings: Settings, client: int) -> Iterator[tuple[int]]:
    """Keys of filled rows, uniformly drawn, for ever; every client has its own sequence."""
    draw = random.Random(f"{settings.seed} {client}")
    return cycle([(draw.randrange(settings.rows) + 1,) for _ in range(_KEYS)])


def _read(settings: Settings, connection: sqlite3.Connection, content: Content, client: int) -> Operation:
    execute, keys = connection.cursor().execute, _keys(settings, client)

    def read() -> int:
        key = next(keys)
        row = execute("SELECT num, data FROM entry WHERE id=?", key).fetchone()
        if row != (key[0] - 1, content(key[0] - 1)):
            raise CheckFailed(f"row {key[0]} is not what was written")
        return 0

    return read


def _mixed(settings: Settings, connection: sqlite3.Connection, content: Content, client: int) -> Operations:
    read = _read(settings, connection, content, client)
    insert, written = _insert(settings, connection, content, client)
    draw = random.Random(f"mixed {settings.seed} {client}")
    turns = cycle([draw.random() * 100 < settings.reads for _ in range(_KEYS)])

    def mixed() -> int:
        if next(turns):
            return read()
        return insert() + 1

    return Operations(kinds(settings), mixed, written)


def _scan(settings: Settings, connection: sqlite3.Connection, content: Content) -> Operation:
    execute = connection.cursor().execute
    rows = settings.rows
    # The greatest content is found by reading every byte, also what lies on overflow pages.
    greatest, least = (extreme(map(content, range(rows))) for extreme in (max, min))
    expected = (rows, rows * (rows - 1) // 2, greatest, least)

    def scan() -> int:
        found = execute("SELECT count(*), sum(num), max(data), min(data) FROM entry").fetchone()
        if found != expected:
            raise CheckFailed("the table is not what was written")
        return 0

    return scan


def large_rows(settings: Settings) -> int:
    """Rows of one transaction of ``large``."""
    return max(1, round(settings.megabytes * 1e6 / LARGE_ROW))


def _large(settings: Settings, connection: sqlite3.Connection, client: int) -> Operations:
    cursor, content = connection.cursor(), Content(settings.seed, LARGE_ROW)
    rows, done = large_rows(settings), 0

    def large() -> int:
        nonlocal done
        first = (client * RING + done % RING) * rows
        cursor.execute("BEGIN IMMEDIATE")
        values = ((first + each, done, content(done + each)) for each in range(rows))
        cursor.executemany("REPLACE INTO entry(id, num, data) VALUES(?,?,?)", values)
        cursor.execute("COMMIT")
        done += 1
        return 0

    return Operations(kinds(settings), large, lambda: done)
