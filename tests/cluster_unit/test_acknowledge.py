"""A replica's acknowledgements over a real server: what is told, how often, and over which connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import trio
import trio.testing

from litefs.cluster.acknowledge import LAZY_SECONDS, Acknowledger
from litefs.cluster.follow import Callbacks, follow
from litefs.cluster.replicas import Replicas
from litefs.link.messages import Replication
from litefs.link.rules import SyncRules
from litefs.stream.acks import Ack, AckAnswer
from litefs.stream.memory import MemoryCatalog, MemorySink, MemorySource
from litefs.stream.protocols import Identity
from litefs.types import ZERO, Position
from tests.server.support import CLUSTER, FakeNode, serving

REPLICA = Identity(0xB2, CLUSTER, 1)


class Holdings(MemorySink):
    """A sink in memory, whose log is durable only where it was asked to be."""

    def __init__(self) -> None:
        super().__init__()
        self.sync_at_once: Callable[[str], bool] = lambda name: False
        self.durable: dict[str, Position] = {}
        self.syncs = 0

    def held(self, name: str) -> tuple[Position, Position] | None:
        position = self.positions().get(name)
        return None if position is None else (position, self.durable.get(name, ZERO))

    async def sync_log(self, name: str) -> None:
        self.syncs += 1
        self.durable[name] = self.positions()[name]


class Pair:
    """A primary with one database, and a replica that follows it."""

    def __init__(self, rules: SyncRules) -> None:
        self.source = MemorySource("a")
        self.source.commit({1: bytes(512)})
        self.catalog = MemoryCatalog(self.source)
        self.node = FakeNode(self.catalog)
        self.told: list[Replication] = []
        self.node.replicas = Replicas(self.catalog, rules, lambda: self.node.identity, self.told.append)
        self.node.replicas.begin()
        self.holdings = Holdings()

    async def follow(self, url: str) -> None:
        async def adopt(cluster_id: str) -> None:
            raise AssertionError("it has a cluster id")

        observe = partial(Acknowledger, identity=lambda: REPLICA, holdings=self.holdings, candidate=True)
        await follow(url, self.holdings, lambda: REPLICA, Callbacks(adopt), observe=observe)

    def commit(self) -> Position:
        position = self.source.commit({1: bytes(512)})
        self.catalog.notify()
        return position

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await trio.sleep(0.005)


def connections(url: str) -> int:
    """TCP connections that the server at ``url`` has (proc(5), /proc/net/tcp)."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    with open("/proc/self/net/tcp", encoding="ascii") as file:
        fields = [line.split() for line in file]
    return sum(one[1].endswith(port) and one[3] == "01" for one in fields)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(30):
            await test()

    trio.run(bounded)


def test_a_member_syncs_and_acknowledges_each_commit_at_once() -> None:
    async def main() -> None:
        pair = Pair(SyncRules(1))
        async with serving(pair.node) as url, trio.open_nursery() as nursery:
            nursery.start_soon(pair.follow, url)
            await pair.until(lambda: bool(pair.told) and pair.told[-1].counted == 1)
            assert pair.holdings.sync_at_once("a")
            begun = trio.current_time()
            for _ in range(20):
                at = pair.commit()
                await pair.until(lambda at=at: pair.told[-1].released.get("a") == at.txid)  # type: ignore[misc]
                assert pair.holdings.durable["a"] == at
            assert trio.current_time() - begun < 20 * LAZY_SECONDS
            assert connections(url) == 1
            nursery.cancel_scope.cancel()

    run(main)


class Ear:
    """A primary that keeps what it is told."""

    def __init__(self) -> None:
        self.acks: list[Ack] = []

    async def acknowledge(self, identity: Identity, ack: Ack) -> AckAnswer:
        self.acks.append(ack)
        return AckAnswer(SyncRules(1))


def test_only_what_came_in_this_stream_is_told_as_its_history() -> None:
    async def main() -> None:
        ear, holdings = Ear(), Holdings()
        at = Position(7, 1 << 63 | 7)
        holdings.durable["a"] = at
        holdings.positions = lambda: {"a": at}  # type: ignore[method-assign]
        acknowledger = Acknowledger(cast(Any, ear), lambda: REPLICA, holdings, candidate=True)
        acknowledger.begins(1, "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acknowledger.run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert {held.chained for ack in ear.acks for held in ack.held} == {False}
            acknowledger.holds(1)
            await trio.sleep(2 * LAZY_SECONDS)
            assert ear.acks[-1].held[0].chained
            nursery.cancel_scope.cancel()

    run(main)


def test_without_rules_nothing_is_synced_and_little_is_told() -> None:
    async def main() -> None:
        pair = Pair(SyncRules())
        async with serving(pair.node) as url, trio.open_nursery() as nursery:
            nursery.start_soon(pair.follow, url)
            await pair.until(lambda: pair.node.replicas.published() == {"a": pair.source.position()})
            at = ZERO
            for _ in range(20):
                at = pair.commit()
                await trio.sleep(0.01)
            await pair.until(lambda: pair.node.replicas.published() == {"a": at})
            assert not pair.holdings.syncs
            assert not pair.told
            nursery.cancel_scope.cancel()

    run(main)


def test_a_replica_that_comes_back_is_a_member_again() -> None:
    async def main() -> None:
        pair = Pair(SyncRules(1, timeout=0.5))
        async with serving(pair.node) as url, trio.open_nursery() as nursery:
            nursery.start_soon(pair.node.replicas.run)
            for _ in range(2):
                with trio.CancelScope() as following:

                    async def member() -> None:
                        await pair.until(lambda: bool(pair.told) and pair.told[-1].counted == 1)
                        following.cancel()

                    async with trio.open_nursery() as inner:
                        inner.start_soon(member)
                        inner.start_soon(pair.follow, url)
                await pair.until(lambda: pair.told[-1].counted == 0)
                pair.commit()
            nursery.cancel_scope.cancel()

    run(main)
