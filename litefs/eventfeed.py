"""Where the events of ``GET /events`` come from: the logs, this node's role and what goes to ``lost/``.

Nothing is looked at while nobody listens. Transactions are read from the logs behind their positions, so
that a listener costs those who commit nothing, and a burst no memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from litefs.errors import LiteFSError, PositionMismatch
from litefs.rolechange import RoleChanges
from litefs.server.event_hub import Begin, EventHub
from litefs.store.contents import header_of, pgnos_of
from litefs.store.lost import lost_names
from litefs.store.paths import DataDir
from litefs.store.reader import Entry, LogReader
from litefs.stream.catalog import StoreCatalog, StoreSource
from litefs.types import START, Point, Position

PACE_SECONDS = 0.005
"""Between two looks at the logs: under load each finds several transactions."""
RETRY_SECONDS = 0.5
"""After a look at logs that could not be read."""
READ_BYTES = 1 << 20
"""Of records that are read of one database at a time."""
LOST_SECONDS = 1.0
"""Between two looks at ``lost/``."""
MAX_PAGES = 8192
"""Page numbers in one event; of more there are several, all but the last with ``more``."""
MAX_OPEN = 64
"""Logs that are kept open between two looks."""

_Event = tuple[str, dict[str, object], str]
"""Type, data, database."""


@dataclass(slots=True)
class _Cursor:
    """Up to where a database's transactions were told; ``reader`` may be beyond it, while a thread reads."""

    at: Point
    reader: LogReader | None = None

    def close(self) -> None:
        """Close the log; it is found again from ``at``."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


@dataclass(frozen=True, slots=True)
class _News:
    """What a look at a log found: told once the cursor is set to ``point``, in one step with the telling, so
    that whoever begins to listen meanwhile is told each transaction once."""

    cursor: _Cursor
    point: Point
    events: list[_Event]


@dataclass(slots=True)
class _Told:
    """The cursors of those who listen; others begin once nobody does. ``busy``: a thread uses them."""

    cursors: dict[str, _Cursor] = field(default_factory=dict)
    busy: bool = False

    def close(self) -> None:
        """Close all logs."""
        for cursor in self.cursors.values():
            cursor.close()


class EventFeed:
    """Fills ``hub``; ``run`` must be running."""

    def __init__(self, data: DataDir, catalog: StoreCatalog, roles: RoleChanges) -> None:
        self.hub = EventHub(self._begin)
        self._data = data
        self._catalog = catalog
        self._roles = roles
        self._told = _Told()
        self._role: dict[str, object] = {}

    def role_changed(self) -> None:
        """This node's role, or the primary that it is connected to, may have changed."""
        role = self._primary().primary()
        if role != self._role:
            self._role = role
            self.hub.publish("primaryChange", role)

    def _primary(self, positions: Mapping[str, str] | None = None) -> Begin:
        leads = self._roles.leads
        return Begin(leads, None if leads else self._roles.primary, positions or {})

    def _begin(self) -> Begin:
        if not self.hub.count:
            if not self._told.busy:
                self._told.close()
            self._told = _Told({name: _Cursor(point) for name, point in self._points()})
        positions = {name: str(cursor.at.position) for name, cursor in self._told.cursors.items()}
        begin = self._primary(positions)
        self._role = begin.primary()
        return begin

    def _points(self) -> Iterator[tuple[str, Point]]:
        for name, source in self._catalog.sources().items():
            with contextlib.suppress(TimeoutError):  # the fs process died; after recovery it is read anew
                yield name, source.point()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_logs)
            nursery.start_soon(self._watch_lost)

    # -- transactions ------------------------------------------------------------------------------------

    async def _follow_logs(self) -> None:
        while True:
            if not self.hub.count:
                self._told.close()  # an open log keeps what retention deleted on the disk
                await self.hub.listened()
            revision, told = self._catalog.revision, self._told
            self._tell_dropped(told)
            moved = [
                (source, told.cursors.setdefault(name, _Cursor(START)))
                for name, source in self._catalog.sources().items()
                if name not in told.cursors or not source.is_at(told.cursors[name].at)
            ]
            if not moved:
                await self._catalog.wait_change(revision)
                continue
            told.busy, pages = True, self.hub.wants_pages
            try:
                news, ok = await trio.to_thread.run_sync(_read, moved, pages)
            finally:
                told.busy = False
                if told is not self._told:
                    told.close()
            if told is self._told:
                self._tell(news, again=self.hub.wants_pages and not pages)
            await trio.sleep(PACE_SECONDS if ok else RETRY_SECONDS)

    def _tell(self, news: list[_News], *, again: bool) -> None:
        """``again``: not now, since one who wants pages came while they were read without."""
        for one in news:
            if again:
                one.cursor.close()
                continue
            one.cursor.at = one.point
            for kind, data, name in one.events:
                self.hub.publish(kind, data, name)

    def _tell_dropped(self, told: _Told) -> None:
        sources = self._catalog.sources()
        for name in [name for name in told.cursors if name not in sources]:
            told.cursors.pop(name).close()
            self.hub.publish("drop", {}, name)
        if sum(cursor.reader is not None for cursor in told.cursors.values()) > MAX_OPEN:
            told.close()

    # -- lost/ -------------------------------------------------------------------------------------------

    async def _watch_lost(self) -> None:
        while True:
            await self.hub.listened()
            try:
                known = told = frozenset(await self._lost_names())
            except OSError:
                await trio.sleep(LOST_SECONDS)
                continue
            while self.hub.count:
                await trio.sleep(LOST_SECONDS)
                try:
                    names = await self._lost_names()
                except OSError:  # for want of descriptors, say: what was known is no news the next time
                    continue
                now = frozenset(names)
                # One that was there before, too: what is being copied there is there by now, or was given up.
                for directory in sorted((now & known) - told):
                    database, reason = names[directory]
                    self.hub.publish("lost", {"reason": reason, "directory": f"lost/{directory}"}, database)
                known, told = now, now & (known | told)

    async def _lost_names(self) -> dict[str, tuple[str, str]]:
        """Raises OSError."""
        return await trio.to_thread.run_sync(lost_names, self._data)


def _read(moved: list[tuple[StoreSource, _Cursor]], pages: bool) -> tuple[list[_News], bool]:
    """What happened to these databases after where their cursors are; and whether all could be read. For a
    worker thread."""
    news: list[_News] = []
    ok = True
    for source, cursor in moved:
        try:
            news += _read_one(source, cursor, pages)
        except (LiteFSError, OSError, ValueError):  # it is being recovered, or was removed: it is asked again
            cursor.close()
            ok = False
    return news, ok


def _read_one(source: StoreSource, cursor: _Cursor, pages: bool) -> list[_News]:
    """One or none."""
    point = source.point()
    if point == cursor.at:
        return []  # a commit was under way when it was looked at
    if cursor.reader is None:
        cursor.reader = source.reader()
        if not cursor.reader.seek(cursor.at):
            return [_replaced(source, cursor)]
    try:
        entries = cursor.reader.read(point.txid, READ_BYTES)
    except PositionMismatch:
        return [_replaced(source, cursor)]
    if not entries:  # the last transaction has another one's number
        return [_replaced(source, cursor)]
    events = [event for entry in entries for event in _transaction(source.name, entry, pages)]
    return [_News(cursor, entries[-1].point, events)]


def _replaced(source: StoreSource, cursor: _Cursor) -> _News:
    """Another history took the place of the one that was told, or its log does not reach back so far."""
    cursor.close()
    point, timestamp, page_size, commit = source.header()
    return _News(
        cursor, point, [("snapshot", _data(point.position, page_size, commit, timestamp), source.name)]
    )


def _transaction(name: str, entry: Entry, pages: bool) -> Iterator[_Event]:
    header = header_of(entry)
    position = entry.point.position
    yield "tx", _data(position, header.page_size, header.commit, header.timestamp), name
    if not pages:
        return
    pgnos = pgnos_of(entry)
    for start in range(0, len(pgnos), MAX_PAGES):
        data: dict[str, object] = {
            "txID": f"{position.txid:016x}",
            "pages": pgnos[start : start + MAX_PAGES],
        }
        if start + MAX_PAGES < len(pgnos):
            data["more"] = True
        yield "pages", data, name


def _data(position: Position, page_size: int, commit: int, timestamp: int) -> dict[str, object]:
    """``timestamp``: Unix ms. The names and forms are those of Go LiteFS."""
    moment = datetime.fromtimestamp(timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "txID": f"{position.txid:016x}",
        "postApplyChecksum": f"{position.checksum:016x}",
        "pageSize": page_size,
        "commit": commit,
        "timestamp": moment.replace("+00:00", "Z"),
    }
