"""Writes on their way to the primary: over HTTP/2, through the API port of its node, to its application.

What travels in the two bodies of ``POST /proxy`` is HTTP/1.1 itself (application/http, RFC 9112 §10.2), one
request and its response, so that everything of it arrives, upgrades and trailers included. Nothing of the
request is sent before the primary's node has said, by status 200, that it takes it: so whatever goes wrong
until then, it may be sent again. That costs a round trip, and is what lets a planned change fail no request.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio

from litefs.errors import LiteFSError
from litefs.proxy.hop import Hop, HopClosed, HopStream
from litefs.stream.handshake import request_headers
from litefs.stream.protocols import Identity
from litefs.tls import ClientTLS, failure
from litefs.tokens import Tokens, bearer

PATH = "/proxy"
MEDIA_TYPE = "application/http"

CONNECT_SECONDS = 2.0
IDLE_SECONDS = 30.0
"""How long a connection to another node is kept without a request; that node closes it after 60 s."""
PEER_TIMEOUT_MS = 15_000
"""A connection whose bytes stay unacknowledged for this long is dead (TCP_USER_TIMEOUT)."""
KEEPALIVE = (5, 2, 3)
"""And so is one whose peer answers none of 3 probes, 2 s apart, after 5 s of silence."""
FRESH_SECONDS = 0.08
"""Until a failure is this old nobody is tried again."""
MAX_MESSAGE = 1000
"""Bytes of a refusal that are read."""


class Unprocessed(LiteFSError):
    """The request did not reach the primary's application, and will not: it may be sent again."""

    http_status = 503


@dataclass(frozen=True, slots=True)
class Leader:
    """The primary as its replicas know it."""

    hostname: str
    url: str


class Forwarder:
    """Connections to whoever is primary. ``run`` must be running."""

    def __init__(self, tokens: Tokens, tls: ClientTLS, identity: Callable[[], Identity]) -> None:
        self._tokens = tokens
        self._tls = tls
        self._identity = identity
        self._hops: dict[str, list[Hop]] = {}
        """By URL: those that several requests share."""
        self._connecting = trio.Lock()
        self._refusal: tuple[str, float, str] | None = None
        """The last failure of whoever has taken nothing since: URL, time and text."""
        self._probing = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._filled = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the connections; until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                if not self._hops:
                    self._filled = trio.Event()
                    await self._filled.wait()
                await trio.sleep(IDLE_SECONDS / 2)
                self._sweep()

    def _sweep(self) -> None:
        now = trio.current_time()
        for url, hops in tuple(self._hops.items()):
            for hop in tuple(hops):
                if hop.is_over or (hop.is_idle and now - hop.used > IDLE_SECONDS):
                    hop.scope.cancel()
                    hops.remove(hop)
            if not hops:
                del self._hops[url]

    async def open(self, leader: Leader, *, shared: bool) -> HopStream:
        """A byte stream to the application beside ``leader``, which takes a request from us.

        ``shared``: the request is small and will be sent at once. Another one gets a connection of its own:
        while the peer does not read it, it would hold up others of its connection. Raises Unprocessed. Where
        the last one failed, requests are tried one at a time, and what one finds is told to others: the
        thousands that a failover may hold are not to keep two nodes busy with refusals.
        """
        since = trio.current_time()
        if self._refusal is not None and self._refusal[0] == leader.url:
            async with self._probing:
                found = self._refusal
                if found is not None and found[0] == leader.url:
                    if found[1] > since - FRESH_SECONDS:
                        raise Unprocessed(found[2])
                    return await self._tried(leader, shared=shared)
        return await self._tried(leader, shared=shared)

    async def _tried(self, leader: Leader, *, shared: bool) -> HopStream:
        try:
            stream = await self._opened(leader, shared=shared)
        except Unprocessed as error:
            self._refusal = leader.url, trio.current_time(), str(error)
            raise
        self._refusal = None
        return stream

    async def _opened(self, leader: Leader, *, shared: bool) -> HopStream:
        hop = await (self._shared(leader.url) if shared else self._connect(leader.url))
        return await self._admitted(hop, leader.url, shared=shared)

    async def _admitted(self, hop: Hop, url: str, *, shared: bool) -> HopStream:
        try:
            stream = hop.open(self._headers(url))
        except HopClosed as error:
            if not shared:
                hop.scope.cancel()
            raise Unprocessed(f"{url}: {error}") from error
        if not shared:
            stream.owner = hop
        try:
            status = await stream.answered()
            if status != 200:
                raise Unprocessed(await self._reason(stream, url, status))
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise Unprocessed(f"{url}: {error}") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _reason(self, stream: HopStream, url: str, status: int) -> str:
        if status in (401, 403):
            return (
                f"{url}: our token is not for this (status {status}): look at http.auth-token here and there"
            )
        if status == 404:
            return f"{url}: has no proxy: set proxy.target there, too"
        text = b""
        with trio.move_on_after(CONNECT_SECONDS):
            while len(text) < MAX_MESSAGE and (data := await stream.receive_some(MAX_MESSAGE)):
                text += data
        return f"{url}: {text[:MAX_MESSAGE].decode(errors='replace').strip()} (status {status})"

    def _headers(self, url: str) -> list[tuple[str, str]]:
        parts = urlsplit(url)
        headers = [
            (":method", "POST"),
            (":scheme", parts.scheme),
            (":authority", parts.netloc),
            (":path", PATH),
            ("content-type", MEDIA_TYPE),
        ]
        headers += [(name.lower(), value) for name, value in request_headers(self._identity()).items()]
        if (token := self._tokens.own()) is not None:
            headers.append(("authorization", bearer(token)))
        return headers

    async def _shared(self, url: str) -> Hop:
        """Raises Unprocessed."""
        async with self._connecting:
            hops = self._hops.setdefault(url, [])
            hops[:] = [hop for hop in hops if not hop.is_over]
            hop = next((hop for hop in hops if hop.is_usable), None)
            if hop is None:
                hop = await self._connect(url)
                self._hops.setdefault(url, []).append(hop)
                self._filled.set()
            return hop

    async def _connect(self, url: str) -> Hop:
        """Raises Unprocessed."""
        assert self._nursery is not None
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await self._stream(url)
        except trio.TooSlowError:
            raise Unprocessed(f"{url}: no connection within {CONNECT_SECONDS:g} s") from None
        except (OSError, ValueError, trio.BrokenResourceError) as error:
            raise Unprocessed(str(failure(url, error) or f"{url}: cannot connect: {error}")) from error
        hop = Hop(stream)
        self._nursery.start_soon(hop.run)
        try:
            with trio.move_on_after(CONNECT_SECONDS):
                await hop.begun.wait()
                if not hop.is_over:
                    return hop
        except trio.Cancelled:
            hop.scope.cancel()
            raise
        hop.scope.cancel()
        raise Unprocessed(f"{url}: does not speak HTTP/2")

    async def _stream(self, url: str) -> trio.abc.Stream:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        plain = await trio.open_tcp_stream(host, port)
        for option, value in (
            (socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS),
            *zip((socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), KEEPALIVE, strict=True),
        ):
            plain.setsockopt(socket.IPPROTO_TCP, option, value)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if parts.scheme != "https":
            return plain
        context = self._tls.context(url)
        context.set_alpn_protocols(["h2"])
        secure = trio.SSLStream(plain, context, server_hostname=host, https_compatible=True)
        try:
            await secure.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(plain)
            raise
        return secure
