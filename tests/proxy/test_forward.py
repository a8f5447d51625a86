"""Writes that go to the primary, and those that wait for one: two proxies in this process, the second of them
behind a real HTTP/2 server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from litefs.config_http import TLSConfig, TokenConfig
from litefs.config_types import Secret
from litefs.proxy import listener, service
from litefs.proxy.forward import Forwarder, Leader
from litefs.tls import ClientTLS
from litefs.tokens import Tokens
from tests.proxy.support import Echo, FakeNode, Setup, bound, field_of, running
from tests.proxy.test_relay import in_trio
from tests.support.certificates import Authority, settings


def replica_of(primary: Setup) -> FakeNode:
    return FakeNode(node_id=2, is_primary=False, primary=Leader("one", primary.url))


async def post(setup: Setup, path: str = "/w") -> tuple[int, str]:
    return await (await setup.connect()).get(path, "Content-Length: 0", method="POST")


@in_trio
async def test_a_write_goes_to_the_primary_and_a_read_stays() -> None:
    there, here = Echo(), Echo()
    async with (
        running(there, FakeNode(positions={"app.db": 9})) as primary,
        running(here, replica_of(primary)) as replica,
    ):
        client = await replica.connect()
        assert await client.get("/r") == (200, "GET /r ")
        await client.send("POST /w?a HTTP/1.1\nHost: site\nAuthorization: Basic x\nContent-Length: 2\n\nab")
        head, body = await client.response("POST")
        assert (head.status_code, body) == (200, b"POST /w?a ab")
        cookie = field_of(head, "set-cookie")[0]
        assert cookie.startswith("__txid=0000000000000009;"), "the position is the primary's"
        fields = {name.decode(): value.decode() for name, value in there.heads[0].headers}
        assert (fields["host"], fields["authorization"]) == ("site", "Basic x")
        assert fields["x-forwarded-for"] == "127.0.0.1"
        assert (there.requests, here.requests) == (["POST /w?a"], ["GET /r"])


@in_trio
async def test_many_writes_share_connections_and_none_is_lost_or_doubled() -> None:
    there = Echo()
    async with (
        running(there) as primary,
        running(Echo(), replica_of(primary), primary_redirect_timeout=15) as replica,
    ):
        answers: list[tuple[int, str]] = []

        async def some(number: int) -> None:
            client = await replica.connect()
            for index in range(3):
                answers.append(await client.get(f"/{number}/{index}", method="POST"))

        async with trio.open_nursery() as nursery:
            for number in range(120):  # more than a connection takes streams
                nursery.start_soon(some, number)
        wanted = sorted(f"POST /{number}/{index}" for number in range(120) for index in range(3))
        assert sorted(there.requests) == wanted
        assert sorted(answers) == [(200, f"{line} ") for line in wanted]


@in_trio
async def test_bodies_and_tunnels_are_forwarded_as_they_come() -> None:
    size = 5 << 20

    async def upper(stream: trio.SocketStream) -> None:
        head, _, rest = bytes(await stream.receive_some(65536)).partition(b"\r\n\r\n")
        if b"upgrade: chat" in head.lower():
            await stream.send_all(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
            while data := await stream.receive_some(100):
                await stream.send_all(bytes(data).upper())
            return
        received = len(rest)
        while received < size:
            received += len(await stream.receive_some(65536))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await stream.send_all(bytes(size))

    async with (
        running(upper) as primary,
        running(Echo(), replica_of(primary), always_forward=("/ws",)) as replica,
    ):
        client = await replica.connect()
        await client.send(f"PUT / HTTP/1.1\nHost: h\nContent-Length: {size}\n\n")
        await client.stream.send_all(bytes(size))
        head, body = await client.response("PUT")
        assert (head.status_code, len(body)) == (200, size)
        client = await replica.connect()
        await client.send("GET /ws HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: chat\n\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await client.stream.receive_some(1000)
        assert b"101 Yes" in answer
        for word in (b"one", b"two"):
            await client.stream.send_all(word)
            assert await client.stream.receive_some(100) == word.upper()
        await client.stream.send_eof()
        assert await client.ended()


@in_trio
async def test_an_upload_that_nobody_reads_holds_up_no_other_write() -> None:
    """Nor does a response that its client does not read."""
    echo = Echo()

    async def choosy(stream: trio.SocketStream) -> None:
        first = await stream.socket.recv(4, socket.MSG_PEEK)
        if first == b"PUT ":
            await trio.sleep_forever()
        elif first == b"POST":
            await echo(stream)
        else:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(99999999))

    async with running(choosy) as primary, running(Echo(), replica_of(primary)) as replica:
        upload, download = await replica.connect(), await replica.connect()
        await upload.send("PUT / HTTP/1.1\nHost: h\nContent-Length: 99999999\n\n")
        replica.nursery.start_soon(upload.stream.send_all, bytes(99999999))
        await download.send("DELETE / HTTP/1.1\nHost: h\n\n")
        await trio.sleep(0.5)
        for number in range(5):
            assert await post(replica, f"/{number}") == (200, f"POST /{number} ")
        replica.nursery.cancel_scope.cancel()


@in_trio
async def test_a_primary_that_is_gone_or_none_any_more_gets_nothing() -> None:
    there = Echo()
    async with running(there, FakeNode(is_primary=False)) as old, running(there) as new:
        sock, port = bound()
        sock.close()
        for url in (f"http://127.0.0.1:{port}", old.url):
            node = FakeNode(node_id=2, is_primary=False, primary=Leader("old", url))
            async with running(Echo(), node) as replica:
                client = await replica.connect()
                await client.send("POST /w HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1\nx\n")
                await trio.sleep(0.15)
                node.now(primary=Leader("new", new.url))
                await client.send("1\ny\n0\n\n")
                assert (await client.response("POST"))[1] == b"POST /w xy"
        assert there.requests == ["POST /w", "POST /w"]


@in_trio
async def test_a_forwarded_request_is_not_repeated_when_its_outcome_is_unknown() -> None:
    seen: list[bytes] = []

    async def dies(stream: trio.SocketStream) -> None:
        seen.append(bytes(await stream.receive_some(65536)))

    async with running(dies) as primary, running(Echo(), replica_of(primary)) as replica:
        assert (await post(replica))[0] == 502
    assert len(seen) == 1
    hung = trio.Event()

    async def hangs(stream: trio.SocketStream) -> None:
        hung.set()
        await trio.sleep_forever()

    async with running(hangs) as primary, running(Echo(), replica_of(primary)) as replica:
        client = await replica.connect()
        await client.send("POST /w HTTP/1.1\nHost: h\nContent-Length: 0\n\n")
        await hung.wait()
        primary.nursery.cancel_scope.cancel()  # the node dies
        assert (await client.response("POST"))[0].status_code == 502


@in_trio
async def test_only_whom_the_tokens_let_see_everything() -> None:
    others = [TokenConfig(name="some", token=Secret("t2"), databases=("a.db",))]
    for own, status in (("t1", 200), ("t2", 503), (None, 503)):
        tokens = Tokens(None if own is None else Secret(own))
        async with (
            running(Echo(), tokens=Tokens(Secret("t1"), others)) as primary,
            running(Echo(), replica_of(primary), tokens=tokens, primary_redirect_timeout=0.05) as replica,
        ):
            assert (await post(replica))[0] == status


@in_trio
async def test_nodes_know_each_other_by_certificates(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "other")
    one = settings(ours.issue("one"), ours.ca)
    for other, status in ((settings(ours.issue("two"), ours.ca), 200), (settings(ca=theirs.ca), 503)):
        async with (
            running(Echo(), tls=one) as primary,
            running(Echo(), replica_of(primary), tls=other, primary_redirect_timeout=0.2) as replica,
        ):
            assert (await post(replica))[0] == status


@in_trio
async def test_nobody_is_forwarded_twice() -> None:
    """Two nodes that take each other for the primary."""
    echo = Echo()
    one, two = FakeNode(is_primary=False), FakeNode(node_id=2, is_primary=False)
    async with (
        running(echo, one, primary_redirect_timeout=0.3) as first,
        running(echo, two, primary_redirect_timeout=0.3) as second,
    ):
        one.primary, two.primary = Leader("two", second.url), Leader("one", first.url)
        assert (await post(first))[0] == 503
    assert echo.requests == []


@in_trio
async def test_fly_replay() -> None:
    node = FakeNode(is_primary=False, primary=Leader("other-host", "http://127.0.0.1:1"))
    async with running(Echo(), node, redirect="fly-replay") as setup:
        client = await setup.connect()
        await client.send("POST / HTTP/1.1\nHost: h\nContent-Length: 2\n\nab")
        head, body = await client.response("POST")
        assert (head.status_code, body) == (200, b"")
        assert field_of(head, "fly-replay") == ["instance=other-host"]


@in_trio
async def test_what_two_parsers_could_read_in_two_ways_is_refused_from_another_node_too() -> None:
    """A node of another version, or whoever has its token, may not have looked."""
    echo = Echo()
    async with running(echo) as primary:
        forwarder = Forwarder(Tokens(), ClientTLS(TLSConfig()), lambda: FakeNode(node_id=2).identity)
        await primary.nursery.start(forwarder.run)
        stream = await forwarder.open(Leader("one", primary.url), shared=True)
        await stream.send_all(
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        await stream.send_eof()
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
    assert echo.requests == []


# -- the gate ------------------------------------------------------------------------------------------------


@in_trio
async def test_writes_wait_while_the_role_is_passed_on_and_those_under_way_end_first() -> None:
    """Here, and those that another node forwards; reads go on."""
    asked, go_on = trio.Event(), trio.Event()
    echo = Echo()

    async def slow_then_echo(stream: trio.SocketStream) -> None:
        if not asked.is_set():
            await stream.receive_some(65536)
            asked.set()
            await go_on.wait()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
        await echo(stream)

    async with running(slow_then_echo) as primary, running(Echo(), replica_of(primary)) as replica:
        first, held, forwarded = await primary.connect(), await primary.connect(), await replica.connect()
        write = "POST /w HTTP/1.1\nHost: h\nContent-Length: 0\n\n"
        await first.send(write)
        await asked.wait()
        done = trio.Event()

        async def hold() -> None:
            await primary.proxy.gate.hold(10)
            done.set()

        primary.nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        await held.send(write)
        await forwarded.send(write)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await (await primary.connect()).get("/r") == (200, "GET /r ")
        assert not done.is_set()
        go_on.set()
        assert (await first.response("POST"))[1] == b"slow"
        await done.wait()
        assert echo.requests == ["GET /r"]
        primary.proxy.gate.release()
        assert (await held.response("POST"))[1] == (await forwarded.response("POST"))[1] == b"POST /w "


@in_trio
async def test_a_write_that_takes_too_long_does_not_keep_the_role() -> None:
    async def never(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with running(never) as setup:
        await (await setup.connect()).send("POST / HTTP/1.1\nHost: h\nContent-Length: 0\n\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(2):
            await setup.proxy.gate.hold(0.1)


@in_trio
async def test_tunnels_that_write_are_cut_when_the_role_is_gone_and_not_waited_for() -> None:
    async def chat(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        await trio.sleep_forever()

    async with running(chat, always_forward=("/ws",)) as setup:
        client = await setup.connect()
        await client.send("GET /ws HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: chat\n\n")
        assert b"101" in await client.stream.receive_some(1000)
        with trio.fail_after(2):
            await setup.proxy.gate.hold(10)
        setup.proxy.gate.end_tunnels()
        assert await client.ended()


@in_trio
async def test_a_tunnel_does_not_keep_the_proxy_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "FINISH_SECONDS", 60.0)

    async def chat(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        await trio.sleep_forever()

    async with running(chat) as setup:
        client = await setup.connect()
        await client.send("GET /ws HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: chat\n\n")
        assert b"101" in await client.stream.receive_some(1000)
        with trio.fail_after(5):
            await setup.listener.finish()
        assert await client.ended()


# -- reads ---------------------------------------------------------------------------------------------------


@in_trio
async def test_a_read_waits_for_what_its_client_wrote() -> None:
    node = FakeNode(is_primary=False)
    async with running(Echo(), node) as setup:
        client = await setup.connect()
        await client.send("GET /r HTTP/1.1\nHost: h\nCookie: __txid=0000000000000008\n\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert node.waits == [("app.db", 8)]
        node.now(positions={"app.db": 8})
        assert (await client.response())[1] == b"GET /r "


@in_trio
async def test_a_read_that_waits_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "READ_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.1)
    node = FakeNode(is_primary=False)
    async with running(Echo(), node, db=("a.db", "app.db")) as setup:
        client = await setup.connect()
        assert await client.get("/r", "Cookie: __txid=app.db:0000000000000008") == (504, "Proxy timeout\n")
        assert (await client.get("/r", "Cookie: __txid=app.db:0000000000000007"))[0] == 200
        await client.send("GET /r HTTP/1.1\nHost: h\nCookie: __txid=app.db:0000000000000008\n\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        node.now(is_primary=True)
        assert (await client.response())[0].status_code == 200, "the primary has all that there is"


@in_trio
async def test_a_cookie_of_what_no_node_has_stalls_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of another cluster, from before a restore, or was lost with a primary."""
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(service, "DOUBT_SECONDS", 0.2)
    monkeypatch.setattr(service, "READ_WAIT_SECONDS", 1.5)
    node = FakeNode(is_primary=False, lag_seconds=0.1)
    async with running(Echo(), node) as setup:
        client = await setup.connect()
        begin = trio.current_time()
        await client.send("GET /r HTTP/1.1\nHost: h\nCookie: __txid=ffffffffffffffff\n\n")
        head, body = await client.response()
        assert body == b"GET /r "
        assert 0.3 <= trio.current_time() - begin < 1.5
        assert field_of(head, "set-cookie")[0].startswith("__txid=0000000000000007;")
        node.now(lag_seconds=60.0)
        assert (await client.get("/r", "Cookie: __txid=ffffffffffffffff"))[0] == 504, "it may come yet"


@in_trio
async def test_a_primary_is_not_stalled_by_an_old_cookie() -> None:
    node = FakeNode()
    async with running(Echo(), node) as setup:
        with trio.fail_after(2):
            client = await setup.connect()
            assert (await client.get("/r", "Cookie: __txid=00000000ffffffff"))[0] == 200
    assert node.waits == []
