"""HALT in the fs process: what is not answered in time is never mended by what is said later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from litefs.errors import CommitRefused, OutcomeUnknown
from litefs.fs import halting
from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.halting import Halts
from litefs.fs.role import RoleState
from litefs.link.messages import (
    FOREVER,
    Accepted,
    Halt,
    HaltEnd,
    HaltEnded,
    HaltSet,
    HaltUntil,
    Logged,
    Message,
)
from litefs.store.paths import DataDir
from litefs.types import Position, Role

NAME = "a.db"


class Nobody:
    """A watcher that is told of nothing here."""

    def logged(self, name: str) -> None:
        raise AssertionError(name)

    unpublished = loose = logged


class OneDatabase(Databases):
    """One database of a replica, which no client has open."""

    def __init__(self, data: DataDir, role: RoleState) -> None:
        super().__init__(data, role, Nobody(), node_id=1)
        directory = data.database_dir(NAME)
        directory.log.mkdir(parents=True)
        directory.wal.touch()
        self.only = FsDatabase(directory)

    def get(self, name: str) -> FsDatabase | None:
        return self.only if name == NAME else None


class Halted:
    """A database under HALT; ``told`` is what the node process gets to hear."""

    def __init__(self, path: Path) -> None:
        self.told: list[Message] = []
        role = RoleState()
        role.become(Role.REPLICA, 1, 0, None)
        databases = OneDatabase(DataDir(path), role)
        self.database = databases.only
        self.halts = Halts(databases, role, Nobody(), 1, self.told.append)

    async def begin(self) -> None:
        await self.halts.handle(Halt(NAME, 0, 0, 0, True, FOREVER))
        assert self.told == [HaltSet(NAME)]
        self.told.clear()

    async def forward(self, txid: int) -> None:
        """As a commit's thread does. Raises CommitRefused."""
        capture = self.database.capture
        assert capture is not None
        assert capture.db.forward is not None
        await trio.to_thread.run_sync(capture.db.forward, Position(txid, 1 << 63), (b"record",))


async def gone(halts: Halts) -> None:
    """The node process dies."""
    halts.abandon()


def test_a_late_answer_is_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node process stands still for longer than a commit waits, the lock is renewed, and then it says
    that the primary has the first transaction: the second one must not take that for itself."""
    monkeypatch.setattr(halting, "FORWARD_SECONDS", 0.1)

    async def answer(halted: Halted, first: int) -> None:
        while len(halted.told) < first:
            await trio.sleep(0.005)
        await halted.halts.handle(Accepted(NAME))

    async def main() -> None:
        halted = Halted(tmp_path)
        await halted.begin()
        with pytest.raises(CommitRefused, match="outcome is not known"):
            await halted.forward(1)
        assert not halted.database.dir.staged.exists()
        await halted.halts.handle(HaltUntil(NAME, FOREVER))
        capture = halted.database.capture
        assert capture is not None
        with pytest.raises(CommitRefused):
            capture.gate.check()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, halted, 2)
            with pytest.raises(CommitRefused, match="not held any more"):
                await halted.forward(1)
            nursery.cancel_scope.cancel()
        await halted.halts.handle(HaltEnd(NAME))
        assert halted.told[-1] == HaltEnded(NAME)
        assert halted.database.capture is None

    _bounded(main)


def test_a_lock_that_ended_admits_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        halted = Halted(tmp_path)
        await halted.begin()
        capture = halted.database.capture
        assert capture is not None
        capture.gate.check()
        await halted.halts.handle(HaltEnd(NAME))
        with pytest.raises(CommitRefused):
            capture.gate.check()

    _bounded(main)


@pytest.mark.parametrize("says", [lambda halts: halts.handle(Accepted(NAME, "too few replicas")), gone])
def test_what_is_refused_while_it_is_logged_here_is_not_confirmed(
    tmp_path: Path, says: Callable[[Halts], Awaitable[None]]
) -> None:
    """The primary logged it, so it is logged here; its client is told what the primary's would be, though
    that was heard before the append was done."""

    async def main() -> None:
        halted = Halted(tmp_path)
        await halted.begin()
        database = halted.database

        async def log() -> None:
            while not halted.told:
                await trio.sleep(0.005)
            database.dir.echoed.write_bytes(b"record")
            await halted.halts.handle(Logged(NAME, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(log)
            await halted.forward(1)
        await says(halted.halts)
        assert database.owes_answer
        with pytest.raises(OutcomeUnknown):
            await database.answerable()
        assert not database.owes_answer, "each client is told of its own transaction"

    _bounded(main)


def _bounded(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            await test()

    trio.run(main)
