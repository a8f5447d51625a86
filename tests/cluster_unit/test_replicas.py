"""The primary's view of its replicas: which acknowledgements count, what the lease's store is to have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from litefs.cluster.replicas import Replicas
from litefs.errors import NotPrimary, StreamEnded
from litefs.link.messages import Replication
from litefs.link.rules import SyncRule, SyncRules
from litefs.stream.acks import Ack, Held
from litefs.stream.memory import MemoryCatalog, MemorySource
from litefs.stream.protocols import Identity
from litefs.types import START, Point

PRIMARY = Identity(0xA1, term=3)
PAGE = bytes(512)
RULES = SyncRules(1, (SyncRule("off*", 0),), timeout=2.0)


class Scene:
    """A primary with the databases ``a`` and ``off``, and a store that does what the test says."""

    def __init__(self, rules: SyncRules = RULES, *, store: bool = True) -> None:
        self.a, self.off = MemorySource("a"), MemorySource("off")
        for source in (self.a, self.off):
            source.commit({1: PAGE})
        self.catalog = MemoryCatalog(self.a, self.off)
        self.told: list[Replication] = []
        self.asked = 0
        expedite = self._expedite if store else None
        self.replicas = Replicas(self.catalog, rules, lambda: PRIMARY, self.told.append, expedite)
        self.replicas.begin()

    def _expedite(self) -> None:
        self.asked += 1

    def join(self, node: int, **offered: Point) -> None:
        self.replicas.joined(Identity(node, term=3), node * 10, offered, {1: self.a, 2: self.off}, whole=True)

    def ack(
        self,
        node: int,
        *held: tuple[int, Point, Point],
        chained: bool = True,
        candidate: bool = True,
        stream_id: int | None = None,
        term: int = 3,
    ) -> SyncRules | None:
        """Acknowledge (handle, last position, last durable one)."""
        message = Ack(
            candidate,
            tuple(Held.of(handle, tip, durable, chained=chained) for handle, tip, durable in held),
        )
        stream_id = node * 10 if stream_id is None else stream_id
        return self.replicas.acknowledged(Identity(node, term=term), stream_id, message).sync

    def write(self) -> tuple[int, ...] | None:
        """A renewal of the lease that succeeds."""
        members = self.replicas.in_sync()
        self.replicas.stored(members)
        return members

    def commit(self) -> Point:
        self.a.commit({1: PAGE})
        self.catalog.notify()
        return self.a.point()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await test()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_replica_becomes_a_member_by_a_write_of_the_store() -> None:
    async def main() -> None:
        scene = Scene()
        assert scene.write() is None
        scene.join(1)
        at = scene.a.point()
        assert scene.ack(1, (1, at, START)) == RULES, "it is told to sync its log"
        assert scene.asked == 0
        scene.ack(1, (1, at, at))
        assert scene.asked == 1
        assert scene.told[-1].counted == 0
        assert scene.replicas.in_sync() == (1,)
        assert scene.told[-1].counted == 0, "it counted before the store was known to have it"
        scene.replicas.stored((1,))
        assert (scene.told[-1].counted, scene.told[-1].present) == (1, 1)
        assert [(one.node_id, one.in_sync) for one in scene.replicas.connected()] == [(1, True)]

    run(main)


def test_people_are_told_of_the_databases_that_a_replica_is_sent() -> None:
    async def main() -> None:
        scene = Scene()
        scene.replicas.joined(Identity(1, term=3), 10, {}, {1: scene.a}, whole=False)
        assert [one.held for one in scene.replicas.connected()] == [{"a": START}], "it has told nothing yet"
        scene.ack(1, (1, scene.a.point(), START))
        assert [one.held for one in scene.replicas.connected()] == [{"a": scene.a.point()}]

    run(main)


def test_replicas_are_expected_for_a_while() -> None:
    async def main() -> None:
        scene = Scene()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.replicas.run)
            await trio.sleep(RULES.timeout - 0.1)
            assert not scene.told[-1].settled
            await trio.sleep(0.2)
            assert scene.told[-1].settled
            nursery.cancel_scope.cancel()

    run(main)


def test_commits_are_released_when_they_are_durable() -> None:
    async def main() -> None:
        scene = Scene()
        scene.join(1)
        scene.ack(1, (1, scene.a.point(), scene.a.point()))
        scene.write()
        before, at = scene.a.point(), scene.commit()
        scene.ack(1, (1, at, before))
        assert "a" not in scene.told[-1].released
        assert scene.replicas.published()["a"] == before
        scene.ack(1, (1, at, at))
        assert scene.told[-1].released == {"a": at.txid}
        assert scene.replicas.published()["a"] == at

    run(main)


def test_what_may_be_another_history_does_not_count() -> None:
    async def main() -> None:
        scene = Scene()
        scene.join(1)
        at = scene.a.point()
        for other in (Point(at.txid, at.checksum ^ 1, at.hash), Point(at.txid, at.checksum, at.hash ^ 1)):
            scene.ack(1, (1, other, other), chained=False)
            assert scene.write() is None
        scene.ack(1, (7, at, at))  # a database that this stream does not have
        assert scene.write() is None
        scene.ack(1, (1, at, at), chained=False)  # exactly where the primary is
        assert scene.write() == (1,)

    run(main)


def test_what_was_durable_of_another_history_does_not_count() -> None:
    """In the middle of a snapshot a replica may name where it is now, and what it had durably before."""

    async def main() -> None:
        scene = Scene()
        at = scene.a.point()
        scene.join(1, a=Point(at.txid + 5, 77))
        scene.ack(1, (1, at, Point(at.txid + 5, 77)), chained=False)
        assert scene.write() is None
        scene.ack(1, (1, at, at), chained=False)
        assert scene.write() == (1,)

    run(main)


def test_what_a_replica_had_of_a_removed_database_does_not_count_for_another_of_its_name() -> None:
    async def main() -> None:
        scene = Scene()
        scene.join(1)
        old = scene.commit()
        anew = MemorySource("a")
        anew.commit({1: PAGE})
        scene.catalog.remove("a")
        scene.replicas.dropped("a")
        scene.catalog.add(anew)
        scene.ack(1, (1, old, old))
        assert scene.write() is None
        assert scene.replicas.published()["a"] == anew.point()

    run(main)


def test_a_replica_that_is_not_sent_everything_is_no_member() -> None:
    async def main() -> None:
        scene = Scene()
        at = scene.a.point()
        scene.replicas.joined(Identity(1, term=3), 10, {}, {1: scene.a}, whole=False)
        scene.ack(1, (1, at, at))
        assert scene.write() is None

    run(main)


def test_acknowledgements_of_another_stream_or_term_are_refused() -> None:
    async def main() -> None:
        scene = Scene()
        with pytest.raises(StreamEnded):
            scene.ack(1)
        scene.join(1)
        with pytest.raises(StreamEnded):
            scene.ack(1, stream_id=11)
        with pytest.raises(NotPrimary, match="in term 2, this node is in term 3"):
            scene.ack(1, term=2)
        scene.replicas.left(Identity(1), 11)  # an older stream of the same node
        scene.ack(1)
        scene.replicas.left(Identity(1), 10)
        with pytest.raises(StreamEnded):
            scene.ack(1)

    run(main)


def test_only_candidates_become_members_where_they_can_win() -> None:
    async def main() -> None:
        for store in (True, False):
            scene = Scene(store=store)
            scene.join(1)
            at = scene.a.point()
            told = scene.ack(1, (1, at, at), candidate=False)
            assert told == (None if store else RULES)
            assert scene.told[-1].counted == (0 if store else 1)

    run(main)


def test_a_silent_member_is_waited_for_until_the_store_is_rid_of_it() -> None:
    async def main() -> None:
        scene = Scene()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.replicas.run)
            await trio.testing.wait_all_tasks_blocked()
            for node in (1, 2):
                scene.join(node)
                scene.ack(node, (1, scene.a.point(), scene.a.point()))
            assert scene.write() == (1, 2)
            at = scene.commit()
            scene.ack(1, (1, at, at))
            await trio.sleep(RULES.timeout - 0.1)
            assert scene.asked == 2, "one for each that came"
            await trio.sleep(0.2)
            assert scene.asked == 3
            assert all(message.released.get("a") != at.txid for message in scene.told)
            assert scene.replicas.in_sync() == (1,)
            assert all(message.released.get("a") != at.txid for message in scene.told)
            scene.replicas.stored((1,))
            assert scene.told[-1].released == {"a": at.txid}
            nursery.cancel_scope.cancel()

    run(main)


def test_published_is_what_a_failover_must_keep() -> None:
    async def main() -> None:
        scene = Scene()
        first = scene.a.point()
        at = scene.commit()
        assert scene.replicas.published() == {"a": at, "off": scene.off.point()}
        scene.join(1)
        scene.ack(1, (1, first, first))
        assert scene.replicas.published()["a"] == at, "a candidate that was away does not lower it"
        scene.ack(1, (1, at, first))
        scene.off.commit({1: PAGE})
        further = scene.off.point()
        scene.ack(1, (2, further, START))
        scene.off.commit({1: PAGE})
        assert scene.replicas.published() == {"a": at, "off": further}
        scene.replicas.left(Identity(1), 10)
        assert scene.replicas.published()["off"] == scene.off.point()

    run(main)


def test_what_is_published_is_what_one_candidate_has() -> None:
    """Of several that are ahead of each other somebody can win."""

    async def main() -> None:
        scene = Scene(SyncRules())
        a, off = scene.a.point(), scene.off.point()
        for node in (1, 2):
            scene.join(node)
            scene.ack(node, (1, a, START), (2, off, START))
        a = scene.commit()
        scene.ack(1, (1, a, START))
        assert scene.replicas.published() == {"a": a, "off": off}
        for _ in range(3):
            scene.off.commit({1: PAGE})
        further = scene.off.point()
        scene.ack(2, (2, further, START))
        assert scene.replicas.published() == {"a": a, "off": off}, "nobody has both"
        scene.ack(2, (1, a, START))
        assert scene.replicas.published() == {"a": a, "off": further}
        scene.replicas.left(Identity(2), 20)
        assert scene.replicas.published() == {"a": a, "off": off}

    run(main)


def test_who_has_not_caught_up_with_all_is_not_gone_by() -> None:
    async def main() -> None:
        scene = Scene(SyncRules())
        a, off = scene.a.point(), scene.off.point()
        for node in (1, 2):
            scene.join(node)
        scene.ack(2, (1, a, START), (2, off, START))
        for _ in range(5):
            further = scene.commit()
        scene.ack(1, (1, further, START))
        assert scene.replicas.published() == {"a": a, "off": off}

    run(main)


def test_a_database_without_a_transaction_is_published_as_such() -> None:
    async def main() -> None:
        scene = Scene(SyncRules())
        scene.catalog.add(MemorySource("empty"))
        at = scene.a.point()
        scene.join(1)
        scene.ack(1, (1, at, START), (2, scene.off.point(), START))
        assert scene.replicas.published() == {"a": at, "off": scene.off.point(), "empty": START}

    run(main)


def test_while_only_members_may_win_it_is_what_a_member_has() -> None:
    async def main() -> None:
        scene = Scene()
        a, off = scene.a.point(), scene.off.point()
        scene.join(1)
        scene.ack(1, (1, a, a), (2, off, START))
        scene.join(2)
        scene.ack(2, (1, a, START), (2, off, START))
        assert scene.write() == (1,)
        scene.off.commit({1: PAGE})
        scene.ack(2, (2, scene.off.point(), START))
        assert scene.replicas.published() == {"a": a, "off": off}

    run(main)


def test_what_was_answered_stays_published_when_its_members_are_gone() -> None:
    async def main() -> None:
        scene = Scene()
        for node in (1, 2):
            scene.join(node)
        old = scene.a.point()
        scene.ack(1, (1, old, old))
        scene.ack(2, (2, scene.off.point(), START))
        assert scene.write() == (1,)
        at = scene.commit()
        scene.ack(1, (1, at, at))
        scene.replicas.left(Identity(1), 10)
        scene.ack(2, (1, old, old))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.replicas.run)
            await trio.sleep(2 * RULES.timeout)
            nursery.cancel_scope.cancel()
        assert scene.write() is None
        assert scene.replicas.published()["a"] == at

    run(main)


def test_what_was_answered_alone_is_published_once_commits_wait() -> None:
    async def main() -> None:
        scene = Scene(SyncRules(1, (), timeout=2.0, degrade=True))
        at = scene.commit()
        scene.join(1)
        durable = ((1, at, at), (2, scene.off.point(), scene.off.point()))
        scene.ack(1, *durable)
        assert (scene.told[-1].waiting, scene.told[-1].hold) == (True, 1)
        at = scene.commit()  # and answered, before the fs process heard of it
        scene.replicas.holding(1)
        assert scene.replicas.published()["a"] == at

    run(main)


def test_a_position_that_cannot_be_read_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> Point:
        raise TimeoutError("the writer stopped inside an update")

    async def main() -> None:
        scene = Scene()
        published = scene.replicas.published()
        monkeypatch.setattr(scene.a, "point", stopped)
        monkeypatch.setattr(scene.a, "is_at", lambda point: False)
        scene.join(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.replicas.run)
            await trio.testing.wait_all_tasks_blocked()
            scene.catalog.notify()
            assert scene.replicas.published() == published
            nursery.cancel_scope.cancel()

    run(main)


def test_a_new_fs_process_is_told_everything() -> None:
    async def main() -> None:
        scene = Scene()
        scene.join(1)
        at = scene.commit()
        scene.ack(1, (1, at, at))
        scene.write()
        scene.told.clear()
        scene.replicas.mounted(primary=True)
        assert (scene.told[-1].counted, scene.told[-1].released) == (1, {"a": at.txid})
        scene.replicas.dropped("a")
        assert scene.told[-1].dropped == ("a",)

    run(main)


def test_without_rules_only_positions_are_kept() -> None:
    async def main() -> None:
        scene = Scene(SyncRules())
        scene.join(1)
        at = scene.a.point()
        assert scene.ack(1, (1, at, START)) is None
        scene.replicas.mounted(primary=True)
        assert scene.ack(1, (1, at, START)) is None, "its stream was forgotten"
        assert scene.write() is None
        assert not scene.told
        scene.commit()
        assert scene.replicas.published()["a"] == at

    run(main)
