"""Events of a node, and who listens to them: what ``GET /events`` sends, a JSON object a line.

``{"type": …, "db": …, "data": {…}}``, in the shapes of Go LiteFS where it has them (``init``, ``tx``,
``primaryChange``); its clients pass over types that they do not know if there is ``data``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import trio

MAX_BYTES = 1 << 20
"""Of lines that wait for a listener; one who lets more come together is told so, and dismissed."""

_encoder = msgspec.json.Encoder()


def encode(kind: str, data: Mapping[str, object], db: str = "") -> bytes:
    """One line."""
    event: dict[str, object] = {"type": kind}
    if db:
        event["db"] = db
    event["data"] = data
    return _encoder.encode(event) + b"\n"


@dataclass(frozen=True, slots=True)
class Begin:
    """What a listener is told first: ``hostname`` of the primary that this node is connected to, None on the
    primary; ``positions`` of databases, as ``NAME-pos`` has them: the transactions after these follow."""

    is_primary: bool
    hostname: str | None
    positions: Mapping[str, str] = field(default_factory=dict)

    def primary(self) -> dict[str, object]:
        """The data of ``primaryChange``."""
        data: dict[str, object] = {"isPrimary": self.is_primary}
        if self.hostname is not None:
            data["hostname"] = self.hostname
        return data


class Listener:
    """One who listens: lines wait here until they are taken."""

    def __init__(self, hub: EventHub, wants: Callable[[str], bool], pages: bool) -> None:
        self.wants = wants
        self.pages = pages
        self._hub = hub
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._news = trio.lowlevel.ParkingLot()
        self._ended = False

    def greet(self, line: bytes) -> None:
        """The first line, of any length, which does not count."""
        self._append(line)
        self._size = 0

    def put(self, line: bytes) -> None:
        """Never waits; too much ends it."""
        if self._size + len(line) > MAX_BYTES:
            self.end(f"events came faster than they were taken: {self._size} bytes waited")
        elif not self._ended:
            self._append(line)

    def end(self, reason: str) -> None:
        """No event follows but one that gives the reason."""
        if not self._ended:
            self._append(encode("end", {"reason": reason}))
            self._ended = True
            self._hub.leave(self)

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        self._news.unpark_all()

    async def take(self) -> bytes:
        """All lines that wait, at least one; nothing after the end."""
        while not self._lines:
            if self._ended:
                return b""
            await self._news.park()
        taken = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        return taken


class EventHub:
    """Hands events to all that listen; used in one trio run."""

    def __init__(self, begin: Callable[[], Begin]) -> None:
        """``begin``: how the node is, asked for each listener just before it is taken in."""
        self._begin = begin
        self._listeners: list[Listener] = []
        self._came = trio.lowlevel.ParkingLot()

    @property
    def count(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @property
    def wants_pages(self) -> bool:
        """Whether anybody wants to know the pages of transactions."""
        return any(listener.pages for listener in self._listeners)

    async def listened(self) -> None:
        """Wait until somebody listens."""
        while not self._listeners:
            await self._came.park()

    def listen(self, wants: Callable[[str], bool], *, pages: bool) -> Listener:
        """A new listener, which must ``leave``: to the events of the databases that it ``wants``, with their
        ``pages`` or without, and to those of the node."""
        begin = self._begin()
        listener = Listener(self, wants, pages)
        positions = {name: at for name, at in begin.positions.items() if wants(name)}
        listener.greet(encode("init", {**begin.primary(), "positions": positions}))
        self._listeners.append(listener)
        self._came.unpark_all()
        return listener

    def leave(self, listener: Listener) -> None:
        """It listens no more; harmless if repeated."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def publish(self, kind: str, data: Mapping[str, object], db: str = "") -> None:
        """An event of the node, or of a database."""
        line = encode(kind, data, db)
        for listener in tuple(self._listeners):
            if (not db or listener.wants(db)) and (kind != "pages" or listener.pages):
                listener.put(line)

    def close(self) -> None:
        """The node stops: everybody is told."""
        for listener in tuple(self._listeners):
            listener.end("the node stops")
