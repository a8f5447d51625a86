"""How connections to a port that speaks TLS begin: the handshake, or a word to who speaks something else."""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Any, TypeAlias, cast

import trio

from litefs.tls import ServerTLS

HANDSHAKE_SECONDS = 10.0
LINGER_SECONDS = 1.0
"""How long a peer that is sent away may go on sending. Closing a socket with unread bytes resets the
connection, and the peer might never read why."""

SPEAKS_TLS = b"HTTP/1.1 400 This port speaks TLS: use https\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

_HANDSHAKE = 0x16
"""First byte of a TLS record that begins a connection (RFC 8446 §5.1)."""

SecureStream: TypeAlias = "trio.SSLStream[trio.SocketStream]"

logger = logging.getLogger(__name__)


class _Recorded:
    """Stands for a context where trio makes a connection's TLS object, and keeps hold of what that sends: an
    alert, with which OpenSSL says why it fails, is left lying there by trio."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.outgoing = ssl.MemoryBIO()

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **options: Any) -> ssl.SSLObject:
        self.outgoing = outgoing
        return self._context.wrap_bio(incoming, outgoing, **options)


async def secured(stream: trio.SocketStream, tls: ServerTLS) -> SecureStream | None:
    """``stream`` after its handshake, bounded in time; None, and the stream is closed, if that fails."""
    recorded, peer = _Recorded(tls.context()), _peer(stream)
    farewell = b""
    with trio.move_on_after(HANDSHAKE_SECONDS):
        try:
            first = await stream.socket.recv(1, socket.MSG_PEEK)
            if not first or first[0] == _HANDSHAKE:
                secure: SecureStream = trio.SSLStream(
                    stream, cast("ssl.SSLContext", recorded), server_side=True, https_compatible=True
                )
                await secure.do_handshake()
                return secure
            farewell = SPEAKS_TLS
        except trio.BrokenResourceError as error:
            logger.info("http: %s: TLS: %s", peer, error.__cause__ or error)
            farewell = recorded.outgoing.read()
        except (OSError, trio.ClosedResourceError) as error:
            logger.debug("http: %s: %s", peer, error)
    await _close(stream, farewell)
    return None


async def _close(stream: trio.SocketStream, farewell: bytes) -> None:
    with trio.move_on_after(LINGER_SECONDS):
        try:
            if farewell:
                await stream.send_all(farewell)
                await stream.send_eof()
                while await stream.receive_some(1 << 16):
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    await trio.aclose_forcefully(stream)


def _peer(stream: trio.SocketStream) -> str:
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return "somebody"
