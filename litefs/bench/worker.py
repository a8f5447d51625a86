"""What runs in the processes of a bench: clients that load a database, and those that watch a replica.

Each has a pipe to the bench. It answers :class:`Ready` when it can begin, then every task with a message; it
ends when the pipe does. SIGUSR1 ends a round early.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from litefs import client as litefs_client
from litefs.bench.database import connect
from litefs.bench.meter import Meter, Task
from litefs.bench.settings import Settings
from litefs.bench.workloads import operations
from litefs.errors import LiteFSError

STOP = signal.SIGUSR1

POLL_SECONDS = 0.00025
"""Between two looks at a replica."""


@dataclass(frozen=True, slots=True)
class Ready:
    """It can begin."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many operations of the round are done."""

    operations: int


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot go on. ``check``: what it has read is not what was written."""

    message: str
    check: bool = False


@dataclass(frozen=True, slots=True)
class Watch:
    """Note what comes, from now on until :class:`Until`."""


@dataclass(frozen=True, slots=True)
class Until:
    """End a watch when the value is at least ``value``, or at a time in ns of CLOCK_MONOTONIC, or at STOP."""

    value: int
    deadline: int


def load(pipe: Connection, path: Path, settings: Settings, client: int) -> None:
    """A client: answers each :class:`Task` with a Measured, and with Progress meanwhile."""
    try:
        connection = connect(path, settings)
        meter = Meter(
            operations(settings, connection, client),
            lambda done: pipe.send(Progress(done)),
            rollback=connection.rollback,
        )
        signal.signal(STOP, lambda *_: meter.stop())
        pipe.send(Ready())
        with contextlib.suppress(EOFError):
            while True:
                task: Task = pipe.recv()
                pipe.send(meter.run(task))
        connection.close()
    except (LiteFSError, sqlite3.Error) as error:
        pipe.send(Failed(str(error), check=isinstance(error, LiteFSError)))


def watch_rows(pipe: Connection, path: Path, settings: Settings) -> None:
    """A reader on a replica: answers each watch with ``[(ns, newest num), ...]``, whenever that grew."""
    try:
        connection = _open_soon(path, settings)
        cursor = connection.cursor()

        def newest() -> int:
            # By the key: a maximum of another column would read the whole table.
            row = cursor.execute("SELECT num FROM entry ORDER BY id DESC LIMIT 1").fetchone()
            return -1 if row is None else int(row[0])

        _watch(pipe, newest)
    except sqlite3.Error as error:
        pipe.send(Failed(f"{path}: {error}"))


def watch_position(pipe: Connection, path: Path) -> None:
    """Looks at ``NAME-pos`` of a replica: answers each watch with ``[(ns, TXID), ...]``, whenever that grew.

    While the replica does not answer, it stays where it was.
    """
    last = 0

    def txid() -> int:
        nonlocal last
        with contextlib.suppress(LiteFSError, OSError, ValueError):
            last = litefs_client.position(path).txid
        return last

    _watch(pipe, txid)


def _open_soon(path: Path, settings: Settings) -> sqlite3.Connection:
    """A connection as soon as the replica has the table. Raises sqlite3.Error if that takes a minute."""
    deadline = time.monotonic() + 60
    while True:
        connection = None
        try:
            connection = connect(path, settings, read_only=True)
            connection.execute("SELECT num FROM entry LIMIT 1").fetchone()
            return connection
        except sqlite3.Error:
            if connection is not None:
                connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _watch(pipe: Connection, look: Callable[[], int]) -> None:
    stopped: list[int] = []
    signal.signal(STOP, lambda number, _: stopped.append(number))
    pipe.send(Ready())
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        seen: list[tuple[int, int]] = [(time.monotonic_ns(), look())]
        until: Until | None = None
        pipe.send(Ready())
        while until is None or not (
            stopped or seen[-1][1] >= until.value or time.monotonic_ns() >= until.deadline
        ):
            value = look()
            if value > seen[-1][1]:
                seen.append((time.monotonic_ns(), value))
            if until is None and pipe.poll():
                try:
                    until = pipe.recv()
                except EOFError:
                    return
            time.sleep(POLL_SECONDS)
        pipe.send(seen)
