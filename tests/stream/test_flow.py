"""Sender and receiver joined by a pipe: every path from the log to the sink."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from litefs.errors import FormatError, PositionMismatch
from litefs.stream import feed as feed_module
from litefs.stream.feed import Feed
from litefs.stream.memory import MemoryCatalog, MemoryEntry, MemoryReader, MemorySink, MemorySource
from litefs.stream.protocols import Buffer, Identity
from litefs.stream.receiver import DatabaseFailed, Receiver
from litefs.stream.sender import Sender
from litefs.types import ZERO, Point, Position

IDENTITY = Identity(7, "LFSC0123456789ABCDEF", 1, "primary")
SEED = random.SystemRandom().randrange(1 << 32)


def image(rng: random.Random, size: int = 512) -> bytes:
    return rng.randbytes(size)


def filled(name: str, commits: int, pages: int = 40, size: int = 512, **options: float) -> MemorySource:
    rng = random.Random(SEED)
    source = MemorySource(name, size, **options)
    source.commit({pgno: image(rng, size) for pgno in range(1, pages + 1)})
    for _ in range(commits - 1):
        source.commit({rng.randint(1, pages): image(rng, size) for _ in range(3)})
    return source


@asynccontextmanager
async def replica(
    catalog: MemoryCatalog, sink: MemorySink, *, active: Callable[[], bool] = lambda: True, piece: int = 1000
) -> AsyncIterator[Sender]:
    """Run a sender into a receiver, the bytes cut into odd pieces."""
    sender = Sender(catalog, IDENTITY, sink.positions(), active=active)

    async def cut(chunks: Sender) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            for at in range(0, len(chunk), piece):
                yield chunk[at : at + piece]
            await trio.lowlevel.checkpoint()

    async def run() -> None:
        async with sender as chunks:
            await Receiver(sink).run(cut(chunks))

    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                yield sender
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


def run(test: Callable[[], object]) -> None:
    print(f"seed {SEED}")
    trio.run(test)  # type: ignore[arg-type]


async def ready(sink: MemorySink) -> None:
    while not sink.ready_count:
        await sink.changed.wait_change(sink.changed.revision)


def test_empty_replica_gets_a_snapshot_then_records() -> None:
    async def main() -> None:
        source, sink = filled("app.db", 30), MemorySink()
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink):
            await sink.wait_position("app.db", source.position())
            await ready(sink)
            assert sink.snapshots == ["app.db"]
            rng = random.Random(SEED)
            for _ in range(50):
                at = source.commit({rng.randint(1, 40): image(rng)})
                catalog.notify()
                await sink.wait_position("app.db", at)
            assert sink.pages["app.db"] == source.pages
        assert source.open_snapshots == 0

    run(main)


def test_replica_behind_catches_up_from_the_log_in_batches() -> None:
    async def main() -> None:
        source, sink = filled("a", 1), MemorySink()
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink):
            await sink.wait_position("a", source.position())
        rng = random.Random(SEED)
        for _ in range(3000):
            source.commit({rng.randint(1, 40): image(rng)})
        sink.batches.clear()
        async with replica(catalog, sink, piece=65536):
            await sink.wait_position("a", source.position())
        assert sink.snapshots == ["a"]
        assert sum(count for _, count in sink.batches) == 3000
        assert len(sink.batches) < 100
        assert sink.pages["a"] == source.pages

    run(main)


@pytest.mark.parametrize("case", ["reaped", "diverged", "ahead", "same txid", "same position"])
def test_replica_off_the_primarys_history_gets_a_snapshot(case: str) -> None:
    async def main() -> None:
        source, sink = filled("a", 1), MemorySink()
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink):
            await sink.wait_position("a", source.position())
        old = sink.at["a"]
        source.commit({1: image(random.Random(SEED + 1))})
        tip = source.commit({1: image(random.Random(SEED + 2))})
        if case == "reaped":
            source.reap(old.txid + 1)
        elif case == "same position":
            sink.at["a"] = Point(tip.txid, tip.checksum, source.point().hash ^ 1)
        else:
            txid = {"diverged": old.txid, "ahead": tip.txid + 5, "same txid": tip.txid}[case]
            sink.at["a"] = Point(txid, old.checksum ^ 1, old.hash)
        async with replica(catalog, sink):
            while len(sink.snapshots) < 2:
                await sink.changed.wait_change(sink.changed.revision)
            assert sink.at["a"].position == tip
        assert sink.snapshots == ["a", "a"]
        assert sink.pages["a"] == source.pages

    run(main)


def test_idle_databases_are_not_asked_at_each_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sources, sink = [filled(f"{number}", 1, pages=1) for number in range(300)], MemorySink()
        catalog = MemoryCatalog(*sources)
        async with replica(catalog, sink, piece=65536):
            await ready(sink)
            asked: list[str] = []
            turn = Feed.turn

            async def counted(feed: Feed) -> bytes | None:
                asked.append(feed.source.name)
                return await turn(feed)

            monkeypatch.setattr(Feed, "turn", counted)
            rng = random.Random(SEED)
            for _ in range(50):
                source = rng.choice(sources)
                at = source.commit({1: image(rng)})
                catalog.notify()
                await sink.wait_position(source.name, at)
        assert 50 <= len(asked) <= 150

    run(main)


def test_equal_positions_send_nothing() -> None:
    async def main() -> None:
        source, sink = filled("a", 5), MemorySink()
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink):
            await sink.wait_position("a", source.position())
        sink.batches.clear()
        async with replica(catalog, sink) as sender:
            await ready(sink)
            assert sender.bytes_sent < 200
        assert (sink.batches, sink.snapshots) == ([], ["a"])

    run(main)


def test_a_record_larger_than_memory_allows_travels_in_pieces() -> None:
    async def main() -> None:
        source, sink = filled("big", 1, pages=2, size=65536), MemorySink()
        other = filled("small", 1)
        catalog = MemoryCatalog(source, other)
        async with replica(catalog, sink, piece=65536):
            await sink.wait_position("big", source.position())
            rng = random.Random(SEED)
            at = source.commit({pgno: image(rng, 65536) for pgno in range(1, 200)})
            middle = source.commit({pgno: image(rng, 65536) for pgno in range(1, 30)})
            last = source.commit({1: image(rng, 65536)})
            small = other.commit({1: image(rng)})
            catalog.notify()
            await sink.wait_position("small", small)
            assert sink.at["big"].txid < at.txid, "the small database waited for the big record"
            await sink.wait_position("big", last)
            assert middle.txid < last.txid
        assert sink.pages["big"] == source.pages

    run(main)


def test_snapshots_and_live_records_interleave_while_the_primary_commits() -> None:
    async def main() -> None:
        slow = filled("slow", 3, pages=640, page_delay=0.01)
        slow2 = filled("slow2", 3, pages=640, page_delay=0.01)
        live, sink = filled("live", 1), MemorySink()
        catalog = MemoryCatalog(slow, slow2, live)
        rng = random.Random(SEED)
        async with replica(catalog, sink):
            await sink.wait_position("live", live.position())
            began = trio.current_time()
            commits = 0
            while len(sink.snapshots) < 3:
                slow.commit({rng.randint(1, 640): image(rng)})
                at = live.commit({rng.randint(1, 40): image(rng)})
                catalog.notify()
                with trio.fail_after(2):
                    await sink.wait_position("live", at)
                commits += 1
                await trio.sleep(0.005)
            assert trio.current_time() - began < 1.5, "the two snapshots waited for each other"
            assert commits > 10
            for source in (slow, slow2):
                await sink.wait_position(source.name, source.position())
                assert sink.pages[source.name] == source.pages

    run(main)


def test_a_slow_apply_does_not_stop_other_databases() -> None:
    async def main() -> None:
        stuck, live = filled("stuck", 1), filled("live", 1)
        slow = {"stuck": 0.0}
        sink = MemorySink(delay=lambda name: slow.get(name, 0.0))
        catalog = MemoryCatalog(stuck, live)
        rng = random.Random(SEED)
        async with replica(catalog, sink):
            await ready(sink)
            slow["stuck"] = 30.0
            for _ in range(20):
                stuck.commit({1: image(rng)})
                at = live.commit({1: image(rng)})
                catalog.notify()
                with trio.fail_after(2):
                    await sink.wait_position("live", at)

    run(main)


def test_failed_snapshots_are_tried_again_and_do_not_hold_ready_back() -> None:
    async def main() -> None:
        source, sink = filled("a", 1), MemorySink()
        source.fail_snapshots = 1
        async with replica(MemoryCatalog(source), sink):
            await ready(sink)
            assert "a" not in sink.at
            await sink.wait_position("a", source.position())
            assert sink.aborted == ["a"]
        assert source.open_snapshots == 0

    run(main)


def test_a_replica_that_stops_taking_does_not_pin_the_log_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(feed_module, "RETRY_FIRST", 0.1)

    async def main() -> None:
        source, sink = filled("a", 1, pages=3000), MemorySink()
        catalog = MemoryCatalog(source)

        async def frozen(chunks: Sender) -> AsyncIterator[bytes]:
            taken = 0
            async for chunk in chunks:
                yield chunk
                taken += 1
                if taken == 4:
                    assert source.open_snapshots == 1
                    await trio.sleep(0.6)
                    assert source.open_snapshots == 0, "the log is pinned by a replica that takes nothing"

        async with Sender(catalog, IDENTITY, {}) as chunks, trio.open_nursery() as nursery:
            nursery.start_soon(Receiver(sink).run, frozen(chunks))
            with trio.fail_after(10):
                await sink.wait_position("a", source.position())
            nursery.cancel_scope.cancel()
        assert sink.aborted
        assert sink.pages["a"] == source.pages

    run(main)


def test_a_snapshot_that_takes_too_long_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "RETRY_FIRST", 0.05)

    async def main() -> None:
        source, sink = filled("a", 1, pages=320, page_delay=0.05), MemorySink()
        async with (
            Sender(MemoryCatalog(source), IDENTITY, {}, snapshot_seconds=0.5) as chunks,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(Receiver(sink).run, chunks)
            with trio.fail_after(10):
                while not sink.aborted:
                    await trio.sleep(0.01)
                assert "a" not in sink.at
                source.page_delay = 0.0
                await sink.wait_position("a", source.position())
            nursery.cancel_scope.cancel()
        assert sink.pages["a"] == source.pages

    run(main)


def test_leaving_in_the_middle_of_a_snapshot_closes_it_on_both_sides() -> None:
    async def main() -> None:
        source, sink = filled("a", 1, pages=2000, page_delay=0.05), MemorySink()
        async with replica(MemoryCatalog(source), sink):
            while not sink.changed.revision:
                await sink.changed.wait_change(0)
        assert sink.aborted == ["a"]
        with trio.fail_after(5):
            while source.open_snapshots:
                await trio.sleep(0.01)

    run(main)


def test_databases_come_go_and_are_replaced() -> None:
    async def main() -> None:
        first, sink = filled("first", 1), MemorySink()
        sink.at["stale"], sink.pages["stale"] = Point(3, 1 << 63, 9), {}
        catalog = MemoryCatalog(first)
        async with replica(catalog, sink):
            await ready(sink)
            assert sink.dropped == ["stale"]
            second = filled("dir/second", 4)
            catalog.add(second)
            await sink.wait_position("dir/second", second.position())
            catalog.remove("first")
            while "first" in sink.at:
                await sink.changed.wait_change(sink.changed.revision)
            again = MemorySource("dir/second")
            catalog.add(again)
            at = again.commit({1: b"x" * 512})
            catalog.notify()
            await sink.wait_position("dir/second", at)
            assert sink.pages == {"dir/second": {1: b"x" * 512}}

    run(main)


def test_a_database_without_a_transaction_is_announced_only() -> None:
    async def main() -> None:
        empty, sink = MemorySource("empty"), MemorySink()
        catalog = MemoryCatalog(empty)
        async with replica(catalog, sink):
            await ready(sink)
            assert sink.positions() == {}
            at = empty.commit({1: b"y" * 512})
            catalog.notify()
            await sink.wait_position("empty", at)

    run(main)


def test_heartbeats_come_when_idle_and_the_stream_ends_when_the_role_is_lost() -> None:
    async def main() -> None:
        source, sink = filled("a", 1), MemorySink()
        catalog = MemoryCatalog(source)
        primary = [True]
        sender = Sender(catalog, IDENTITY, {}, active=lambda: primary[0])
        reasons: list[str] = []

        async def receive() -> None:
            async with sender as chunks:
                reasons.append(await Receiver(sink).run(chunks))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                while not sink.times:
                    await sink.changed.wait_change(sink.changed.revision)
                primary[0] = False
                catalog.notify()
        assert "no longer primary" in reasons[0]
        assert sink.at["a"] == source.point()

    run(main)


def test_what_the_sink_refuses_ends_the_stream_with_the_databases_name() -> None:
    async def main() -> None:
        source, sink = filled("a", 1), MemorySink()
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink):
            await ready(sink)
        sink.pages["a"][1] = b"z" * 512
        source.commit({2: b"n" * 512})
        with pytest.raises(DatabaseFailed, match="do not add up") as caught:
            async with replica(catalog, sink):
                await trio.sleep_forever()
        assert caught.value.name == "a"
        assert isinstance(caught.value.cause, FormatError)

    run(main)


def test_one_database_that_fails_leaves_the_others_going_until_the_stream_is_left() -> None:
    class Refusing(MemorySink):
        """Takes nothing for one database, in ways that are ours and in one that is a mistake."""

        error: Exception = OSError(28, "No space left on device")

        async def records(self, name: str, bodies: Sequence[Buffer]) -> Position:
            if name == "bad":
                raise self.error
            return await super().records(name, bodies)

        async def snapshot_abort(self, name: str) -> None:
            raise OSError(5, "Input/output error")

    async def main(error: Exception) -> None:
        bad, good, slow = filled("bad", 1), filled("good", 1), filled("slow", 1, page_delay=0.02)
        sink = Refusing()
        sink.error = error
        catalog = MemoryCatalog(bad, good)
        async with replica(catalog, sink):
            await ready(sink)
        catalog.add(slow)
        at = bad.commit({2: b"n" * 512})
        failed: list[DatabaseFailed] = []

        def note(failure: DatabaseFailed) -> float:
            failed.append(failure)
            return 0.3

        receiver = Receiver(sink, on_failed=note)
        began, times = trio.current_time(), len(sink.times)
        async with Sender(catalog, IDENTITY, sink.positions()) as chunks, trio.open_nursery() as nursery:
            nursery.start_soon(receiver.run, chunks)
            while not failed:
                await trio.sleep(0.001)
            for _ in range(20):
                await sink.wait_position("good", good.commit({1: b"g" * 512}))
                bad.commit({2: b"m" * 512})
                catalog.notify()
        assert [failure.name for failure in failed] == ["bad"]
        assert receiver.left_to_retry
        assert trio.current_time() - began >= 0.3
        assert sink.at["bad"].position != at
        assert sink.at["slow"] == slow.point(), "the snapshot of another database was cut off"
        assert sink.times[times:] == [], "a replica that lacks transactions said that it has all"

    for error in (OSError(28, "No space left on device"), PositionMismatch("gap"), ValueError("a mistake")):
        print(f"seed {SEED}, {error!r}")
        trio.run(main, error)


def test_a_reaped_log_under_a_slow_replica_turns_into_a_snapshot() -> None:
    async def main() -> None:
        source, sink = filled("a", 1), MemorySink()
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink):
            await ready(sink)
            tip = ZERO
            for _ in range(10):
                tip = source.commit({1: image(random.Random(SEED + 5))})
            source.reap(tip.txid - 2)
            catalog.notify()
            await sink.wait_position("a", tip)
            assert sink.snapshots == ["a", "a"]

    run(main)


def test_a_big_record_that_breaks_off_half_sent_turns_into_a_snapshot() -> None:
    class Torn(MemorySource):
        """Says that its record is longer than it is, so that reading it ends early, once."""

        def reader(self) -> MemoryReader:
            reader, whole = super().reader(), MemoryReader.read

            def read(upto_txid: int, max_bytes: int) -> list[MemoryEntry]:
                return [
                    TornEntry(e.txid_min, e.txid_max, e.body) if e.size > 1 << 20 else e
                    for e in whole(reader, upto_txid, max_bytes)
                ]

            reader.read = read  # type: ignore[method-assign]
            return reader

    class TornEntry(MemoryEntry):
        @property
        def size(self) -> int:
            return len(self.body) + 1

    async def main() -> None:
        source, sink = Torn("big", 65536), MemorySink()
        source.commit({1: b"1" * 65536})
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink, piece=65536):
            await ready(sink)
            at = source.commit({pgno: image(random.Random(SEED), 65536) for pgno in range(1, 40)})
            catalog.notify()
            await sink.wait_position("big", at)
            assert sink.snapshots == ["big", "big"]
            assert sink.aborted == []
            assert sink.pages["big"] == source.pages

    run(main)
