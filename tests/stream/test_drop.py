"""A DROP says whether somebody removed the database, and only then the replica removes it."""

from __future__ import annotations

import pytest
import trio

from litefs.errors import FormatError
from litefs.stream import frames
from litefs.stream.handshake import Hello, encode_hello
from litefs.stream.memory import MemoryCatalog, MemorySink
from litefs.stream.parser import Parser
from tests.stream.test_flow import IDENTITY, filled, replica

HELLO = encode_hello(Hello(IDENTITY, 0))
KNOWN = frames.encode_database(1, "a")


def test_the_flag_crosses_the_wire() -> None:
    stream = HELLO + KNOWN + frames.encode_drop(1, deliberate=True) + KNOWN + frames.encode_drop(1)
    drops = [frame for frame in Parser().feed(stream) if isinstance(frame, frames.Drop)]
    assert drops == [frames.Drop(1, deliberate=True), frames.Drop(1)]
    unknown = bytearray(frames.encode_drop(1))
    unknown[1] = 2
    with pytest.raises(FormatError, match="flags"):
        list(Parser().feed(HELLO + KNOWN + bytes(unknown)))


@pytest.mark.parametrize(("txid", "deliberate"), [(0, False), (4, False), (5, True), (9, True)])
def test_a_tombstone_counts_from_the_replicas_position_on(txid: int, deliberate: bool) -> None:
    """One from before what the replica holds tells of another history: this primary lost its disk."""

    async def scenario() -> None:
        sink, source = MemorySink(), filled("a", commits=5)
        catalog = MemoryCatalog(source)
        async with replica(catalog, sink):
            await sink.wait_position("a", source.position())
        without = MemoryCatalog()
        without.tombstones["a"] = txid
        async with replica(without, sink):
            while not sink.dropped:
                await sink.changed.wait_change(sink.changed.revision)
        assert sink.removed == (["a"] if deliberate else [])

    trio.run(scenario)


def test_a_name_that_is_taken_again_waits_for_its_removal() -> None:
    """The removal is slow: the new database must not arrive before the old one is gone."""

    class SlowToRemove(MemorySink):
        async def drop(self, name: str, *, deliberate: bool = False) -> None:
            await trio.sleep(0.3)
            await super().drop(name, deliberate=deliberate)

    async def scenario() -> None:
        sink = SlowToRemove()
        old, new = filled("a", commits=9), filled("a", commits=3, pages=20)
        catalog = MemoryCatalog(old)
        async with replica(catalog, sink):
            await sink.wait_position("a", old.position())
            catalog.tombstones["a"] = 9
            catalog.remove("a")
            await trio.sleep(0.02)
            catalog.add(new)
            await sink.wait_position("a", new.position())
            assert sink.removed == ["a"]
            await trio.sleep(0.4)
            assert sink.at.get("a") == new.point()

    trio.run(scenario)
