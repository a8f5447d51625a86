"""The functions of :mod:`litefs.client` for trio and for asyncio, whichever runs: they do not block its loop,
and can be cancelled.

A request is HTTP/1.0, whose answer ends with the connection; the standard library reads its head.
"""

from __future__ import annotations

import http.client
import io
import json
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from litefs.client import halting, reading
from litefs.client.asking import ANSWER_SECONDS, NoAnswer, NodeUnreachable, explained, require_success
from litefs.client.feed import (
    DISCONNECTED,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MAX_LINE,
    SILENT_SECONDS,
    Event,
    Refused,
    Source,
    refuse,
)
from litefs.client.loops import Stream, bounded, connect, finish, in_thread, sleep
from litefs.client.place import NotOnMount, Place, StrPath, locate
from litefs.errors import LiteFSError, PeerError
from litefs.types import Position

__all__ = ["Events", "events", "halt", "is_primary", "lag", "position", "primary", "request", "wait"]

MAX_ANSWER = 1 << 20
"""Bytes; what is asked here has short answers."""


async def position(path: StrPath) -> Position:
    """As :func:`litefs.client.position`."""
    return await in_thread(lambda: reading.position(path))


async def primary(path: StrPath) -> str | None:
    """As :func:`litefs.client.primary`."""
    return await in_thread(lambda: reading.primary(path))


async def lag(path: StrPath) -> float | None:
    """As :func:`litefs.client.lag`."""
    return await in_thread(lambda: reading.lag(path))


async def is_primary(path: StrPath) -> bool:
    """As :func:`litefs.client.is_primary`."""
    return bool(json.loads(await request(await in_thread(lambda: locate(path)), "GET", "/info"))["isPrimary"])


async def wait(path: StrPath, target: Position | int, timeout: float = 5.0) -> Position:  # noqa: ASYNC109
    """As :func:`litefs.client.wait`."""
    try:
        place = await in_thread(lambda: locate(path))
        seconds = reading.wait_seconds(timeout)
        answer = await request(place, "GET", reading.wait_url(place, target, seconds), seconds)
        return Position.parse(answer.decode())
    except NoAnswer:
        raise
    except (NodeUnreachable, NotOnMount):
        return await in_thread(lambda: reading.wait(path, target, timeout))


@asynccontextmanager
async def halt(path: StrPath) -> AsyncIterator[None]:
    """As :func:`litefs.client.halt`. It is given up also if the block is cancelled."""
    lock, held = halting.halt(path), False

    def enter() -> None:
        nonlocal held
        lock.__enter__()
        held = True

    try:
        await finish(enter)
        yield
    except BaseException:
        raised = sys.exc_info()
        if held:
            await finish(lambda: lock.__exit__(*raised))
        raise
    await finish(lambda: lock.__exit__(None, None, None))


async def request(place: Place, method: str, url: str, seconds: float = 0.0) -> bytes:
    """The body of the node's answer, which may take ``seconds``. Raises what the node says as LiteFSError."""
    with explained(place.socket):
        async with bounded(seconds + ANSWER_SECONDS):
            stream = await connect(place)
            try:
                await stream.send(_head(method, url, {}))
                data = bytearray()
                while piece := await stream.receive():
                    data += piece
                    if len(data) > MAX_ANSWER:
                        raise http.client.HTTPException("the answer is too long")
            finally:
                stream.close()
        response = _response(bytes(data))
        body = response.read()
    require_success(response.status, response.reason, body)
    return body


def _head(method: str, url: str, headers: dict[str, str]) -> bytes:
    fields = {"Host": "localhost", "Content-Length": "0", **headers}
    lines = [f"{method} {url} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Received:
    """What http.client wants of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def _response(data: bytes) -> http.client.HTTPResponse:
    """Raises HTTPException."""
    response = http.client.HTTPResponse(_Received(data))  # type: ignore[arg-type]
    response.begin()
    return response


class Events:
    """As :class:`litefs.client.Events`, an asynchronous iterator and context manager."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stream: Stream | None = None
        self._buffer = bytearray()
        self._pause, self._told = 0.0, False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __aenter__(self) -> Events:
        """Raises NotOnMount if the path is on no mount now, OSError."""
        if not self._source.is_url:
            await in_thread(lambda: locate(self._source.where))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._buffer.clear()

    async def __anext__(self) -> Event:
        """Raises LiteFSError if the node refuses (a wrong token): final."""
        while True:
            try:
                if self._stream is None:
                    await sleep(self._pause)
                    try:
                        await self._connect()
                    except BaseException:  # cancelled, too: what comes next there would be half a head
                        self.close()
                        raise
                event = await self._next()
            except Refused as error:
                self.close()
                raise error.reason from None
            except (OSError, http.client.HTTPException, LiteFSError) as error:
                self.close()
                self._pause = min(2 * self._pause, LONGEST_PAUSE) or FIRST_PAUSE
                if not self._told:
                    self._told = True
                    return Event(DISCONNECTED, data={"reason": str(error)})
            else:
                self._pause, self._told = 0.0, False
                return event

    async def _connect(self) -> None:
        url, headers = self._source.request
        async with bounded(SILENT_SECONDS):
            self._stream = await connect(self._source)
            await self._stream.send(_head("GET", url, headers))
            while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                await self._more()
        response = _response(bytes(self._buffer[: end + 4]))
        if response.status != http.client.OK:
            refuse(response.status, response.reason)
        del self._buffer[: end + 4]

    async def _next(self) -> Event:
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                if line.strip():
                    return Event.parse(line)
            else:
                async with bounded(SILENT_SECONDS):
                    await self._more()

    async def _more(self) -> None:
        assert self._stream is not None
        piece = await self._stream.receive()
        if not piece or len(self._buffer) > MAX_LINE:
            raise PeerError("the node ended it")
        self._buffer += piece


def events(
    where: StrPath,
    *,
    databases: Sequence[str] = (),
    pages: bool = False,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Events:
    """As :func:`litefs.client.events`."""
    return Events(Source(where, databases, pages, token, tls))
