"""One connection that speaks HTTP/1.1: h11 has the protocol, a byte stream the bytes.

A fault of the client and one of the application are different errors, whatever caused them.
"""

from __future__ import annotations

import math
import select

import h11
import trio

from litefs.errors import LiteFSError

READ_SIZE = 64 << 10
"""Bytes that are read at a time, and so about what one direction of a request keeps in memory."""

MAX_HEAD = 64 << 10
"""Bytes of a message's head, and of one chunk's head or of the trailers."""

Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]

Duplex = trio.abc.HalfCloseableStream
"""What carries the bytes: a socket, or a stream of an HTTP/2 connection."""


class ClientFault(LiteFSError):
    """The client is gone, too slow, or does not speak HTTP; ``http_status`` is what it is to be told."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.http_status = status


class TargetFault(LiteFSError):
    """The application, or the primary's node, does not answer, or not in HTTP; what was asked of it may have
    happened."""

    http_status = 502


def server_end() -> h11.Connection:
    """The protocol towards a client."""
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)


def client_end() -> h11.Connection:
    """The protocol towards an application."""
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)


class Link:
    """A connection with its protocol state. One task may read while another one sends."""

    def __init__(self, stream: Duplex, conn: h11.Connection) -> None:
        """As the server's end it raises ClientFault, else TargetFault."""
        self.stream = stream
        self.conn = conn
        self._serves = conn.our_role is h11.SERVER
        self.read_deadline = math.inf
        """Until when bytes that are waited for have to come (trio's clock)."""
        self.is_head = False
        """Whether the request that is being answered is a HEAD."""
        self._eof = False

    def _fault(self, message: str, status: int) -> ClientFault | TargetFault:
        return ClientFault(message, status) if self._serves else TargetFault(f"Proxy error: {message}")

    def next_event(self) -> Event:
        """What came next, as far as it was read. Raises ClientFault or TargetFault."""
        try:
            return self.conn.next_event()
        except h11.RemoteProtocolError as error:
            raise self._fault(str(error), error.error_status_hint) from error

    async def fill(self) -> None:
        """Read some bytes. Raises ClientFault or TargetFault."""
        if not await self.fill_until(self.read_deadline):
            raise self._fault("timeout", 408)

    async def fill_until(self, deadline: float) -> bool:
        """Read some bytes; False if none came by then. Raises ClientFault or TargetFault."""
        try:
            with trio.CancelScope(deadline=deadline) as scope:
                data = await self.stream.receive_some(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._fault(f"connection lost: {error}", 400) from error
        if scope.cancelled_caught:
            return False
        self.received(data)
        return True

    def received(self, data: bytes | bytearray) -> None:
        """Take in bytes that were read, none at the end."""
        if not self._eof:
            self._eof = not data
            self.conn.receive_data(bytes(data))

    async def send(self, data: bytes) -> None:
        """Raises ClientFault or TargetFault."""
        if not data:
            return
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._fault(f"connection lost: {error}", 400) from error

    @property
    def is_reusable(self) -> bool:
        """Whether both sides are done with a request, and another one may follow."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE

    def has_left(self) -> bool:
        """Whether the peer is known to have ended its side, read or not."""
        if not isinstance(self.stream, trio.SocketStream):
            return False
        poll = select.poll()
        poll.register(self.stream.socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    async def gone(self) -> None:
        """Return when the peer has left. Bytes that come meanwhile are for the next request: then this never
        returns, so that a client cannot fill our memory. Raises nothing."""
        if self.conn.trailing_data[0]:
            await trio.sleep_forever()
        try:
            data = await self.stream.receive_some(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        self.received(data)
        if data:
            await trio.sleep_forever()
