"""HTTP/2 client for another node: opens a stream, and tells every way in which that can fail apart."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

import trio

from litefs.cluster.probe import describe, speaks_something_else
from litefs.config_http import TLSConfig
from litefs.errors import ClusterMismatch, FormatError, LiteFSError, NotTrusted, PeerError, ProtocolMismatch
from litefs.meters import METERS
from litefs.stream.acks import HEADER_STREAM_ID, Ack, AckAnswer, decode_answer, encode
from litefs.stream.handshake import (
    FILTER,
    HEADER_LIMITED,
    HEADER_TAILS,
    MAX_POSITION_MAP,
    decode_positions,
    encode_positions,
    format_node_id,
    parse_headers,
    request_headers,
)
from litefs.stream.protocols import Identity
from litefs.tls import ClientTLS, failure
from litefs.tokens import Tokens, bearer
from litefs.types import Point

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""From the request to the headers of the response."""
READ_IDLE_SECONDS = 5.0
"""A primary sends a heartbeat each second; without any byte for this long it is taken for dead."""
MAX_ERROR_BODY = 4096
BODY_PIECE = 256 << 10
"""Bytes of a request body that are read from their file at a time."""


class Refused(PeerError):
    """The peer answered with an error; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TailsWanted(Refused):
    """The primary takes back what it lost; ``after``: where its databases are."""

    def __init__(self, message: str, status: int, after: Mapping[str, Point]) -> None:
        super().__init__(message, status)
        self.after = after


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How this node meets others: the token that it shows, whom it trusts, the databases that it asks for (as
    patterns; none: all), and whether it has to be given all of them, as a candidate has."""

    tokens: Tokens = field(default_factory=Tokens)
    tls: ClientTLS = field(default_factory=lambda: ClientTLS(TLSConfig()))
    databases: tuple[str, ...] = ()
    candidate: bool = False


class Peer:
    """A node at ``url`` (``http://host:port`` or ``https://``); a context that holds one connection."""

    def __init__(
        self, url: str, settings: PeerSettings | None = None, *, read_idle: float = READ_IDLE_SECONDS
    ) -> None:
        self.url = url.rstrip("/")
        self.settings = settings or PeerSettings()
        self.read_idle = read_idle
        self.stream_id = secrets.randbits(64)
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Peer:
        import httpx  # a primary never needs it: 10 MB less in an idle node

        token = self.settings.tokens.own()
        self._client = httpx.AsyncClient(
            headers={} if token is None else {"Authorization": bearer(token)},
            verify=self.settings.tls.context(self.url),
            http1=False,
            http2=True,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
            follow_redirects=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        with trio.move_on_after(1) as scope:
            scope.shield = True
            with suppress(PeerError), self.translated():
                await self._client.aclose()

    def stream(
        self, identity: Identity, positions: Mapping[str, Point]
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Ask for what follows ``positions``: a context that gives the chunks of the response.

        Raises PeerError (unreachable, silent, broken off), Refused (its own words), TailsWanted,
        ClusterMismatch, ProtocolMismatch (it speaks something else), NotTrusted (certificate, token).
        """
        return self._stream(identity, positions)

    @asynccontextmanager
    async def _stream(
        self, identity: Identity, positions: Mapping[str, Point]
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        assert self._client is not None
        request = self._client.build_request(
            "POST",
            f"{self.url}/stream",
            params={FILTER: self.settings.databases},
            content=encode_positions(positions),
            headers=self._headers(identity),
        )
        response = await self._answer(request)
        try:
            await self._check(response)
            async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
                yield _Watched(chunks, self)
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await response.aclose()

    async def acknowledge(self, identity: Identity, ack: Ack) -> AckAnswer:
        """Tell the primary what this replica holds of the stream that is open.

        Raises PeerError, Refused (the stream is not the present one, or its primary is none any more),
        FormatError.
        """
        assert self._client is not None
        try:
            with self.translated(), trio.fail_after(ANSWER_SECONDS):
                response = await self._client.post(
                    f"{self.url}/stream/ack", content=encode(ack), headers=self._headers(identity)
                )
        except trio.TooSlowError:
            raise PeerError(f"{self.url}: no answer within {ANSWER_SECONDS:g} s") from None
        if response.status_code != 200:
            message = response.text[:MAX_ERROR_BODY].strip() or response.reason_phrase
            raise Refused(f"{self.url}: {message} (status {response.status_code})", response.status_code)
        return decode_answer(response.content)

    def _headers(self, identity: Identity) -> dict[str, str]:
        return request_headers(identity) | {HEADER_STREAM_ID: format_node_id(self.stream_id)}

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        assert self._client is not None
        try:
            with self.translated(), trio.fail_after(ANSWER_SECONDS):
                return await self._client.send(request, stream=True)
        except trio.TooSlowError:
            error = PeerError(f"{self.url}: no answer within {ANSWER_SECONDS:g} s")
        except PeerError as caught:
            error = caught
        other = await speaks_something_else(self.url)
        if other is not None:
            raise ProtocolMismatch(f"{self.url}: {describe(other)}") from error
        raise error

    async def ask(
        self,
        method: str,
        path: str,
        identity: Identity,
        *,
        body: Path | AsyncIterable[bytes] | None = None,
        into: Path | None = None,
        seconds: float,
    ) -> bytes:
        """The answer of ``method`` on ``path`` (with its query), to which ``body`` is sent, a file or pieces
        as they come; nothing if it goes ``into`` a file.

        Bounded by ``seconds``. Raises PeerError (no answer: what was asked may have happened), Refused,
        ClusterMismatch, ProtocolMismatch, OSError.
        """
        assert self._client is not None
        headers = request_headers(identity)
        content = _pieces(body) if isinstance(body, Path) else body
        if isinstance(body, Path):
            headers["Content-Length"] = str((await trio.Path(body).stat()).st_size)
        request = self._client.build_request(method, self.url + path, content=content, headers=headers)
        try:
            with self.translated(), trio.fail_after(seconds):
                response = await self._client.send(request, stream=True)
                try:
                    if response.status_code != 200:
                        message = await self._error_text(response)
                        self._check_token(response.status_code)
                        raise Refused(f"{self.url}: {message}", response.status_code)
                    if into is None:
                        return await response.aread()
                    async with await trio.open_file(into, "wb") as file:
                        async for data in response.aiter_bytes():
                            await file.write(data)
                    return b""
                finally:
                    await response.aclose()
        except trio.TooSlowError:
            raise PeerError(f"{self.url}: no answer within {seconds:g} s") from None

    async def _check(self, response: httpx.Response) -> None:
        if HEADER_TAILS in response.headers:
            await self._check_tails(response)
        if response.status_code != 200:
            message = await self._error_text(response)
            if response.status_code == ClusterMismatch.http_status:
                raise ClusterMismatch(f"{self.url}: {message}")
            self._check_token(response.status_code)
            raise Refused(f"{self.url}: {message} (status {response.status_code})", response.status_code)
        try:
            parse_headers(response.headers.get)
        except LiteFSError as error:
            raise ProtocolMismatch(f"{self.url}: {error}") from error
        limited = response.headers.get(HEADER_LIMITED)
        if limited is not None and self.settings.candidate:
            raise NotTrusted(
                f"{self.url}: our token is {limited} there, not one for all databases; a candidate needs "
                "such a one (http.auth-token), or lease.candidate: false"
            )

    async def _check_tails(self, response: httpx.Response) -> None:
        body = await self._error_body(response, MAX_POSITION_MAP)
        try:
            after = decode_positions(body)
        except FormatError as error:
            raise ProtocolMismatch(f"{self.url}: {error}") from error
        message = f"{self.url}: the primary takes back what it lost"
        raise TailsWanted(message, response.status_code, after)

    def _check_token(self, status: int) -> None:
        """Raises NotTrusted if that is what the status says."""
        if status == 403:
            hint = "our token is not for this (status 403): it has a list of databases there, in http.tokens"
        elif status != 401:
            return
        elif self.settings.tokens.own() is None:
            hint = "wants a token (status 401): set http.auth-token to one that it accepts"
        else:
            hint = "does not accept our token (status 401): compare http.auth-token here and there"
        raise NotTrusted(f"{self.url}: {hint}")

    async def _error_text(self, response: httpx.Response) -> str:
        body = await self._error_body(response, MAX_ERROR_BODY)
        return body.decode(errors="replace").strip() or response.reason_phrase

    async def _error_body(self, response: httpx.Response, limit: int) -> bytes:
        body = b""
        with self.translated(), trio.move_on_after(ANSWER_SECONDS):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > limit:
                    break
        return body[:limit]

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the errors of httpx, httpcore, h2 and TLS into ours."""
        import h2.exceptions
        import httpx

        try:
            yield
        except httpx.NetworkError as error:
            if (found := failure(self.url, error)) is not None:
                raise found from error
            words = f"cannot connect: {error}" if isinstance(error, httpx.ConnectError) else repr(error)
            raise PeerError(f"{self.url}: {words}") from error
        except httpx.ConnectTimeout as error:
            raise PeerError(f"{self.url}: cannot connect: {error}") from error
        except (httpx.LocalProtocolError, h2.exceptions.H2Error) as error:
            raise ProtocolMismatch(f"{self.url}: does not speak HTTP/2: {error}") from error
        except httpx.RemoteProtocolError as error:
            raise PeerError(f"{self.url}: the peer closed the connection: {error}") from error
        except (httpx.TransportError, OSError) as error:
            raise PeerError(f"{self.url}: {error!r}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise PeerError(f"{self.url}: not a URL of a node: {error}") from error
        except (ValueError, LookupError, RuntimeError) as error:
            # a mistake of httpcore's: after a cancelled request it may count streams twice, for example
            raise PeerError(f"{self.url}: the connection cannot be used any more: {error!r}") from error


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while data := await file.read(BODY_PIECE):
            yield data


class _Watched:
    """Chunks of a response, each awaited for a bounded time."""

    def __init__(self, chunks: AsyncIterator[bytes], peer: Peer) -> None:
        self._chunks = chunks
        self._peer = peer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with self._peer.translated():
            try:
                with trio.fail_after(self._peer.read_idle):
                    chunk = await anext(self._chunks)
            except trio.TooSlowError:
                raise PeerError(f"{self._peer.url}: silent for {self._peer.read_idle:g} s") from None
        METERS.received_bytes += len(chunk)
        return chunk
