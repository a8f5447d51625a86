"""Reads while a role changes, by who was told that the node is where another one was."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.cluster.test_roles import COUNT, INSERT, Pair, create, pair, sql
from tests.support.clients.failing import LATE_SECONDS
from tests.support.node import wait_equal
from tests.support.processes import Client, ClientError, wait_until

__all__ = ["pair"]

CHANGES = 4


def test_who_opens_the_database_for_each_read_reads_it(request: pytest.FixtureRequest) -> None:
    """Who is alone empties the wal-index when it opens it, also while a primary becomes a replica."""
    two: Pair = request.getfixturevalue("pair")
    create(two, "WAL")
    wait_equal(two.primary, two.replica, "a.db")
    with contextlib.ExitStack() as stack:
        openers = [
            stack.enter_context(Client("opener", node.path("a.db"), COUNT))
            for node in (two.primary, two.replica)
        ]
        for _ in range(CHANGES):
            two.swap()
            with sql(two.primary) as writer:
                writer.call("execute", statement=INSERT)
            wait_equal(two.primary, two.replica, "a.db")
        answers = [opener.call("stop", 30) for opener in openers]
    for answer in answers:
        assert answer["errors"] == []
        assert answer["reads"] > CHANGES
    two.check(1 + CHANGES)


def test_who_waited_for_a_commit_that_nobody_announced_sees_it(request: pytest.FixtureRequest) -> None:
    """The role ends between a commit's last frame and its announcement in the wal-index."""
    two: Pair = request.getfixturevalue("pair")
    create(two, "WAL")
    node = two.primary
    with Client("failing") as writer, Client("session") as waiter:
        writer.call("open", path=node.path("a.db"))
        writer.call("execute", statement="PRAGMA synchronous=FULL")
        before = node.position("a.db")
        assert before is not None
        writer.call("break_next", cause="late")
        writer.send("execute", statement=INSERT)
        wait_until(lambda: node.position("a.db") != before, 5, "the commit is in the log", 0.005)
        begun = time.monotonic()
        node.steer("demote")
        assert time.monotonic() - begun < LATE_SECONDS, "the commit was announced before the wait began"
        waiter.call("wait", path=node.path("a.db"), txid=before.txid + 1, seconds=8)
        with sql(node, readonly=True) as reader:
            assert reader.call("execute", statement=COUNT) == [[2]]
        with pytest.raises(ClientError, match="disk I/O error"):
            writer.answer()
