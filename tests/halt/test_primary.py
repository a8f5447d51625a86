"""The primary's HALT locks, over a write lock that is taken when the test says so."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from litefs.errors import HaltRefused
from litefs.halt import primary
from litefs.halt.primary import HALT_SECONDS, PrimaryHalts
from litefs.store.paths import DataDir
from litefs.stream.protocols import Identity
from litefs.types import ZERO, Position

NAME = "a.db"
OWN, REPLICA = Identity(1, term=5), Identity(2, term=5)


class FakeHold:
    """A write lock: ``granted`` lets it be taken, ``applied`` lets a transaction go through."""

    held: list[FakeHold]
    granted: threading.Event
    applied: threading.Event
    position = ZERO

    def __init__(self, path: Path, sums: Path, timeout: float) -> None:
        assert self.granted.wait(10)
        self.held.append(self)

    def apply(self, body: object) -> Position:
        assert self.applied.wait(10)
        return ZERO

    def close(self) -> None:
        self.held.remove(self)


@pytest.fixture(autouse=True)
def hold(monkeypatch: pytest.MonkeyPatch) -> type[FakeHold]:
    FakeHold.held, FakeHold.granted, FakeHold.applied = [], threading.Event(), threading.Event()
    monkeypatch.setattr(primary, "WriteHold", FakeHold)
    return FakeHold


def run(test: Callable[[PrimaryHalts], Awaitable[None]], path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await test(PrimaryHalts(DataDir(path), path, lambda: OWN))

    trio.run(main)


async def pieces(*some: bytes) -> AsyncIterator[bytes]:
    for one in some:
        yield one


def test_a_lock_that_is_had_after_the_role_changed_is_none(hold: type[FakeHold], tmp_path: Path) -> None:
    """Else it would keep the next primary's transactions from this node for as long as it lasts."""

    async def test(halts: PrimaryHalts) -> None:
        async def ask() -> None:
            with pytest.raises(HaltRefused):
                await halts.halt(NAME, 7, REPLICA, renew=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await halts.void()
            hold.granted.set()
        assert hold.held == []

    run(test, tmp_path)


def test_a_lock_that_nobody_waits_for_any_more_is_given_up(hold: type[FakeHold], tmp_path: Path) -> None:
    async def test(halts: PrimaryHalts) -> None:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await halts.halt(NAME, 7, REPLICA, renew=False)

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
            hold.granted.set()
        assert hold.held == []
        await halts.halt(NAME, 8, REPLICA, renew=False)  # it can be had by others

    run(test, tmp_path)


def test_only_the_holder_has_room_taken_up(hold: type[FakeHold], tmp_path: Path) -> None:
    hold.granted.set()
    taken: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        taken.append(b"x")
        yield b"x"

    async def test(halts: PrimaryHalts) -> None:
        await halts.halt(NAME, 7, REPLICA, renew=False)
        for lock_id, peer in ((8, REPLICA), (7, Identity(3, term=5)), (7, Identity(2, term=4))):
            with pytest.raises(HaltRefused):
                await halts.forward(NAME, lock_id, peer, body(), 1 << 34)
        assert not taken
        hold.applied.set()
        assert await halts.forward(NAME, 7, REPLICA, body(), 1) == ZERO

    run(test, tmp_path)


def test_a_renewal_during_a_long_commit_counts(hold: type[FakeHold], tmp_path: Path) -> None:
    """The commit outlasts the lock as it was; by then the holder was told that it has it for longer."""
    hold.granted.set()

    async def main() -> None:
        halts = PrimaryHalts(DataDir(tmp_path), tmp_path, lambda: OWN)
        done = trio.Event()

        async def commit() -> None:
            await halts.forward(NAME, 7, REPLICA, pieces(b"x"), 1)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(halts.run)
            await halts.halt(NAME, 7, REPLICA, renew=False)
            nursery.start_soon(commit)
            await trio.testing.wait_all_tasks_blocked(0.05)
            clock.jump(HALT_SECONDS + 1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await halts.halt(NAME, 7, REPLICA, renew=True)
            hold.applied.set()
            await done.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(hold.held) == 1
            clock.jump(HALT_SECONDS + 1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert hold.held == []
            nursery.cancel_scope.cancel()

    clock = trio.testing.MockClock()
    trio.run(main, clock=clock)
