"""The primary of a static lease loses its power, and with it commits that it answered and streamed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.node import Node, pages_equal, wait_equal
from tests.support.power import lose_power, note_other_boot
from tests.support.processes import Client

MakeNode = Callable[..., Node]
MakeClient = Callable[..., Client]

NAMES = ("app.db", "sub/other.db")
LOST = 20
INSERT = "INSERT INTO t(a) VALUES(randomblob(2000))"
WAITS = "waiting"


class Application:
    """A connection to one database that stays open, with SQLite's usual settings for WAL."""

    def __init__(self, make_client: MakeClient, node: Node, name: str) -> None:
        Path(node.path(name)).parent.mkdir(exist_ok=True)
        self._client = make_client("sql", "sqlite3")
        self._client.call("open", path=node.path(name))
        self._run("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=0")
        self._run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a)")

    def _run(self, *statements: str) -> Any:
        return [self._client.call("execute", statement=statement) for statement in statements][-1]

    def insert(self, count: int) -> None:
        self._client.call("script", statements=[INSERT] * count)

    def sync(self) -> None:
        """Make what was committed durable, as each checkpoint does."""
        self._run("PRAGMA wal_checkpoint")

    def count(self) -> int:
        rows: int = self._run("SELECT count(*) FROM t")[0][0]
        return rows


class Pair:
    """A primary and its replica, both running. ``timeout``: how long the primary waits for it at a start."""

    def __init__(self, make_node: MakeNode, make_client: MakeClient, timeout: float) -> None:
        self._make_client = make_client
        self.primary = make_node("primary")
        lease = {"type": "static", "candidate": True, "take-back-timeout": f"{timeout}s"}
        self.primary.configure("lease", {**lease, "hostname": "primary", "advertise-url": self.primary.url})
        self.primary.start()
        self.replica = make_node("replica", primary=self.primary).start()

    def open(self, name: str) -> Application:
        return Application(self._make_client, self.primary, name)

    def lose(self, *names: str) -> None:
        """The primary's machine goes down; LOST commits to each database are on the replica only."""
        applications = [self.open(name) for name in names]
        for application in applications:
            application.insert(5)
            application.sync()
            application.insert(LOST)
        for name in names:
            wait_equal(self.primary, self.replica, name)
        assert lose_power(self.primary, *names) == dict.fromkeys(names, LOST)

    def kept(self) -> list[str]:
        """What the replica set aside."""
        return [path.name for path in (self.replica.data / "lost").glob("*")]

    def check(self, name: str, rows: int) -> None:
        """Both have as many rows, and the next commits."""
        application = self.open(name)
        assert application.count() == rows
        application.insert(3)
        wait_equal(self.primary, self.replica, name)
        pages_equal(self.primary, self.replica, name)


def test_what_a_power_failure_took_comes_back_from_the_replica(
    make_node: MakeNode, make_client: MakeClient
) -> None:
    pair = Pair(make_node, make_client, 2)
    pair.lose(*NAMES)
    began = time.monotonic()
    pair.primary.start()
    print(f"start with {LOST} commits of {len(NAMES)} databases taken back: {time.monotonic() - began:.1f} s")
    for name in NAMES:
        assert f"{name}: took back {LOST} lost transactions" in pair.primary.log_tail(200)
        pair.check(name, 5 + LOST)
    assert not pair.kept()

    pair.primary.kill("both")  # the machine lives, and with it what its page cache holds
    pair.primary.start()
    pair.check(NAMES[0], 5 + LOST + 3)
    assert pair.primary.stop() == 0
    note_other_boot(pair.primary)
    pair.primary.start()  # after a clean stop
    pair.check(NAMES[0], 5 + LOST + 6)
    assert pair.primary.log_tail(1000).count(WAITS) == 1


def test_a_primary_goes_on_without_replicas_and_takes_no_other_history(
    make_node: MakeNode, make_client: MakeClient
) -> None:
    pair = Pair(make_node, make_client, 4)
    pair.lose("app.db")
    pair.replica.kill("both")
    began = time.monotonic()
    pair.primary.start()
    application = pair.open("app.db")
    application.insert(2)
    assert 4 <= time.monotonic() - began < 13
    assert application.count() == 7

    application.sync()
    pair.primary.kill("both")  # goes down again before the two have met
    note_other_boot(pair.primary)
    pair.replica.launch()
    pair.primary.start()
    pair.replica.wait_ready()
    pair.check("app.db", 7)
    assert pair.primary.log_tail(1000).count(WAITS) == 2
    assert "which is not in our log" in pair.replica.log_tail(1000), "the replica was not asked"
    assert "took back" not in pair.primary.log_tail(1000)
    assert any("diverged" in name for name in pair.kept()), pair.kept()
