"""The replica's HALT locks, between a primary behind real HTTP and an fs process that the test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litefs.apply.lending import Lent
from litefs.cluster.lease import PrimaryInfo
from litefs.cluster.peer import PeerSettings
from litefs.errors import HaltRefused, LiteFSError
from litefs.halt import replica
from litefs.halt.replica import HaltLinks, ReplicaHalts
from litefs.link.messages import Halt, HaltEnd, HaltEnded, HaltSet, HaltUntil, Message
from litefs.server.view import HaltGrant
from litefs.store.database import Database
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.stream.memory import MemoryCatalog, MemorySource
from litefs.stream.protocols import Buffer, Identity
from litefs.types import START, Position
from tests.server.support import CLUSTER, FakeNode, serving

NAME, OTHER = "a.db", "b.db"


class Primary(FakeNode):
    """Grants every lock anew, and renews those in ``held``, which has the ids of those that were not given
    up."""

    def __init__(self) -> None:
        super().__init__(MemoryCatalog(MemorySource(NAME)))
        self.held: set[int] = set()

    async def halt(self, name: str, lock_id: int, peer: Identity | None, renew: bool) -> HaltGrant:
        if renew and lock_id not in self.held:
            raise HaltRefused(f"{name}: the HALT lock is not held under this id")
        self.held.add(lock_id)
        return HaltGrant(START, 2e9)

    async def unhalt(self, name: str, lock_id: int, peer: Identity | None) -> None:
        self.held.discard(lock_id)


class Replica:
    """A node's HALT, of which ``did`` tells in order what the applier and the fs process had to do."""

    def __init__(self, path: Path, url: str) -> None:
        data = DataDir(path)
        catalog = StoreCatalog(data)
        for name in (NAME, OTHER):
            directory = data.database_dir(name)
            directory.log.mkdir(parents=True)
            Database.open(directory).close()
            catalog.add(name)
        self.did: list[object] = []
        self.answers: Callable[[Message], Message | None] = self.answer
        self.lending = trio.Event()
        self.lend_now = trio.Event()
        self.lend_now.set()
        links = HaltLinks(
            lambda: PrimaryInfo("primary", url),
            lambda: Identity(2, CLUSTER, 1),
            self.post,
            lambda reason: self.did.append("restart"),
            lambda: self,
            PeerSettings(),
        )
        self.halts = ReplicaHalts(data, catalog, links)

    def answer(self, message: Message) -> Message | None:
        match message:
            case Halt():
                return HaltSet(message.name)
            case HaltEnd():
                return HaltEnded(message.name)
        return None

    def post(self, message: Message) -> None:
        self.did.append(type(message))
        if isinstance(answer := self.answers(message), HaltSet | HaltEnded):
            self.halts.message(answer)

    async def lend(self, name: str, echoed: Callable[[Position, Buffer], Awaitable[None]]) -> Lent:
        self.lending.set()
        await self.lend_now.wait()
        self.did.append("lend")
        return Lent(1, 2, 0, True)

    async def take_back(self, name: str) -> None:
        self.did.append("take back")


@asynccontextmanager
async def nodes(path: Path) -> AsyncIterator[tuple[Primary, Replica]]:
    primary = Primary()
    async with serving(primary) as url, trio.open_nursery() as nursery:
        node = Replica(path, url)
        nursery.start_soon(node.halts.run)
        yield primary, node
        nursery.cancel_scope.cancel()


def run(test: Callable[[Primary, Replica], Awaitable[None]], path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with nodes(path) as both:
                await test(*both)

    trio.run(main)


def test_a_lock_and_its_end(tmp_path: Path) -> None:
    async def test(primary: Primary, node: Replica) -> None:
        await node.halts.halt(NAME, 7, renew=False)
        assert primary.held == {7}
        await node.halts.unhalt(NAME, 7)
        assert primary.held == set()
        assert node.did == ["lend", Halt, HaltEnd, "take back"]

    run(test, tmp_path)


def test_a_lock_that_ends_while_it_begins_leaves_nothing_lent(tmp_path: Path) -> None:
    """The node is about to be promoted, say: the applier has to have its database back by then."""

    async def test(primary: Primary, node: Replica) -> None:
        node.lend_now = trio.Event()

        async def ask() -> None:
            with pytest.raises(HaltRefused):
                await node.halts.halt(NAME, 7, renew=False)

        async def void() -> None:
            await node.halts.void()
            assert node.did[-1] == "take back"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await node.lending.wait()
            nursery.start_soon(void)
            await trio.sleep(0.05)
            node.lend_now.set()
        while primary.held:  # it is told in its own time
            await trio.sleep(0.005)

    run(test, tmp_path)


def test_the_answer_to_the_beginning_does_not_count_as_that_to_the_end(tmp_path: Path) -> None:
    async def test(primary: Primary, node: Replica) -> None:
        node.answers = lambda message: None  # they come when the test says so

        async def ask() -> None:
            with pytest.raises(HaltRefused):
                await node.halts.halt(NAME, 7, renew=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while node.did[-1:] != [Halt]:
                await trio.sleep(0.005)
            nursery.start_soon(node.halts.void)
            await trio.sleep(0.05)
            node.halts.message(HaltSet(NAME))
            while node.did[-1:] != [HaltEnd]:
                await trio.sleep(0.005)
            await trio.sleep(0.05)
            assert "take back" not in node.did, "the fs process still writes the log"
            node.halts.message(HaltEnded(NAME))
        assert node.did[-1] == "take back"

    run(test, tmp_path)


def test_the_log_is_not_written_while_the_fs_process_may_do_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(primary: Primary, node: Replica) -> None:
        await node.halts.halt(NAME, 7, renew=False)
        monkeypatch.setattr(replica, "ANSWER_SECONDS", 0.05)
        node.answers = lambda message: None
        await node.halts.unhalt(NAME, 7)
        assert node.did == ["lend", Halt, HaltEnd, "restart"]
        assert primary.held == set()

    run(test, tmp_path)


def test_a_database_that_cannot_be_written_is_taken_back(tmp_path: Path) -> None:
    async def test(primary: Primary, node: Replica) -> None:
        node.answers = lambda message: (
            HaltSet(NAME, "why not") if isinstance(message, Halt) else HaltEnded(NAME)
        )
        with pytest.raises(LiteFSError, match="why not"):
            await node.halts.halt(NAME, 7, renew=False)
        assert node.did == ["lend", Halt, HaltEnd, "take back"]
        assert primary.held == set()

    run(test, tmp_path)


def test_a_lock_that_the_primary_does_not_know_any_more_ends(tmp_path: Path) -> None:
    """It was started anew, say: until the loan is over the stream's records of this database wait."""

    async def test(primary: Primary, node: Replica) -> None:
        await node.halts.halt(NAME, 7, renew=False)
        await node.halts.halt(NAME, 7, renew=True)
        primary.held.clear()
        with pytest.raises(HaltRefused):
            await node.halts.halt(NAME, 7, renew=True)
        assert node.did == ["lend", Halt, HaltUntil, HaltEnd, "take back"]

    run(test, tmp_path)


def test_the_fs_process_dies_while_a_lock_ends(tmp_path: Path) -> None:
    """Its successor, which is on its way, is not ended for what it did not answer."""

    async def test(primary: Primary, node: Replica) -> None:
        await node.halts.halt(NAME, 7, renew=False)
        node.answers = lambda message: None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.halts.unhalt, NAME, 7)
            while node.did[-1:] != [HaltEnd]:
                await trio.sleep(0.005)
            node.halts.unmounted()
        assert node.did == ["lend", Halt, HaltEnd]
        assert primary.held == set()

    run(test, tmp_path)


def test_locks_end_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the node does next, to follow another primary say, waits for them no longer than for one."""

    async def test(primary: Primary, node: Replica) -> None:
        for number, name in enumerate((NAME, OTHER), 1):
            await node.halts.halt(name, number, renew=False)
        monkeypatch.setattr(replica, "ANSWER_SECONDS", 2.0)
        node.answers = lambda message: None
        node.did.clear()
        with trio.fail_after(3.5):
            await node.halts.void()
        assert node.did == [HaltEnd, HaltEnd, "restart", "restart"]

    run(test, tmp_path)


def test_a_lock_that_nobody_renews_ends_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(primary: Primary, node: Replica) -> None:
        for number in range(1, 9):
            node.did.clear()
            await node.halts.halt(NAME, number, renew=False)
            while primary.held:
                await trio.sleep(0.005)
            assert node.did == ["lend", Halt, HaltEnd, "take back"]
        assert len(caplog.records) == 8

    monkeypatch.setattr(replica, "HALT_SECONDS", 0.2)
    with caplog.at_level("WARNING", "litefs.node"):
        run(test, tmp_path)
