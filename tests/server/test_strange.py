"""Connections and requests of those who mean no good, on plain sockets: each ends, soon and quietly."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import h2.config
import h2.connection
import pytest
import trio

from litefs.server import app, serve
from tests.server.support import serving
from tests.server.test_tokens import OWN, node, tokens

PING = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"
"""A PING frame (RFC 9113 §6.7)."""


def http2(*headers: tuple[str, str]) -> bytes:
    """The beginning of a connection by prior knowledge, with one request if there are headers."""
    config = h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
    connection = h2.connection.H2Connection(config=config)
    connection.initiate_connection()
    if headers:
        connection.send_headers(1, list(headers), end_stream=True)
    return bytes(connection.data_to_send())


async def answer(url: str, first: bytes, again: bytes = b"") -> bytes:
    """All that the server says until it closes the connection; ``again`` is sent ten times a second."""
    said = b""
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1]))

    async def repeat() -> None:
        while again:
            await trio.sleep(0.1)
            await stream.send_all(again)

    async with stream, trio.open_nursery() as nursery:
        await stream.send_all(first)
        nursery.start_soon(repeat)
        try:
            while chunk := await stream.receive_some():
                said += chunk
        except trio.BrokenResourceError:  # it was closed with bytes of ours unread
            pass
        nursery.cancel_scope.cancel()
    return said


def run(test: Callable[[str], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with serving(node(), tokens=tokens()) as url:
                await test(url)

    trio.run(main)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b""),
        (b"GET /in", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"a"),
        (http2(), b""),
        (http2(), PING),
        (http2()[:10], b""),
    ],
)
def test_a_connection_that_asks_nothing_is_closed(
    first: bytes, again: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "IDLE_SECONDS", 0.4)

    async def test(url: str) -> None:
        begin = trio.current_time()
        await answer(url, first, again)
        assert trio.current_time() - begin > 0.3

    run(test)


def test_a_connect_request_ends_its_connection_without_noise(caplog: pytest.LogCaptureFixture) -> None:
    async def test(url: str) -> None:
        await answer(url, http2((":method", "CONNECT"), (":authority", "x")))

    with caplog.at_level(logging.WARNING):
        run(test)
    assert not caplog.records


def test_a_body_that_stops_coming_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_IDLE_SECONDS", 0.2)

    async def test(url: str) -> None:
        head = f"POST /import?name=a.db HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OWN}\r\n"
        said = await answer(url, f"{head}Content-Length: 100\r\n\r\nSQLite".encode())
        assert said.startswith(b"HTTP/1.1 408")

    run(test)


def test_an_answer_before_the_end_of_the_request_ends_its_connection() -> None:
    async def test(url: str) -> None:
        head = f"POST /unknown HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OWN}\r\n"
        said = await answer(url, f"{head}Content-Length: 100\r\n\r\nbegun".encode())
        assert said.startswith(b"HTTP/1.1 404")

    run(test)
