"""A proxy in this process between a client's socket and an application of the test, over a node that is what
the test says."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import trio
import trio.testing

from litefs.config_http import TLSConfig
from litefs.config_proxy import ProxyConfig
from litefs.errors import NotPrimary, WaitTimeout
from litefs.proxy.entrance import Entrance
from litefs.proxy.forward import PATH, Forwarder, Leader
from litefs.proxy.listener import Listener
from litefs.proxy.service import Proxy
from litefs.proxy.target import Target
from litefs.server.access import TokenWall
from litefs.server.app import Routes, bare_app
from litefs.server.serve import serve
from litefs.stream.protocols import Identity
from litefs.tls import ClientTLS, ServerTLS
from litefs.tokens import Tokens

SECONDS = 20.0
"""Bound of a test."""

CLUSTER = "LFSC0000000000000001"

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@dataclass
class FakeNode:
    """A node whose role and positions are set by the test."""

    node_id: int = 1
    is_primary: bool = True
    primary: Leader | None = None
    lag_seconds: float = 0.0
    positions: dict[str, int] = field(default_factory=lambda: {"app.db": 7})
    changed: trio.Event = field(default_factory=trio.Event)
    waits: list[tuple[str, int]] = field(default_factory=list)
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    @property
    def identity(self) -> Identity:
        return Identity(self.node_id, CLUSTER, 1, f"node{self.node_id}")

    def txid(self, name: str) -> int:
        return self.positions.get(name, 0)

    def shows(self, name: str, txid: int) -> bool:
        return False

    async def reached(self, name: str, txid: int, seconds: float) -> None:
        self.waits.append((name, txid))
        with trio.move_on_after(seconds):
            while self.txid(name) < txid:
                await self.changed.wait()
            return
        raise WaitTimeout(f"{name}: not there")

    def check_forwarder(self, peer: Identity) -> None:
        if not self.is_primary:
            raise NotPrimary("not the primary")

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def now(self, **values: Any) -> None:
        """Set attributes, and tell."""
        for name, value in values.items():
            setattr(self, name, value)
        self.changed.set()
        self.changed = trio.Event()
        for callback in self.callbacks:
            callback()


@dataclass
class Setup:
    """A proxy that serves at ``port``, and as another node's at ``url``."""

    proxy: Proxy
    listener: Listener
    node: FakeNode
    port: int
    url: str
    nursery: trio.Nursery

    async def connect(self) -> Client:
        return Client(await trio.open_tcp_stream("127.0.0.1", self.port))


class Client:
    """A client that speaks HTTP as bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._conn = h11.Connection(h11.CLIENT)

    async def send(self, text: str) -> None:
        """Lines are given with \\n."""
        await self.stream.send_all(text.replace("\n", "\r\n").encode())

    async def rest(self) -> bytes:
        """What comes until the connection ends, as it is."""
        return b"".join([data async for data in self.stream])

    async def event(self) -> Any:
        """The next of the response."""
        while (event := self._conn.next_event()) is h11.NEED_DATA:
            self._conn.receive_data(bytes(await self.stream.receive_some(65536)))
        return event

    def expect(self, method: str) -> None:
        """A request of that method was sent, or will be: h11 wants to know."""
        if self._conn.our_state is h11.DONE:
            self._conn.start_next_cycle()
        self._conn.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        self._conn.send(h11.EndOfMessage())

    async def response(self, method: str = "GET") -> tuple[h11.Response, bytes]:
        """The final response and its body, to a request that was sent already."""
        self.expect(method)
        while isinstance(head := await self.event(), h11.InformationalResponse):
            pass
        assert isinstance(head, h11.Response), head
        body = b""
        while isinstance(event := await self.event(), h11.Data):
            body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        return head, body

    async def get(self, path: str = "/", *lines: str, method: str = "GET") -> tuple[int, str]:
        """Status and body."""
        await self.send("\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""]))
        head, body = await self.response(method)
        return head.status_code, body.decode()

    async def ended(self) -> bool:
        """Whether the other side closed the connection, without another word."""
        try:
            return await self.stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            return True


def field_of(response: h11.Response, name: str) -> list[str]:
    """The values of a field."""
    return [value.decode() for key, value in response.headers if key.decode() == name.lower()]


def bound() -> tuple[socket.socket, int]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock, sock.getsockname()[1]


async def application(nursery: trio.Nursery, handler: Handler, port: int = 0) -> int:
    """Serve connections with ``handler``; the port."""
    (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")

    async def quiet(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    nursery.start_soon(trio.serve_listeners, quiet, [listener])
    return int(listener.socket.getsockname()[1])


class Echo:
    """An application that answers with what it was asked, and counts."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.heads: list[h11.Request] = []
        self.connections = 0

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        conn = h11.Connection(h11.SERVER)
        while True:
            body = b""
            while not isinstance(event := conn.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    conn.receive_data(bytes(await stream.receive_some(65536)))
                elif isinstance(event, h11.Request):
                    self.heads.append(event)
                    self.requests.append(f"{event.method.decode()} {event.target.decode()}")
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return
            answer = f"{self.requests[-1]} {body.decode()}".encode()
            out = conn.send(h11.Response(status_code=200, headers=[("Content-Length", str(len(answer)))]))
            out += (
                (conn.send(h11.Data(data=answer)) or b"") if not self.requests[-1].startswith("HEAD") else b""
            )
            await stream.send_all(out + conn.send(h11.EndOfMessage()))
            if conn.our_state is not h11.DONE:
                return
            conn.start_next_cycle()


@asynccontextmanager
async def running(
    handler: Handler | int,
    node: FakeNode | None = None,
    tokens: Tokens | None = None,
    tls: TLSConfig | None = None,
    **config: Any,
) -> AsyncIterator[Setup]:
    """A proxy before ``handler``, or before whatever is at that port; ends within SECONDS. ``tls``: between
    the nodes."""
    tls = tls or TLSConfig()
    node = node or FakeNode()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            target = handler if isinstance(handler, int) else await application(nursery, handler)
            tokens = tokens or Tokens()
            forwarder = Forwarder(tokens, ClientTLS(tls), lambda: node.identity)
            await nursery.start(forwarder.run)
            settings = {"addr": ":1", "target": "t:1", "db": "app.db", **config}
            proxy = Proxy(ProxyConfig(**settings), node, Target("127.0.0.1", target), forwarder)
            node.listen(proxy.gate.wake)
            listener = Listener(proxy)
            sock, port = bound()
            api, api_port = bound()
            api.listen()
            nursery.start_soon(listener.serve, [sock])
            app = bare_app(lambda: node.identity)
            inner = Routes(app.asgi_app, {PATH: Entrance(proxy, node)})
            app.asgi_app = TokenWall(inner, tokens)  # type: ignore[method-assign]
            stop = trio.Event()
            await nursery.start(serve, app, [api], stop, ServerTLS(tls) if tls.serves else None)
            await trio.testing.wait_all_tasks_blocked()
            scheme = "https" if tls.serves else "http"
            yield Setup(proxy, listener, node, port, f"{scheme}://127.0.0.1:{api_port}", nursery)
            nursery.cancel_scope.cancel()
