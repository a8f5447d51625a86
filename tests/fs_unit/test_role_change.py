"""A change of role takes the logs from the fs process: no thread may be writing to one then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import trio
import trio.testing

from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.main import FsProcess
from litefs.fs.operations import Operations
from litefs.fs.role import RoleState
from litefs.link.channel import Channel, Wake, socketpair
from litefs.link.messages import RoleSet, SetRole, Start
from litefs.store.paths import DataDir
from litefs.types import Role


class TwoDatabases(Databases):
    """Two databases; notes which were busy when their logs were let go."""

    def __init__(self, data: DataDir, process: FsProcess) -> None:
        super().__init__(data, RoleState(), process, node_id=1)
        self.both = [FsDatabase(data.database_dir(name)) for name in ("a.db", "b.db")]
        self.cut_off: list[str] | None = None

    def __iter__(self) -> Iterator[FsDatabase]:
        return iter(self.both)

    def set_replica(self) -> None:
        self.cut_off = [db.name for db in self.both if db.busy]


def test_a_commit_that_begins_while_another_is_waited_for_is_waited_for_too(tmp_path: Path) -> None:
    async def main() -> None:
        ours, theirs = socketpair()
        data = DataDir(tmp_path)
        process = FsProcess(Channel(ours), Wake(), Start(str(tmp_path), str(tmp_path), node_id=1))
        databases = TwoDatabases(data, process)
        operations = Operations.__new__(Operations)  # a role change asks nothing of it
        first, second = databases.both
        async with trio.open_nursery() as nursery:
            second.begin_job()
            nursery.start_soon(process._handle, SetRole(Role.REPLICA, 2, 0), databases, operations)
            await trio.testing.wait_all_tasks_blocked()
            first.begin_job()
            second.end_job()
            await trio.testing.wait_all_tasks_blocked()
            assert databases.cut_off is None, "the role changed under a commit"
            first.end_job()
            with trio.fail_after(5):
                message = await Channel(theirs).receive()
        assert databases.cut_off == []
        assert isinstance(message, RoleSet)

    trio.run(main)
