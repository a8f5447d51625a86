"""A primary that gives its role up commits nothing more: no thread may be writing to a log then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import trio
import trio.testing

from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.role import RoleState
from litefs.fs.rolechange import RoleChanges
from litefs.link.messages import FOREVER, Fenced, Message, RoleSet, SetRole
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
