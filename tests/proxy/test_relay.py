"""Requests and responses through the proxy, as bytes on sockets."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import h11
import pytest
import trio
import trio.testing

from litefs.proxy import target as target_module
from tests.proxy.support import Echo, FakeNode, application, bound, field_of, running


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        trio.run(functools.partial(test, **fixtures))

    return run


@in_trio
async def test_requests_share_a_connection_and_the_cookie_is_of_writes() -> None:
    echo = Echo()
    async with running(echo) as setup:
        client = await setup.connect()
        assert await client.get("/a") == (200, "GET /a ")
        assert await client.get("/b", method="HEAD") == (200, "")
        await client.send("POST /c HTTP/1.1\nHost: h\nContent-Length: 2\n\nab")
        head, body = await client.response()
        assert body == b"POST /c ab"
        assert field_of(head, "set-cookie") == ["__txid=0000000000000007; Path=/; Max-Age=300; HttpOnly"]
        await client.send("GET /d HTTP/1.1\nHost: h\n\n")
        head, _ = await client.response()
        assert not field_of(head, "set-cookie")
        assert echo.connections == 1
        assert field_of(echo.heads[0], "x-forwarded-for") == ["127.0.0.1"]


@in_trio
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running(Echo()) as setup:
        client = await setup.connect()
        await client.send("".join(f"GET /{n} HTTP/1.1\nHost: h\n\n" for n in range(20)))
        assert [(await client.response())[1] for _ in range(20)] == [b"GET /%d " % n for n in range(20)]


@in_trio
async def test_a_client_of_http_1_0() -> None:
    async def chunked(stream: trio.SocketStream) -> None:
        request = bytes(await stream.receive_some(65536))
        assert b"HTTP/1.1\r\nHost: 127.0.0.1:" in request
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async with running(chunked) as setup:
        client = await setup.connect()
        await client.send("GET / HTTP/1.0\n\n")
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nabc"), "no chunks, for it does not know them"


@in_trio
async def test_trailers_are_not_for_a_client_of_http_1_0() -> None:
    async def sums(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
        )

    async with running(sums) as setup:
        client = await setup.connect()
        await client.send("GET / HTTP/1.0\n\n")
        answer = await client.rest()
        assert answer.endswith(b"\r\n\r\nabc")


@in_trio
async def test_bodies_stream_both_ways_at_a_time() -> None:
    """The application answers each piece before the next one is sent, and ends with a trailer."""

    async def upper(stream: trio.SocketStream) -> None:
        conn = h11.Connection(h11.SERVER)
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                conn.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                await stream.send_all(conn.send(h11.Response(status_code=200, headers=[])))
            elif isinstance(event, h11.Data):
                await stream.send_all(conn.send(h11.Data(data=bytes(event.data).upper())))
            elif isinstance(event, h11.EndOfMessage):
                trailers = [(b"X-Sum", value) for _, value in event.headers]
                await stream.send_all(conn.send(h11.EndOfMessage(headers=trailers)))
                return

    async with running(upper) as setup:
        client = await setup.connect()
        await client.send("POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n")
        client.expect("POST")
        assert (await client.event()).status_code == 200
        for piece in ("one", "two"):
            await client.send(f"3\n{piece}\n")
            assert bytes((await client.event()).data) == piece.upper().encode()
        await client.send("0\nX-Count: 2\n\n")
        assert (await client.event()).headers == [(b"x-sum", b"2")]


@in_trio
async def test_a_big_body_arrives_whole_at_the_pace_of_its_reader() -> None:
    size = 20 << 20
    paused = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        received = -len((await stream.receive_some(65536)).split(b"\r\n\r\n", 1)[0]) - 4
        await paused.wait()
        while received < size:
            received += len(await stream.receive_some(1 << 20))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")

    async with running(slow) as setup:
        client = await setup.connect()
        await client.send(f"PUT / HTTP/1.1\nHost: h\nContent-Length: {size}\n\n")
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < size:
                await client.stream.send_all(bytes(1 << 20))
                sent += 1 << 20

        setup.nursery.start_soon(send)
        await trio.sleep(0.3)
        assert sent < size, "the proxy took in what the application did not read"
        paused.set()


@in_trio
async def test_expectations_are_the_applications_to_answer() -> None:
    async def careful(stream: trio.SocketStream) -> None:
        assert b"Expect: 100-continue" in bytes(await stream.receive_some(65536))
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert bytes(await stream.receive_some(65536)) == b"body"
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with running(careful) as setup:
        client = await setup.connect()
        await client.send("POST / HTTP/1.1\nHost: h\nContent-Length: 4\nExpect: 100-continue\n\n")
        client.expect("POST")
        assert (await client.event()).status_code == 100
        await client.send("body")
        assert (await client.event()).status_code == 204


@in_trio
async def test_an_answer_before_the_end_of_the_request() -> None:
    async def hasty(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 3\r\n\r\nno\n")
        await trio.sleep(1)

    async with running(hasty) as setup:
        client = await setup.connect()
        await client.send("POST / HTTP/1.1\nHost: h\nContent-Length: 99999999\n\n")
        await client.stream.send_all(bytes(100_000))
        head, body = await client.response("POST")
        assert (head.status_code, body) == (413, b"no\n")
        assert await client.ended()


@in_trio
async def test_an_upgrade_becomes_a_tunnel() -> None:
    async def websocket(stream: trio.SocketStream) -> None:
        request = bytes(await stream.receive_some(65536)).lower()
        assert b"connection: upgrade\r\nupgrade: chat" in request
        await stream.send_all(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nhello")
        while data := await stream.receive_some(100):
            await stream.send_all(bytes(data).upper())
        await stream.send_all(b"bye")

    async with running(websocket) as setup:
        client = await setup.connect()
        await client.send("GET /ws HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: chat\n\n")
        answer = b""
        while not answer.endswith(b"hello"):
            answer += await client.stream.receive_some(100)
        assert b"101 Switching" in answer
        assert b"Upgrade: chat" in answer
        await client.stream.send_all(b"abc")
        assert await client.stream.receive_some(100) == b"ABC"
        await client.stream.send_eof()
        assert await client.stream.receive_some(100) == b"bye"
        assert await client.ended()


@in_trio
async def test_what_is_no_http_is_refused_and_never_passed_on() -> None:
    echo = Echo()
    async with running(echo) as setup:
        for text, status in (
            ("nonsense\n\n", 400),
            ("GET / HTTP/1.1\n\n", 400),
            ("GET / HTTP/1.1\nHost: a\nHost: b\n\n", 400),
            ("GET / HTTP/1.1\nHost: h\nA: " + "x" * 200_000 + "\n\n", 431),
            ("POST / HTTP/1.1\nHost: h\nContent-Length: 1\nTransfer-Encoding: chunked\n\n0\n\nGET /s", 400),
            ("POST / HTTP/1.1\nHost: h\nContent-Length: 1\nContent-Length: 2\n\nab", 400),
            ("POST / HTTP/1.1\nHost: h\nContent-Length: +1\n\na", 400),
            ("POST / HTTP/1.1\nHost: h\nTransfer-Encoding: gzip, chunked\n\n0\n\n", 501),
            ("GET http://[h/ HTTP/1.1\nHost: h\n\n", 400),
            ("POST / HTTP/1.1\nHost : h\n\n", 400),
        ):
            client = await setup.connect()
            await client.send(text)
            assert (await client.response("POST"))[0].status_code == status, text[:60]
            assert await client.ended()
    assert echo.requests == []


@in_trio
async def test_times_are_kept() -> None:
    async def never(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    times = {"read_header_timeout": 0.1, "idle_timeout": 0.1, "read_timeout": 0.3, "write_timeout": 0.2}
    async with running(never, **times) as setup:
        client = await setup.connect()
        assert await client.ended(), "no request came"
        client = await setup.connect()
        await client.send("GET / HTTP/1.1\n")
        assert (await client.response())[0].status_code == 408
        client = await setup.connect()
        await client.send("POST / HTTP/1.1\nHost: h\nContent-Length: 5\n\nab")
        assert (await client.response("POST"))[0].status_code == 408
        client = await setup.connect()
        await client.send("GET / HTTP/1.1\nHost: h\n\n")
        head, body = await client.response()
        assert (head.status_code, b"proxy.write-timeout" in body) == (504, True)
        assert await client.ended()
    async with running(Echo(), **times) as setup:
        client = await setup.connect()
        assert (await client.get())[0] == 200
        assert await client.ended(), "idle"
    async with running(Echo(), idle_timeout=0.1) as setup:
        client = await setup.connect()
        assert (await client.get())[0] == 200
        assert await client.ended(), "idle, whatever read-timeout is"


@in_trio
async def test_an_application_that_starts_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, port = bound()
    sock.close()
    echo = Echo()
    async with running(port) as setup:
        client = await setup.connect()

        async def late() -> None:
            await trio.sleep(0.3)
            await application(setup.nursery, echo, port)

        setup.nursery.start_soon(late)
        assert await client.get("/a", method="POST") == (200, "POST /a ")
        assert echo.requests == ["POST /a"]
    monkeypatch.setattr(target_module, "REFUSED_SECONDS", 0.2)
    async with running(bound()[1]) as setup:
        status, text = await (await setup.connect()).get()
        assert status == 502
        assert "cannot connect to the application" in text


@in_trio
async def test_nothing_is_sent_twice() -> None:
    """The application takes requests and dies over them, on new connections and on those that are kept."""
    seen: list[bytes] = []
    kept = False

    async def dies(stream: trio.SocketStream) -> None:
        if kept:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        seen.append(bytes(await stream.receive_some(65536)))

    for kept in (False, True):
        seen.clear()
        for method in ("GET", "POST"):
            async with running(dies) as setup:
                client = await setup.connect()
                if kept:
                    assert (await client.get(method=method))[0] == 204
                status, text = await client.get(method=method)
                assert (status, "Proxy error" in text) == (502, True)
        assert len(seen) == 2


@in_trio
async def test_a_response_that_breaks_off_is_not_ended() -> None:
    async def dies(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")

    async with running(dies) as setup:
        client = await setup.connect()
        await client.send("GET / HTTP/1.1\nHost: h\n\n")
        client.expect("GET")
        assert (await client.event()).status_code == 200
        assert bytes((await client.event()).data) == b"abc"
        with pytest.raises(h11.RemoteProtocolError):
            await client.event()


@in_trio
async def test_the_proxy_ends_when_its_requests_are_answered() -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        asked.set()
        await go_on.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with running(slow) as setup:
        client, idle = await setup.connect(), await setup.connect()
        await client.send("POST / HTTP/1.1\nHost: h\nContent-Length: 0\n\n")
        await asked.wait()
        setup.nursery.start_soon(setup.listener.finish)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="connect"):
            await setup.connect()
        go_on.set()
        head, body = await client.response("POST")
        assert (body, field_of(head, "connection")) == (b"ok", ["close"])
        assert await client.ended()
        assert await idle.ended()


@in_trio
async def test_health() -> None:
    async with running(Echo(), FakeNode(is_primary=False, lag_seconds=5)) as setup:
        client = await setup.connect()
        assert await client.get("/litefs/health") == (200, "OK\n")
        setup.node.now(lag_seconds=11)
        assert await client.get("/litefs/health") == (503, "Replication lag exceeded\n")
    async with running(Echo(), FakeNode(is_primary=False, lag_seconds=5), max_lag=0) as setup:
        assert (await (await setup.connect()).get("/litefs/health"))[0] == 200


@in_trio
async def test_passthrough_goes_to_the_application_here_whatever_it_is() -> None:
    echo = Echo()
    async with running(echo, FakeNode(is_primary=False), passthrough=("/here/*",)) as setup:
        client = await setup.connect()
        await client.send(
            "POST /here/x HTTP/1.1\nHost: h\nCookie: __txid=00000000ffffffff\nContent-Length: 0\n\n"
        )
        head, body = await client.response("POST")
        assert (body, field_of(head, "set-cookie")) == (b"POST /here/x ", [])
    assert setup.node.waits == []


@in_trio
async def test_each_request_is_told_of_if_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "litefs.proxy")
    for debug in (False, True):
        async with running(Echo(), debug=debug) as setup:
            assert (await (await setup.connect()).get(f"/{debug}"))[0] == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "litefs.proxy"]
    assert [line.split(",")[0] for line in lines] == ["proxy: GET /True: read"]
