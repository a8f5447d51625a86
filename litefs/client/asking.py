"""Asking the node over its socket: HTTP/1.1 by the standard library."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litefs.client.place import Place
from litefs.errors import DatabaseNotFound, LiteFSError, PeerError, PositionMismatch, WaitTimeout

ANSWER_SECONDS = 10.0
"""How long a node may take to answer, beyond what it was asked to wait."""

_ERRORS = {404: DatabaseNotFound, 409: PositionMismatch, 504: WaitTimeout}


class NodeUnreachable(PeerError):
    """The node cannot be asked: its socket is out of reach, or the node is gone."""


class NoAnswer(NodeUnreachable):
    """The node has its socket, but did not answer, or not in time."""


class LocalConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, reached by way of its directory: its own path may be too long (unix(7))."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """As of http.client. Raises OSError."""
        with socket_path(self._path) as path:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                self.sock.settimeout(self.timeout)
                self.sock.connect(path)
            except BaseException:
                self.sock.close()
                raise


@contextmanager
def socket_path(path: Path) -> Iterator[str]:
    """A short path of a unix socket, good inside the block. Raises OSError."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


@contextmanager
def explained(where: object) -> Iterator[None]:
    """Turns what goes wrong on a connection to ``where`` into NodeUnreachable or NoAnswer."""
    try:
        yield
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise NodeUnreachable(f"{where}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"{where}: {error}") from error


def request(place: Place, method: str, url: str, seconds: float = 0.0) -> bytes:
    """The body of the node's answer, which may take ``seconds``. Raises what the node says as LiteFSError."""
    connection = LocalConnection(place.socket, seconds + ANSWER_SECONDS)
    try:
        with explained(place.socket):
            connection.request(method, url)
            response = connection.getresponse()
            body = response.read()
    finally:
        connection.close()
    require_success(response.status, response.reason, body)
    return body


def require_success(status: int, reason: str, body: bytes) -> None:
    """Raise what the node says as LiteFSError."""
    if status != http.client.OK:
        raise error_of(status, body.decode(errors="replace").strip() or reason)


def error_of(status: int, message: str) -> LiteFSError:
    """The exception for a status that is no success."""
    return _ERRORS.get(status, PeerError)(message)
