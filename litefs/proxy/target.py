"""Connections to the application: pooled, and made as often as it takes while it starts."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable

import trio

from litefs.proxy.forward import Unprocessed
from litefs.proxy.link import Link, TargetFault, client_end

RETRY_SECONDS = 0.1
REFUSED_SECONDS = 30.0
"""Between two attempts to connect to an application that is not there yet, and for how long."""

MAX_IDLE = 256
IDLE_SECONDS = 1.0
"""Connections that are kept for the next request, and for how long. Servers close theirs after two seconds
or more: a request that meets such a close in flight might not be repeated, so none is risked."""


class Target:
    """The application at ``host``:``port``."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host or "localhost"
        self._port = port
        self.authority = f"{f'[{host}]' if ':' in host else self._host}:{port}".encode()
        self._idle: deque[tuple[Link, float]] = deque()
        self._filled = trio.Event()

    async def connect(self, wanted: Callable[[], bool]) -> Link:
        """A connection on which nothing was asked yet, or all was answered. Raises TargetFault; Unprocessed
        if it is not ``wanted`` any more before the application takes connections, or what that raises."""
        now = trio.current_time()
        while self._idle:
            link, since = self._idle.pop()
            if now - since < IDLE_SECONDS and _is_quiet(link):
                return link
            await self.discard(link)
        return Link(await self._open(wanted), client_end())

    async def _open(self, wanted: Callable[[], bool]) -> trio.SocketStream:
        deadline = trio.current_time() + REFUSED_SECONDS
        while True:
            try:
                return await trio.open_tcp_stream(self._host, self._port)
            except OSError as error:
                if not _is_refused(error) or trio.current_time() >= deadline:
                    raise TargetFault(
                        f"Proxy error: cannot connect to the application at {self.authority.decode()} "
                        f"(proxy.target): {error.__cause__ or error}"
                    ) from error
            await trio.sleep(RETRY_SECONDS)
            if not wanted():
                raise Unprocessed(f"the application at {self.authority.decode()} refuses connections")

    async def release(self, link: Link) -> None:
        """Give a connection back, for the next request if it can be used for one."""
        if link.is_reusable and len(self._idle) < MAX_IDLE:
            link.conn.start_next_cycle()
            self._idle.append((link, trio.current_time()))
            self._filled.set()
        else:
            await self.discard(link)

    async def discard(self, link: Link) -> None:
        """Close it as it is."""
        await trio.aclose_forcefully(link.stream)

    async def sweep(self) -> None:
        """Close connections that nobody needs any more; until cancelled."""
        while True:
            if not self._idle:
                self._filled = trio.Event()
                await self._filled.wait()
            await trio.sleep(IDLE_SECONDS)
            while self._idle and trio.current_time() - self._idle[0][1] >= IDLE_SECONDS:
                await self.discard(self._idle.popleft()[0])


def _is_quiet(link: Link) -> bool:
    """Whether nothing has come on an idle connection: what could, is its end."""
    assert isinstance(link.stream, trio.SocketStream)
    poll = select.poll()
    poll.register(link.stream.socket.fileno(), select.POLLIN)
    return not poll.poll(0)


def _is_refused(error: OSError) -> bool:
    """Whether every address of the target refused the connection."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return all(isinstance(one, ConnectionRefusedError) for one in cause.exceptions)
    return isinstance(cause or error, ConnectionRefusedError)
