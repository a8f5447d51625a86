"""What trio and asyncio do differently: connections, time limits, threads."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

from litefs.client.asking import socket_path
from litefs.client.feed import Source
from litefs.client.place import Place, locate

if TYPE_CHECKING:
    import trio

T = TypeVar("T")

PIECE = 64 << 10
"""Bytes read at a time."""


def in_trio() -> bool:
    """Whether trio runs the caller; else asyncio does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class Stream(Protocol):
    """An open connection. Both calls raise OSError."""

    async def send(self, data: bytes) -> None:
        """Send all of it."""

    async def receive(self) -> bytes:
        """What comes next; empty at the end."""

    def close(self) -> None:
        """At once."""


class _TrioStream:
    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        import trio

        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise ConnectionResetError(str(error.__cause__ or error)) from error

    async def receive(self) -> bytes:
        import trio

        try:
            return bytes(await self._stream.receive_some(PIECE))
        except trio.BrokenResourceError as error:
            raise ConnectionResetError(str(error.__cause__ or error)) from error

    def close(self) -> None:
        import trio

        stream = self._stream
        socket = (stream if isinstance(stream, trio.SocketStream) else stream.transport_stream).socket
        socket.close()


class _AsyncioStream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> bytes:
        return await self._reader.read(PIECE)

    def close(self) -> None:
        self._writer.transport.abort()


async def connect(where: Place | Source) -> Stream:
    """Connect to a node. Raises NotOnMount, OSError."""
    if isinstance(where, Source):
        if where.is_url:
            return await _connect_url(os.fspath(where.where), where.tls)
        path_on_mount = where.where
        place = await in_thread(lambda: locate(path_on_mount))
    else:
        place = where
    with socket_path(place.socket) as path:
        if not in_trio():
            return _AsyncioStream(*await asyncio.open_unix_connection(path))
        import trio

        socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        try:
            await socket.connect(path)
        except BaseException:
            socket.close()
            raise
        return _TrioStream(trio.SocketStream(socket))


async def _connect_url(url: str, tls: ssl.SSLContext | None) -> Stream:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    if not in_trio():
        context = (tls or True) if secure else None
        return _AsyncioStream(*await asyncio.open_connection(host, port, ssl=context))
    import trio

    if secure:
        return _TrioStream(
            await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True, ssl_context=tls)
        )
    return _TrioStream(await trio.open_tcp_stream(host, port))


@asynccontextmanager
async def bounded(seconds: float) -> AsyncIterator[None]:
    """Give the block so long. Raises TimeoutError."""
    if not in_trio():
        async with asyncio.timeout(seconds):
            yield
        return
    import trio

    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


async def sleep(seconds: float) -> None:
    """Of the loop that runs."""
    if not in_trio():
        await asyncio.sleep(seconds)
        return
    import trio

    await trio.sleep(seconds)


async def in_thread(call: Callable[[], T]) -> T:
    """``call()`` in a thread, which goes on by itself if this is cancelled."""
    if not in_trio():
        return await asyncio.to_thread(call)
    import trio

    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


async def finish(call: Callable[[], object]) -> None:
    """``call()`` in a thread, to its end, also while this is being cancelled."""
    if in_trio():
        import trio

        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(call)
        return
    running, cancelled = asyncio.ensure_future(asyncio.to_thread(call)), None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    running.result()
    if cancelled is not None:
        raise cancelled
