"""Commits that are complete in the WAL but were never announced, and what may follow them.

Every cause, by ``clients/failing.py``, meets every sequel; those that leave their client alive do so twice:
the sequel is its own, which believes that it rolled back, or another client's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.support.processes import Client, ClientError

MakeClient = Callable[..., Client]
CASES = (
    ("kill", "other"),
    ("fsync", "same"),
    ("fsync", "other"),
    ("padding", "same"),
    ("padding", "other"),
    ("shm", "same"),
    ("shm", "other"),
)
"""(cause, whose sequel)."""
ROWS = "SELECT id, substr(a, 1, 6), length(a) FROM t ORDER BY id"
_BIG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4500)"
REFUSALS = ("IOError", "BusyError", "OperationalError")
"""What a client may be told while the commit is not announced."""
PATIENCE = 15.0
"""Seconds until a sequel must have worked."""


class Refused(Exception):
    """A sequel that did not work; it may be tried again."""


@dataclass(slots=True)
class Scene:
    """A database after the failure. ``actor`` does what follows; ``holder`` keeps the wal-index in use."""

    path: str
    cause: str
    actor: Client
    holder: Client
    survivor: Client | None
    """The client that was told of an error, if it lives."""

    def rows(self) -> list[list[object]]:
        """What a fresh connection sees."""
        self.holder.call("open", path=self.path)
        try:
            assert self.holder.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
            rows: list[list[object]] = self.holder.call("execute", statement=ROWS)
            return rows
        finally:
            self.holder.call("close")


@contextmanager
def unannounced(make_client: MakeClient, path: str, cause: str, who: str) -> Iterator[Scene]:
    """A WAL database with the row "before" and, unannounced, one or 4500 rows "lost"."""
    client, holder = make_client("failing"), make_client("sql", "sqlite3")
    big = cause == "shm"
    client.call("open", path=path, psow=cause != "padding")
    statements = [
        f"PRAGMA page_size={512 if big else 4096}",
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",
        "PRAGMA cache_size=-100000",
        "PRAGMA wal_autocheckpoint=0",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a)",
        "INSERT INTO t(a) VALUES('before')",
    ]
    client.call("script", statements=statements)
    holder.call("open", path=path)
    assert holder.call("execute", statement="SELECT a FROM t") == [["before"]]
    client.call("break_next", cause=cause)
    values = f"{_BIG} SELECT 'lost' || hex(zeroblob(225)) FROM n" if big else "VALUES('lost')"
    with pytest.raises(ClientError) as raised:
        client.call("execute", 30, statement=f"INSERT INTO t(a) {values}")
    assert (raised.value.kind == "Ended") == (cause == "kill")
    survivor = None if cause == "kill" else client
    assert survivor is None or survivor.call("broken")
    actor = client if who == "same" else make_client("sql", "apsw")
    if who == "other":
        actor.call("open", path=path)
    yield Scene(path, cause, actor, holder, survivor)
    for each in {client, holder, actor}:
        each.close()


def next_writer(scene: Scene) -> None:
    """It writes where the unannounced frames lie, unless it sees them."""
    scene.actor.call("execute", statement="INSERT INTO t(a) VALUES('next')")


def restart(scene: Scene) -> None:
    """All that was announced is checkpointed; the next writer begins the WAL anew, from its first frame."""
    _checkpoint(scene, "RESTART")
    next_writer(scene)


def truncate(scene: Scene) -> None:
    """The same, and the file is cut to nothing."""
    _checkpoint(scene, "TRUNCATE")


def last_close(scene: Scene) -> None:
    """The last connection checkpoints and removes WAL and wal-index."""
    for client in (scene.holder, scene.survivor, scene.actor):
        if client is not None:
            client.call("close")


def write_again(scene: Scene) -> None:
    """The client that was told of an error goes on with what it believes."""
    assert scene.survivor is not None
    scene.survivor.call("execute", statement="INSERT INTO t(a) VALUES('last')")


SEQUELS = (next_writer, restart, truncate, last_close)


def _checkpoint(scene: Scene, mode: str) -> None:
    ((busy, _, _),) = scene.actor.call("execute", statement=f"PRAGMA wal_checkpoint({mode})")
    if busy:
        raise Refused(f"{mode}: busy")


def attempt(sequel: Callable[[Scene], None], scene: Scene) -> bool:
    """Whether it worked; a client that is told of an error lives on."""
    try:
        sequel(scene)
    except Refused:
        return False
    except ClientError as error:
        if error.kind not in REFUSALS:
            raise
        return False
    return True


def insist(sequel: Callable[[Scene], None], scene: Scene) -> None:
    """Try until it works."""
    deadline = time.monotonic() + PATIENCE
    while not attempt(sequel, scene):
        assert time.monotonic() < deadline, f"{scene.cause}: {sequel.__name__} does not work"
        time.sleep(0.05)


def expected(scene: Scene, *further: str) -> list[list[object]]:
    """The rows of which nothing may be lost: "before", "lost", and those written afterwards."""
    lost = [("lost00", 454)] * 4500 if scene.cause == "shm" else [("lost", 4)]
    values = [("before", 6), *lost, *((text, len(text)) for text in further)]
    return [[number, *value] for number, value in enumerate(values, 1)]
