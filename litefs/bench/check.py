"""What the database must hold when all is over: whatever was acknowledged, and nothing else."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from litefs.bench.content import Content
from litefs.bench.database import connect, explained
from litefs.bench.settings import CheckFailed, Settings
from litefs.bench.workloads import LARGE_ROW, RING, large_rows


def check(path: Path, settings: Settings, written: Sequence[int], failed: bool) -> None:
    """Hold the database to what was acknowledged: ``integrity_check``, every row that was filled or written.

    ``written``: of each client, see ``Operations.written``. ``failed``: clients ended with an error, so that
    one more transaction of each may be there. Raises CheckFailed, BenchError.
    """
    with explained(path), contextlib.closing(connect(path, settings, read_only=True)) as connection:
        found = connection.execute("PRAGMA integrity_check(5)").fetchall()
        if found != [("ok",)]:
            raise CheckFailed(f"{path}: integrity_check: {'; '.join(row[0] for row in found)}")
        if settings.workload == "large":
            _check_large(path, settings, connection, written, failed)
        else:
            _check_rows(path, settings, connection, written, failed)


def _check_rows(
    path: Path, settings: Settings, connection: sqlite3.Connection, written: Sequence[int], failed: bool
) -> None:
    """Every client's numbers without a gap, each with its content."""
    content, filled, clients = Content(settings.seed, settings.row_size), settings.filled, settings.clients
    count = 0
    following = [filled + client for client in range(clients)]
    for number, data in connection.execute("SELECT num, data FROM entry ORDER BY id"):
        if count < filled:
            expected, count = count, count + 1
        else:
            client = (number - filled) % clients
            expected = following[client]
            following[client] += clients
        if number != expected:
            raise CheckFailed(f"{path}: row {number} where {expected} was written")
        if data != content(number):
            raise CheckFailed(f"{path}: row {number} is not what was written")
    if count < filled:
        raise CheckFailed(f"{path}: {count} of {filled} rows that were there at the beginning")
    most = (settings.batch if settings.workload == "batch" else 1) if failed else 0
    for client, acknowledged in enumerate(written):
        rows = (following[client] - filled - client) // clients
        if not acknowledged <= rows <= acknowledged + most:
            raise CheckFailed(f"{path}: {rows} rows of client {client}, acknowledged were {acknowledged}")


def _check_large(
    path: Path, settings: Settings, connection: sqlite3.Connection, written: Sequence[int], failed: bool
) -> None:
    """Each place of each client's ring has one transaction whole, the last ones that were acknowledged."""
    rows, content = large_rows(settings), Content(settings.seed, LARGE_ROW)
    found: dict[int, set[int]] = {}
    count = 0
    for identity, number, data in connection.execute("SELECT id, num, data FROM entry"):
        found.setdefault(identity // rows, set()).add(number)
        count += 1
        if data != content(number + identity % rows):
            raise CheckFailed(f"{path}: row {identity} is not what was written")
    for client, acknowledged in enumerate(written):
        places = {place: found.pop(client * RING + place, set()) for place in range(RING)}
        allowed = [acknowledged, acknowledged + 1] if failed else [acknowledged]
        if places not in [_ring(done) for done in allowed]:
            raise CheckFailed(
                f"{path}: client {client} wrote {acknowledged} transactions; there are {places}"
            )
        count -= rows * sum(1 for numbers in places.values() if numbers)
    if found or count:
        raise CheckFailed(f"{path}: {count} rows too many or too few")


def _ring(done: int) -> dict[int, set[int]]:
    """Which transaction's rows each place has after ``done`` of them."""
    return {
        place: {last} if (last := done - 1 - (done - 1 - place) % RING) >= 0 and done else set()
        for place in range(RING)
    }
