"""Clients that leave, send what nobody asked for, or are too many."""

from __future__ import annotations

import os
import resource

import pytest
import trio
import trio.testing

from litefs.proxy import exchange as exchange_module
from tests.proxy.support import Echo, application, bound, running
from tests.proxy.test_relay import in_trio


@in_trio
async def test_a_client_that_leaves_ends_an_endless_response(monkeypatch: pytest.MonkeyPatch) -> None:
    left = trio.Event()

    async def endless(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert await stream.receive_some(1) == b""
        left.set()

    async with running(endless) as setup:
        client = await setup.connect()
        await client.send("GET / HTTP/1.1\nHost: h\n\n")
        client.expect("GET")
        assert (await client.event()).status_code == 200
        assert bytes((await client.event()).data) == b"data: 1\n\n"
        await client.stream.aclose()
        with trio.fail_after(5):
            await left.wait()


@in_trio
async def test_a_client_that_leaves_after_its_upload_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "WATCH_SECONDS", 0.05)
    asked, left = trio.Event(), trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some(65536):
            if bytes(data).endswith(b"0\r\n\r\n"):
                asked.set()
        left.set()

    async with running(silent) as setup:
        client = await setup.connect()
        await client.send("POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1\nx\n")
        await trio.sleep(0.2)  # beyond the look at whether there is an early answer
        await client.send("0\n\n")
        await asked.wait()
        await client.stream.aclose()
        with trio.fail_after(5):
            await left.wait()


@in_trio
async def test_what_a_client_sends_beside_a_long_response_is_not_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange_module, "WATCH_SECONDS", 0.005)

    async def ticks(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await trio.sleep(0.02)
            await stream.send_all(b"tick")

    async with running(ticks) as setup:
        client = await setup.connect()
        await client.send("GET / HTTP/1.1\nHost: h\n\n")
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                sent += await client.stream.socket.send(bytes(1 << 16))

        setup.nursery.start_soon(flood)
        await trio.sleep(0.5)
        before = sent
        await trio.sleep(0.5)
        assert sent == before


@in_trio
async def test_a_client_that_leaves_is_not_waited_for_where_the_application_is_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sock, port = bound()
    sock.close()
    echo = Echo()
    async with running(port) as setup:
        for method in ("GET", "POST"):
            client = await setup.connect()
            await client.send(f"{method} / HTTP/1.1\nHost: h\nContent-Length: 0\n\n")
            await trio.sleep(0.15)
            await client.stream.aclose()
        await trio.sleep(0.3)
        await application(setup.nursery, echo, port)
        await trio.sleep(0.3)
    assert (echo.connections, caplog.text) == (0, "")


@in_trio
async def test_clients_leave_the_node_enough_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (80, 80))
    async with running(Echo()) as setup:
        before = len(os.listdir("/proc/self/fd"))
        clients = [await setup.connect() for _ in range(30)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(os.listdir("/proc/self/fd")) - before - len(clients) <= 20
        last = clients.pop()
        await last.send("GET /a HTTP/1.1\nHost: h\n\n")
        for client in clients:
            await client.stream.aclose()
        assert (await last.response())[1] == b"GET /a "
