"""One end of the link: typed messages over a socketpair, and an eventfd as wake-up without payload."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque

import msgspec
import trio

from litefs.link.messages import MAX_MESSAGE, AnyMessage, Message, decode_message

_encoder = msgspec.msgpack.Encoder()

MAX_QUEUED = 10_000
"""Messages waiting because the other end does not read; beyond it the other end is taken for dead."""


class LinkClosed(Exception):
    """The other process is gone (or has not read for very long)."""


class Channel:
    """Send and receive :class:`~litefs.link.messages.Message` values. One task receives; anyone posts."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._raw = sock
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._queue: deque[bytes] = deque()
        self._flushing = trio.Lock()

    def fileno(self) -> int:
        return self._raw.fileno()

    def post(self, message: Message) -> None:
        """Send without waiting; what the socket does not take now leaves with :meth:`flush`.

        Raises LinkClosed.
        """
        data = _encoder.encode(message)
        assert len(data) <= MAX_MESSAGE, f"message of {len(data)} bytes"
        if not self._queue:
            try:
                self._raw.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                pass
            except OSError as exc:
                raise LinkClosed(str(exc)) from exc
        if len(self._queue) >= MAX_QUEUED:
            raise LinkClosed("the other process does not read its messages")
        self._queue.append(data)

    async def flush(self) -> None:
        """Send what :meth:`post` had to queue."""
        async with self._flushing:  # or two tasks would send the same message
            while self._queue:
                try:
                    await self._sock.send(self._queue[0])
                except (OSError, trio.ClosedResourceError) as exc:
                    raise LinkClosed(str(exc)) from exc
                self._queue.popleft()

    async def send(self, message: Message) -> None:
        """Send and wait until the socket took it. Raises LinkClosed."""
        self.post(message)
        await self.flush()

    async def receive(self) -> AnyMessage:
        """The next message. Raises LinkClosed when the other end is gone, FormatError if it is none."""
        try:
            data = await self._sock.recv(MAX_MESSAGE)
        except OSError as exc:
            raise LinkClosed(str(exc)) from exc
        if not data:
            raise LinkClosed("end of stream")
        return decode_message(data)

    def close(self) -> None:
        self._sock.close()


def socketpair() -> tuple[socket.socket, socket.socket]:
    """The link's two ends: datagram borders kept, end of stream seen when a process dies."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Wake:
    """A coalescing wake-up over an eventfd:

    :meth:`signal` never blocks, :meth:`wait` returns after any signal.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd
        os.set_blocking(self.fd, False)

    def signal(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the counter is full: a wake-up is due anyway
            os.eventfd_write(self.fd, 1)

    async def wait(self) -> None:
        while True:
            try:
                os.eventfd_read(self.fd)
                await trio.lowlevel.checkpoint()
                return
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.fd)

    def close(self) -> None:
        os.close(self.fd)
