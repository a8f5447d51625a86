"""What happens on a node, as it happens: ``GET /events``, connected again whenever the connection breaks."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from litefs.client.asking import LocalConnection, error_of
from litefs.client.place import StrPath, locate
from litefs.errors import LiteFSError, PeerError
from litefs.types import Position

SILENT_SECONDS = 15.0
"""A connection on which nothing comes for so long is dead: a node sends an empty line each 5 s at least."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two attempts to connect: at first, and at last."""

DISCONNECTED = "disconnected"
"""The type of the event that we make when a connection breaks, with its ``reason``. What happened until the
next ``init`` is not told; the ``positions`` of that say how far the databases are then."""

MAX_LINE = 1 << 24
"""Bytes; a node's lines are shorter, also the first, which names every database."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: docs/http-api.md lists types and data. ``db``: the database that it is about, or empty."""

    type: str
    db: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def position(self) -> Position | None:
        """Where ``tx`` and ``snapshot`` led; None for other types."""
        if "txID" not in self.data or "postApplyChecksum" not in self.data:
            return None
        return Position(int(self.data["txID"], 16), int(self.data["postApplyChecksum"], 16))

    @classmethod
    def parse(cls, line: bytes) -> Event:
        """One line that is not empty. Raises PeerError."""
        try:
            found = json.loads(line)
            return cls(found["type"], found.get("db", ""), found.get("data", {}))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PeerError(f"not an event: {line[:80]!r}") from None


@dataclass(frozen=True, slots=True)
class Source:
    """Where events come from: ``where`` is a path on the mount, or the URL of a node, which may want a
    ``token``, or certificates (``tls``). ``databases``: patterns of names, none for all."""

    where: StrPath
    databases: Sequence[str] = ()
    pages: bool = False
    token: str | None = None
    tls: ssl.SSLContext | None = None

    @property
    def request(self) -> tuple[str, dict[str, str]]:
        """The path to ask for, and headers."""
        query = urlencode([("db", name) for name in self.databases] + [("pages", "1")] * self.pages)
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        return f"/events?{query}" if query else "/events", headers

    @property
    def is_url(self) -> bool:
        return os.fspath(self.where).startswith(("http://", "https://"))

    def connection(self) -> http.client.HTTPConnection:
        """Not yet connected. Raises NotOnMount, OSError."""
        if not self.is_url:
            return LocalConnection(locate(self.where).socket, SILENT_SECONDS)
        url = urlsplit(os.fspath(self.where))
        if url.scheme == "https":
            return http.client.HTTPSConnection(
                url.hostname or "", url.port, timeout=SILENT_SECONDS, context=self.tls
            )
        return http.client.HTTPConnection(url.hostname or "", url.port, timeout=SILENT_SECONDS)


class Events:
    """The events of a node without end, as an iterator that blocks; a context manager. One thread iterates,
    any may ``close``.

    A connection that breaks, or cannot be made, is begun anew for as long as it takes: a ``disconnected``
    event says so once, and the node's ``init`` when it is there again.
    """

    def __init__(self, source: Source) -> None:
        """Raises NotOnMount if ``where`` is on no mount now, OSError."""
        if not source.is_url:
            locate(source.where)
        self._source = source
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """Blocks. StopIteration once closed; LiteFSError if the node refuses (a wrong token): final."""
        return next(self._events)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration, wherever it is. Harmless if repeated."""
        self._closed.set()
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> Iterator[Event]:
        pause, told = FIRST_PAUSE, False
        while not self._closed.is_set():
            reason = "the node ended it"
            try:
                for event in self._connected():
                    pause, told = FIRST_PAUSE, False
                    yield event
            except (OSError, http.client.HTTPException, LiteFSError) as error:
                if isinstance(error, Refused):
                    raise error.reason from None
                reason = str(error)
            if self._closed.is_set():
                return
            if not told:
                told = True
                yield Event(DISCONNECTED, data={"reason": reason})
            self._closed.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _connected(self) -> Iterator[Event]:
        """The events of one connection. Raises Refused, OSError, HTTPException, LiteFSError."""
        connection = self._source.connection()
        try:
            url, headers = self._source.request
            connection.connect()
            with self._lock:
                self._socket = connection.sock
            if self._closed.is_set():
                return
            connection.request("GET", url, headers=headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                refuse(response.status, response.read().decode(errors="replace").strip() or response.reason)
            while line := response.readline(MAX_LINE):
                if line.strip():
                    yield Event.parse(line)
        finally:
            with self._lock:
                self._socket = None
            connection.close()


class Refused(LiteFSError):
    """The node refuses for good: ``reason``."""

    def __init__(self, reason: LiteFSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def refuse(status: int, message: str) -> None:
    """Raise what a status that is no success means: Refused if it is final, else LiteFSError."""
    error = error_of(status, f"status {status}: {message}")
    raise Refused(error) if 400 <= status < 500 else error


def events(
    where: StrPath,
    *,
    databases: Sequence[str] = (),
    pages: bool = False,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Events:
    """What happens on the node of a path, or of a URL, from now on: :class:`Events`, :class:`Source`."""
    return Events(Source(where, databases, pages, token, tls))
