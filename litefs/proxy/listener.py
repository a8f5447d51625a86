"""The proxy's own port: connections of clients, from their first request to the end."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Sequence

import h11
import trio

from litefs.proxy.exchange import respond
from litefs.proxy.fields import Client
from litefs.proxy.link import READ_SIZE, ClientFault, Link, server_end
from litefs.proxy.requests import next_request
from litefs.proxy.service import Proxy, Visit

log = logging.getLogger("litefs.proxy")

MAX_CONNECTIONS = 10_000
"""Connections that are accepted at a time, if this process may have so many files; others wait in the kernel
for one of them to end."""
FINISH_SECONDS = 1.5
"""How long requests may take to end once the proxy is told to stop, tunnels aside."""
LAST_SECONDS = 0.2
"""How long idle connections then may bring one more request, which is answered as their last one."""
LINGER_SECONDS = 1.0
"""How long a client may go on sending after its last answer. Closing a socket with unread bytes resets the
connection, and the client might never read that answer."""


def _room() -> int:
    """How many connections there may be. Each may have one to the application, too; half of the files are for
    the rest of the node, which without one could neither log nor renew its lease."""
    return max(1, min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


class _Admission(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts a connection when there is a slot for it, which that has to release."""

    def __init__(self, inner: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._inner = inner
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        await self._slots.acquire()
        try:
            return await self._inner.accept()
        except BaseException:
            self._slots.release()
            raise

    def close(self) -> None:
        self._inner.socket.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


class Listener:
    """Serves the clients of ``proxy`` on sockets that are bound, and listens no earlier than it serves."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._visits: set[Visit] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self._slots = trio.Semaphore(_room())
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Until :meth:`finish` is over, or until cancelled; closes the sockets."""
        listeners = []
        for sock in sockets:
            sock.listen(socket.SOMAXCONN)
            inner = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            listeners.append(_Admission(inner, self._slots))
        with self._serving:
            async with trio.open_nursery() as clients:
                with self._accepting:
                    try:
                        await trio.serve_listeners(self._client, listeners, handler_nursery=clients)
                    finally:
                        for listener in listeners:
                            listener.close()
                await trio.sleep_forever()

    async def finish(self) -> None:
        """Take no more connections, and return when the requests that there are have been answered. Bounded;
        harmless if repeated."""
        if self._proxy.closing:
            return
        self._proxy.closing = True
        self._accepting.cancel()
        with trio.move_on_after(FINISH_SECONDS):
            await trio.sleep(LAST_SECONDS)
            while not all(visit.is_tunnel for visit in self._visits):
                await self._changed.park()
            await self._proxy.gate.empty()
        self._serving.cancel()

    async def _client(self, stream: trio.SocketStream) -> None:
        front = Link(stream, server_end())
        try:
            await self._requests(front, Client(_peer(stream)))
            await _linger(front)
        except ClientFault as fault:
            await self._complain(front, fault)
        except trio.BrokenResourceError:
            pass
        except Exception:
            # one connection, whatever a client does with it, must not take the node down
            log.exception("a connection of the proxy ended with an unexpected error")
        finally:
            self._slots.release()
            await trio.aclose_forcefully(stream)

    async def _requests(self, front: Link, client: Client) -> None:
        first = True
        while (incoming := await next_request(front, self._proxy.times, first=first)) is not None:
            first = False
            visit = Visit(front, incoming, client)
            self._visits.add(visit)
            try:
                if not await self._proxy.answer(visit):
                    return
            finally:
                self._visits.discard(visit)
                self._changed.unpark_all()
            front.conn.start_next_cycle()

    async def _complain(self, front: Link, fault: ClientFault) -> None:
        """Say what was wrong with a request, if that can still be said."""
        log.debug("proxy: %s", fault)
        if front.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        try:
            with trio.move_on_after(LINGER_SECONDS):
                await respond(front, fault.http_status, str(fault), [(b"Connection", b"close")])
            await _linger(front)
        except (ClientFault, trio.BrokenResourceError):
            pass


async def _linger(front: Link) -> None:
    """Close a connection so that the client gets the answer though it may still be sending."""
    if front.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED) and not front.conn.trailing_data[0]:
        return
    with trio.move_on_after(LINGER_SECONDS):
        await front.stream.send_eof()
        while await front.stream.receive_some(READ_SIZE):
            pass


def _peer(stream: trio.SocketStream) -> str:
    try:
        return str(stream.socket.getpeername()[0]).removeprefix("::ffff:")
    except OSError:
        return "unknown"
