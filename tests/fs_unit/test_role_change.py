"""A primary that gives its role up commits nothing more: no thread may be writing to a log then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import trio
import trio.testing

from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.role import RoleState
from litefs.fs.rolechange import RoleChanges
from litefs.link.messages import FOREVER, Fenced, Freeze, Frozen, Message, RoleSet, SetRole
from litefs.store.paths import DataDir
from litefs.types import Role


class Nobody:
    """A watcher that is told of nothing here."""

    def logged(self, name: str) -> None:
        raise AssertionError(name)

    unpublished = loose = logged


class TwoDatabases(Databases):
    """Two databases that no client has open."""

    def __init__(self, data: DataDir, role: RoleState) -> None:
        super().__init__(data, role, Nobody(), node_id=1)
        self.both = [FsDatabase(data.database_dir(name)) for name in ("a.db", "b.db")]

    def __iter__(self) -> Iterator[FsDatabase]:
        return iter(self.both)


def test_a_commit_that_begins_while_another_is_waited_for_is_waited_for_too(tmp_path: Path) -> None:
    told: list[Message] = []

    async def send(message: Message) -> None:
        told.append(message)

    async def main() -> None:
        role = RoleState()
        role.become(Role.PRIMARY, 1, FOREVER, None)
        databases = TwoDatabases(DataDir(tmp_path), role)
        first, second = databases.both
        async with trio.open_nursery() as nursery:
            second.begin_job()
            nursery.start_soon(RoleChanges(role, databases, send).become, SetRole(Role.REPLICA, 2, 0))
            await trio.testing.wait_all_tasks_blocked()
            assert role.must_wait(), "a commit could begin"
            first.begin_job()
            second.end_job()
            await trio.testing.wait_all_tasks_blocked()
            assert told == [], "the role changed under a commit"
            first.end_job()

    trio.run(main)
    assert told == [Fenced(2), RoleSet(2, Role.REPLICA)]


def test_a_freeze_that_was_given_up_is_forgotten(tmp_path: Path) -> None:
    """Handoffs that fail because a long commit is under way leave no freeze behind, begun or not."""
    told: list[Message] = []

    async def send(message: Message) -> None:
        told.append(message)

    async def main() -> None:
        role = RoleState()
        role.become(Role.PRIMARY, 1, FOREVER, None)
        databases = TwoDatabases(DataDir(tmp_path), role)
        changes = RoleChanges(role, databases, send)
        async with trio.open_nursery() as nursery:
            await changes.request(Freeze(1))
            changes.thaw()
            databases.both[0].begin_job()
            nursery.start_soon(changes.run)
            await trio.testing.wait_all_tasks_blocked()
            assert not role.must_wait(), "it had not begun"
            for number in (2, 3):
                await changes.request(Freeze(number))
                await trio.testing.wait_all_tasks_blocked()
                assert role.must_wait()
                changes.thaw()
                assert not role.must_wait()
            databases.both[0].end_job()
            await trio.testing.wait_all_tasks_blocked()
            assert not role.must_wait(), "nobody would thaw it any more"
            assert told == [], "nobody waits for these"
            role.check()
            await changes.request(Freeze(4))
            await trio.testing.wait_all_tasks_blocked()
            assert told == [Frozen(4)]
            assert role.must_wait()
            nursery.cancel_scope.cancel()

    trio.run(main)
