"""GET /events over real sockets: what a listener is told, and what becomes of one who does not listen."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from litefs.server import event_hub, events
from litefs.server.event_hub import Begin, EventHub
from litefs.stream.memory import MemoryCatalog, MemorySource
from tests.server.support import FakeNode, client, serving


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await test()

    trio.run(bounded)


def node(*names: str) -> FakeNode:
    sources = [MemorySource(name) for name in names]
    for source in sources:
        source.commit({1: b"a" * 512})
    return FakeNode(MemoryCatalog(*sources))


class Reader:
    """The lines of one response."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def line(self) -> str:
        with trio.fail_after(5):
            return await anext(self._lines)

    async def event(self) -> dict[str, Any]:
        """The next event, past heartbeats."""
        while not (line := await self.line()):
            pass
        return dict(json.loads(line))


@asynccontextmanager
async def listening(http: httpx.AsyncClient, url: str) -> AsyncIterator[Reader]:
    async with http.stream("GET", url) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        yield Reader(response)


@pytest.mark.parametrize("http2", [True, False])
def test_events_come_as_they_happen(http2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)

    async def main() -> None:
        fake = node("app.db", "other.db")
        at = {name: str(source.position()) for name, source in fake.catalog.sources().items()}
        async with (
            serving(fake) as url,
            client(http1=not http2, http2=http2) as http,
            listening(http, f"{url}/events") as every,
            listening(http, f"{url}/events?db=app*&pages=1") as some,
        ):
            assert await every.event() == {"type": "init", "data": {"isPrimary": True, "positions": at}}
            assert (await some.event())["data"]["positions"] == {"app.db": at["app.db"]}
            fake.events.publish("tx", {"txID": "1"}, "other.db")
            fake.events.publish("tx", {"txID": "2"}, "app.db")
            fake.events.publish("pages", {"pages": [1]}, "app.db")
            fake.events.publish("primaryChange", {"isPrimary": False})
            told = [await every.event() for _ in range(3)]
            assert [(one["type"], one.get("db")) for one in told] == [
                ("tx", "other.db"),
                ("tx", "app.db"),
                ("primaryChange", None),
            ]
            told = [await some.event() for _ in range(3)]
            assert told == [
                {"type": "tx", "db": "app.db", "data": {"txID": "2"}},
                {"type": "pages", "db": "app.db", "data": {"pages": [1]}},
                {"type": "primaryChange", "data": {"isPrimary": False}},
            ]
            assert await every.line() == "", "a heartbeat"
            fake.events.close()
            assert await every.event() == {"type": "end", "data": {"reason": "the node stops"}}
            with pytest.raises(StopAsyncIteration):
                await every.line()

    run(main)


def test_a_replica_names_its_primary_and_a_listener_who_leaves_is_forgotten() -> None:
    async def main() -> None:
        fake = node()
        fake.is_primary, fake.primary_hostname = False, "first"
        async with serving(fake) as url, client(http1=True, http2=False) as http:
            async with listening(http, f"{url}/events") as reader:
                expected = {"isPrimary": False, "hostname": "first", "positions": {}}
                assert (await reader.event())["data"] == expected
                assert fake.events.count == 1
            while fake.events.count:  # the server hears of it a moment later
                await trio.sleep(0.01)

    run(main)


def test_who_does_not_take_events_is_dismissed_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "MAX_BYTES", 100_000)

    async def main() -> None:
        fake = node()
        data = {"filler": "x" * 1000}
        async with serving(fake) as url, client() as http, listening(http, f"{url}/events") as slow:
            await slow.event()
            published = 0
            while fake.events.count:  # the transport takes some megabytes before it is full
                for _ in range(10):
                    fake.events.publish("tx", data | {"number": published}, "app.db")
                    published += 1
                await trio.sleep(0.001)
            got = []
            while (event := await slow.event())["type"] != "end":
                got.append(event["data"]["number"])
            assert got == list(range(len(got))), "what came before the end is whole"
            assert len(got) < published
            assert "faster than they were taken" in event["data"]["reason"]

    run(main)


def test_a_listener_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "MAX_BYTES", 1000)

    async def main() -> None:
        hub = EventHub(lambda: Begin(True, None, {"app.db": "x" * 5000}))
        listener = hub.listen(lambda name: True, pages=False)
        assert b"init" in await listener.take(), "the first line may be longer"
        for _ in range(100):
            hub.publish("tx", {"filler": "x" * 50}, "app.db")
        taken = await listener.take()
        assert len(taken) < 1200
        assert taken.splitlines()[-1].startswith(b'{"type":"end"')
        assert await listener.take() == b""

    run(main)


@pytest.mark.parametrize("patterns", ["db=", "db=" + "x" * 2000])
def test_patterns_that_can_match_nothing_are_refused(patterns: str) -> None:
    async def main() -> None:
        async with serving(node()) as url, client() as http:
            assert (await http.get(f"{url}/events?{patterns}")).status_code == 400

    run(main)


@pytest.mark.parametrize("http2", [True, False])
def test_a_request_for_the_head_alone_ends_and_listens_to_nothing(http2: bool) -> None:
    """As of ``curl -I``; the same for what else has no end."""

    async def main() -> None:
        fake = node("app.db")
        async with serving(fake) as url, client(http1=not http2, http2=http2) as http:
            for path in ("/events", "/debug/rand"):
                with trio.fail_after(5):
                    response = await http.head(url + path)
                assert (response.status_code, response.content) == (200, b"")
                assert "content-length" not in response.headers
            assert fake.events.count == 0
            whole, head = await http.get(f"{url}/info"), await http.head(f"{url}/info")
            assert head.headers["content-length"] == str(len(whole.content))

    run(main)


def test_a_long_first_line_dismisses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of very many databases, and a commit before the line is taken."""
    monkeypatch.setattr(event_hub, "MAX_BYTES", 1000)

    async def main() -> None:
        hub = EventHub(lambda: Begin(True, None, {"app.db": "x" * 5000}))
        listener = hub.listen(lambda name: True, pages=False)
        hub.publish("tx", {"number": 1}, "app.db")
        kinds = [json.loads(line)["type"] for line in (await listener.take()).splitlines()]
        assert kinds == ["init", "tx"]
        assert hub.count == 1

    run(main)
