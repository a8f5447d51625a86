"""Writes that wait for a primary."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from litefs.proxy import service
from litefs.proxy.forward import Leader
from litefs.stream.protocols import Identity
from tests.proxy.support import Echo, FakeNode, application, bound, running
from tests.proxy.test_forward import post
from tests.proxy.test_relay import in_trio


@in_trio
async def test_a_write_waits_for_a_primary_and_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "RETRY_SECONDS", 10.0)  # so that only being told helps
    echo, nobody = Echo(), FakeNode(is_primary=False)
    async with running(echo, nobody) as setup:
        client = await setup.connect()
        await client.send("POST /w HTTP/1.1\nHost: h\nContent-Length: 1\n\nx")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert echo.requests == []
        nobody.now(is_primary=True)
        assert (await client.response("POST"))[1] == b"POST /w x"
        assert echo.requests == ["POST /w"]
    async with running(echo, FakeNode(is_primary=False), primary_redirect_timeout=0.2) as setup:
        assert await post(setup) == (503, "Proxy error: no primary available\n")


@in_trio
async def test_a_write_goes_on_to_the_next_primary_from_an_application_that_refuses_connections() -> None:
    there = Echo()
    sock, port = bound()
    sock.close()
    node = FakeNode(node_id=2)
    async with running(there) as new, running(port, node) as old:
        client = await old.connect()
        await client.send("POST /w HTTP/1.1\nHost: h\nContent-Length: 0\n\n")
        await trio.sleep(0.2)
        with trio.fail_after(1):
            await old.proxy.gate.hold(10)
        node.now(is_primary=False, primary=Leader("new", new.url))
        old.proxy.gate.release()
        assert (await client.response("POST"))[0].status_code == 200
    assert there.requests == ["POST /w"]


@in_trio
async def test_a_write_whose_client_left_while_it_waited_is_not_sent() -> None:
    """It may have asked again elsewhere: with this one the write would happen twice."""
    echo, nobody = Echo(), FakeNode(is_primary=False)
    async with running(echo, nobody) as setup:
        leaving, staying = await setup.connect(), await setup.connect()
        for number, client in enumerate((leaving, staying)):
            await client.send(f"POST /{number} HTTP/1.1\nHost: h\nContent-Length: 1\n\nx")
        await trio.testing.wait_all_tasks_blocked(0.05)
        await leaving.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        nobody.now(is_primary=True)
        assert (await staying.response("POST"))[0].status_code == 200
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert echo.requests == ["POST /1"]


@in_trio
async def test_many_writes_that_wait_do_not_all_ask_again_and_again() -> None:
    """At a node that is gone, and at one that refuses them."""
    asked = 0

    async def closes(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked += 1

    class Refusing(FakeNode):
        def check_forwarder(self, peer: Identity) -> None:
            nonlocal asked
            asked += 1
            super().check_forwarder(peer)

    there = Echo()
    async with running(there) as new, running(there, Refusing(is_primary=False)) as old:
        for url in (f"http://127.0.0.1:{await application(new.nursery, closes)}", old.url):
            node = FakeNode(node_id=2, is_primary=False, primary=Leader("old", url))
            there.requests.clear()
            async with running(Echo(), node, primary_redirect_timeout=15) as replica:
                answers: list[tuple[int, str]] = []

                async def write() -> None:
                    answers.append(await post(replica))  # noqa: B023

                async with trio.open_nursery() as nursery:
                    for _ in range(60):
                        nursery.start_soon(write)
                    await trio.sleep(1)
                    first = asked
                    await trio.sleep(1)
                    again = asked - first
                    node.now(primary=Leader("new", new.url))
                assert again <= 30, "ten a second, not ten for each"
                assert len(there.requests) == answers.count((200, "POST /w ")) == 60


@in_trio
async def test_a_primary_that_hangs_is_not_waited_for_when_another_one_leads() -> None:
    there = Echo()

    async def hangs(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with running(there) as new:
        port = await application(new.nursery, hangs)
        node = FakeNode(node_id=2, is_primary=False, primary=Leader("old", f"http://127.0.0.1:{port}"))
        async with running(Echo(), node, primary_redirect_timeout=15) as replica:
            client = await replica.connect()
            await client.send("POST /w HTTP/1.1\nHost: h\nContent-Length: 0\n\n")
            await trio.testing.wait_all_tasks_blocked(0.05)
            begin = trio.current_time()
            node.now(primary=Leader("new", new.url))
            assert (await client.response("POST"))[0].status_code == 200
            assert trio.current_time() - begin < 1.5
