"""What listeners of a real log are told when they come, or the disk fails, at an awkward moment."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from litefs import eventfeed
from litefs.eventfeed import EventFeed
from litefs.rolechange import RoleChanges
from litefs.server.event_hub import EventHub, Listener
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from tests.store.support import Writer, new_dir


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


@contextmanager
def writing(data: DataDir, name: str = "app.db") -> Iterator[Writer]:
    source = Writer(new_dir(data.path.parent, name), data.path.parent / f"{name}.source")
    try:
        yield source
    finally:
        source.close()


def run(data: DataDir, test: Callable[[StoreCatalog, EventHub], Awaitable[None]]) -> None:
    """The test beside a feed over the databases that are there."""

    async def main() -> None:
        catalog = StoreCatalog(data)
        catalog.rescan()
        roles = cast("RoleChanges", SimpleNamespace(leads=True, primary=None))
        feed = EventFeed(data, catalog, roles)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed.run)
                await test(catalog, feed.hub)
                nursery.cancel_scope.cancel()
        catalog.close()

    trio.run(main)


async def events(listener: Listener, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < count:
        found += [json.loads(line) for line in (await listener.take()).splitlines()]
    return found


def txids(found: list[dict[str, Any]], kind: str = "tx") -> list[int]:
    return [int(one["data"]["txID"], 16) for one in found if one["type"] == kind]


def everything(name: str) -> bool:
    del name
    return True


class Gate:
    """Holds up the thread that has read the logs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read, self.go_on = threading.Event(), threading.Event()
        original = eventfeed._read

        def held(*args: Any) -> Any:
            found = original(*args)
            self.read.set()
            assert self.go_on.wait(10)
            return found

        monkeypatch.setattr(eventfeed, "_read", held)

    async def reached(self) -> None:
        while not self.read.is_set():
            await trio.sleep(0.001)


def test_who_comes_while_the_log_is_read_is_told_each_transaction_once(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with writing(data) as source:
        source.fill(1)

        async def test(catalog: StoreCatalog, hub: EventHub) -> None:
            early = hub.listen(everything, pages=False)
            source.run("INSERT INTO t (v) VALUES (1)")
            catalog.notify()
            await gate.reached()
            late = hub.listen(everything, pages=True)
            gate.go_on.set()
            source.run("INSERT INTO t (v) VALUES (2)")
            catalog.notify()
            assert txids(await events(early, 3)) == [3, 4]
            first, *rest = await events(late, 5)
            at = int(first["data"]["positions"]["app.db"].split("/")[0], 16)
            assert txids(rest) == list(range(at + 1, 5)), "those after the positions of init, and no other"
            assert txids(rest, "pages") == txids(rest), "and the pages of each"

        run(data, test)


def test_records_that_cannot_be_read_are_told_later(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventfeed, "RETRY_SECONDS", 0.01)
    original, failures = eventfeed.header_of, [3]
    with writing(data) as source:
        source.fill(1)

        def failing(entry: Any) -> Any:
            if failures and entry.txid_min == 4:
                failures[0] -= 1
                if not failures[0]:
                    failures.clear()
                raise OSError(errno.EIO, "not now")
            return original(entry)

        monkeypatch.setattr(eventfeed, "header_of", failing)

        async def test(catalog: StoreCatalog, hub: EventHub) -> None:
            listener = hub.listen(everything, pages=False)
            for number in range(3):
                source.run(f"INSERT INTO t (v) VALUES ({number})")
            catalog.notify()
            assert txids(await events(listener, 4)) == [3, 4, 5]

        run(data, test)


def test_what_was_lost_long_ago_is_no_news_after_an_error(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventfeed, "LOST_SECONDS", 0.01)
    original, looks, broken = eventfeed.lost_names, [0], set[int]()

    def looked(directory: DataDir) -> Any:
        looks[0] += 1
        if looks[0] in broken:
            raise OSError(errno.EMFILE, "too many open files")
        return original(directory)

    monkeypatch.setattr(eventfeed, "lost_names", looked)
    with writing(data) as source:
        source.fill(1)
        source.directory.lost("old").joinpath("a").touch()
        broken.update((1, 4, 5))

        async def test(catalog: StoreCatalog, hub: EventHub) -> None:
            listener = hub.listen(everything, pages=False)
            while looks[0] < 10:
                await trio.sleep(0.005)
            source.directory.lost("new").joinpath("a").touch()
            found = await events(listener, 2)
            assert [(one["type"], one["data"].get("reason")) for one in found] == [
                ("init", None),
                ("lost", "new"),
            ]

        run(data, test)
