"""``POST /proxy`` on the API port: writes that the proxies of other nodes forward to this one, the primary.

An ASGI application beside Quart: a request and its response go through it at the same time
(:mod:`litefs.proxy.forward` has the other side).
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope

from litefs.errors import LiteFSError, NotPrimary
from litefs.proxy.forward import MEDIA_TYPE
from litefs.proxy.gate import Pass
from litefs.proxy.link import ClientFault, Link, server_end
from litefs.proxy.requests import next_request
from litefs.proxy.service import Proxy, Visit
from litefs.proxy.view import ProxiedNode
from litefs.stream.handshake import parse_headers

log = logging.getLogger("litefs.proxy")


class _Body(trio.abc.HalfCloseableStream):
    """The bodies of an ASGI request and of its response as one stream."""

    def __init__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._receive = receive
        self._send = send
        self._kept = b""
        self._ended = self._sent_all = False

    async def _piece(self) -> bytes:
        message: Any = await self._receive()
        if message["type"] != "http.request":
            raise trio.BrokenResourceError("the other node gave the request up")
        self._ended = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Raises trio.BrokenResourceError if the request was given up."""
        while not self._kept and not self._ended:
            self._kept = await self._piece()
        size = len(self._kept) if max_bytes is None else max_bytes
        data, self._kept = self._kept[:size], self._kept[size:]
        return data

    async def gone(self) -> None:
        """Return when the request was given up."""
        while not self._kept:
            message: Any = await self._receive()
            if message["type"] != "http.request":
                return
            self._ended = not message.get("more_body", False)
            self._kept = bytes(message.get("body", b""))
        await trio.sleep_forever()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._send({"type": "http.response.body", "body": bytes(data), "more_body": True})

    async def wait_send_all_might_not_block(self) -> None:
        """As any stream has."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if not self._sent_all:
            self._sent_all = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def aclose(self) -> None:
        """Hypercorn ends what is left."""
        await trio.lowlevel.checkpoint()


class _HopLink(Link):
    """A client's connection that is a stream of another node's."""

    stream: _Body

    async def gone(self) -> None:
        """The end of the request is not the end of the client here."""
        await self.stream.gone()


class Entrance:
    """Lets requests in while this node is primary."""

    def __init__(self, proxy: Proxy, node: ProxiedNode) -> None:
        self._proxy = proxy
        self._node = node

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer 200 and pass the request on, or what is in the way."""
        assert scope["type"] == "http"
        body = _Body(receive, send)
        try:
            self._check(scope)
            await self._admitted()
        except LiteFSError as error:
            await _refuse(send, error.http_status, str(error))
            return
        # nothing is awaited between the look at the gate and the count of who is in it
        with self._proxy.gate.entered(trio.CancelScope()) as admitted:
            headers = [(b"content-type", MEDIA_TYPE.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._serve(_HopLink(body, server_end()), admitted)

    def _check(self, scope: HTTPScope) -> None:
        """Raises LiteFSError."""
        if scope["method"] != "POST":
            raise ClientFault("method not allowed", 405)
        if scope["http_version"] != "2":
            raise ClientFault("requests are forwarded over HTTP/2", 426)
        found = {name.lower(): value for name, value in scope["headers"]}

        def get(name: str) -> str | None:
            value = found.get(name.lower().encode())
            return None if value is None else value.decode("latin-1")

        self._node.check_forwarder(parse_headers(get))

    async def _admitted(self) -> None:
        """Wait while the role is being passed on. Raises NotPrimary."""
        gate = self._proxy.gate
        with trio.move_on_after(self._proxy.redirect_timeout):
            while self._node.is_primary and not gate.is_open and not self._proxy.closing:
                await gate.changed()
        if not self._node.is_primary:
            raise NotPrimary("this node is not the primary")
        if not gate.is_open or self._proxy.closing:
            raise NotPrimary("this node is about to stop, or to pass its role on")

    async def _serve(self, front: Link, admitted: Pass) -> None:
        try:
            incoming = await next_request(front, self._proxy.times, first=True)
            if incoming is not None:
                visit = Visit(front, incoming, admitted=admitted, scope=admitted.scope)
                await self._proxy.answer(visit)
        except ClientFault as fault:
            log.debug("proxy: %s", fault)
        finally:
            with trio.move_on_after(1):
                await front.stream.send_eof()


async def _refuse(send: ASGISendCallable, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode(), "more_body": False})
