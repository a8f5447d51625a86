"""The listener: Hypercorn on trio, HTTP/1.1 and HTTP/2 over TLS (ALPN) or plaintext TCP (prior knowledge or
upgrade), and over a unix socket for the clients of this host."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from quart_trio import QuartTrio

from litefs.errors import ConfigError, LiteFSError
from litefs.server import http2
from litefs.server.secure import SecureStream, secured
from litefs.tls import ServerTLS

GRACE_SECONDS = 0.5
"""Requests in flight have this long to finish after the server was told to stop."""
PEER_TIMEOUT_MS = 15_000
"""A connection whose data stays unacknowledged for this long is dead (TCP_USER_TIMEOUT)."""
IDLE_SECONDS = 60
"""A connection without a request for this long is closed."""
BACKLOG = 128

logger = logging.getLogger(__name__)


def parse_address(address: str) -> tuple[str, int]:
    """``[HOST]:PORT`` or ``HOST:PORT``; an empty host means all interfaces. Raises ConfigError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"http.addr: not an address: {address!r}, expected HOST:PORT or :PORT")
    return host.strip("[]"), int(port)


def bind(address: str) -> list[socket.socket]:
    """Listening sockets for ``address``, IPv6 and IPv4 where the host is empty.

    Bound before anything else starts, so that a second node fails early. Raises LiteFSError naming the
    address.
    """
    host, port = parse_address(address)
    if not host and socket.has_dualstack_ipv6():
        try:
            return [_listen(socket.AF_INET6, "::", port, dual=True)]
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise _cannot(address, error) from error
    try:
        family, _, _, _, target = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return [_listen(socket.AddressFamily(family), str(target[0]), port)]
    except OSError as error:
        raise _cannot(address, error) from error


def bind_local(path: Path, mode: int, uid: int | None = None, gid: int | None = None) -> socket.socket:
    """A listening unix socket at ``path``, in place of one that a dead node left, for whoever may write it.

    The caller holds the lock of the data directory. Raises LiteFSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        # by the descriptor, since a socket's own path is limited to 107 bytes (unix(7))
        sock.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.chmod(path, mode)
        if uid is not None or gid is not None:
            os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise LiteFSError(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.close(directory)
    return sock


def _cannot(address: str, error: OSError) -> LiteFSError:
    hint = {
        errno.EADDRINUSE: "stop what listens there (ss -ltnp shows it), or choose another port in http.addr",
        errno.EACCES: "ports below 1024 are for root; choose another in http.addr",
    }.get(error.errno or 0, "http.addr has to be an address of this machine, or only :PORT")
    return LiteFSError(f"cannot listen on {address}: {error.strerror or error}; {hint}")


def _listen(family: socket.AddressFamily, host: str, port: int, *, dual: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def hypercorn_config() -> Config:
    """Hypercorn's settings: nothing that cuts a long stream, no access log, our own logger for errors."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("litefs.http")
    config.keep_alive_timeout = IDLE_SECONDS
    config.keep_alive_max_requests = 1 << 62
    config.max_app_queue_size = 4
    config.include_server_header = False
    config.graceful_timeout = GRACE_SECONDS
    return config


async def serve(
    app: QuartTrio,
    sockets: list[socket.socket],
    stop: trio.Event,
    tls: ServerTLS | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until ``stop`` is set or the task is cancelled; closes the sockets.

    With ``tls`` TCP connections speak nothing else; unix sockets are of this host and never do.
    After ``stop`` requests in flight get GRACE_SECONDS, then their connections are closed by force:
    Hypercorn shields its sends, so a peer that stopped reading would otherwise hold the node up.
    """
    http2.install()
    config, wrapper = hypercorn_config(), ASGIWrapper(app)
    state = LifespanState({})
    context = WorkerContext(None)
    connections = _Connections(wrapper, config, context, state, tls)
    async with trio.open_nursery() as lifespan_nursery:
        lifespan = Lifespan(wrapper, config, state)
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
        try:
            async with trio.open_nursery() as handlers, trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(connections.accept, listener, handlers)
                task_status.started()
                try:
                    await stop.wait()
                finally:
                    accepting.cancel_scope.cancel()
                    await context.terminated.set()
                    connections.close_soon(handlers)
        finally:
            for listener in listeners:
                listener.socket.close()
            lifespan_nursery.cancel_scope.cancel()


class _Connections:
    """Accepts connections and can close all of them."""

    def __init__(
        self,
        app: ASGIWrapper,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        tls: ServerTLS | None,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._state = state
        self._tls = tls
        self._streams: set[trio.SocketStream] = set()
        self._left = trio.lowlevel.ParkingLot()

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    @contextmanager
    def _registered(self, stream: trio.SocketStream) -> Iterator[None]:
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._left.unpark_all()

    async def _serve(self, stream: trio.SocketStream) -> None:
        with self._registered(stream):
            state = ConnectionState(self._state)
            try:
                ready: trio.SocketStream | SecureStream | None = stream
                if self._tls is not None and stream.socket.family != socket.AF_UNIX:
                    ready = await secured(stream, self._tls)
                if ready is not None:
                    await TCPServer(self._app, self._config, self._context, state, cast("Any", ready))
            except Exception:
                # one connection, whatever a peer does with it, must not take the node down
                logger.exception("a connection ended with an unexpected error")

    def close_soon(self, nursery: trio.Nursery) -> None:
        """Close what is still open after GRACE_SECONDS, whatever it waits for."""
        nursery.start_soon(self._close_late, nursery)

    async def _close_late(self, nursery: trio.Nursery) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(GRACE_SECONDS):
                while self._streams:
                    await self._left.park()
            for stream in tuple(self._streams):
                stream.socket.close()
        nursery.cancel_scope.cancel()
