"""The node's databases in figures, for ``/status`` and ``/metrics``."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from litefs.link.messages import Measured
from litefs.link.rules import SyncRules
from litefs.meters import METERS, Meters
from litefs.server.view import DatabaseInfo
from litefs.stream.catalog import StoreCatalog, StoreSource

USAGE_SECONDS = 30.0
"""The size of a log that nobody wrote to is looked up again after so long: retention may have deleted."""


@dataclass(frozen=True, slots=True)
class _Usage:
    txid: int
    at: float
    segments: int
    size: int
    first_txid: int


@dataclass(slots=True)
class _Seen:
    """What is remembered of one database. ``source`` tells one that was made anew from the one before; held
    weakly, since it closes its file when nobody uses it."""

    source: weakref.ref[StoreSource]
    first_txid: int
    usage: _Usage | None = None
    lag: float | None = None


class Figures:
    """Looks at the databases of a catalog, and remembers of each what it was at first."""

    def __init__(self, catalog: StoreCatalog, rules: SyncRules) -> None:
        self._catalog = catalog
        self._rules = rules
        self._seen: dict[str, _Seen] = {}
        self._fs = Meters()
        """What the fs process has told of."""
        self._generation = -1
        catalog.listen(self._follow)

    def _follow(self) -> None:
        """Note where each database is when it comes in."""
        if self._generation == self._catalog.generation:
            return
        self._generation, sources = self._catalog.generation, self._catalog.sources()
        for name in [name for name in self._seen if name not in sources]:
            del self._seen[name]
        for name, source in sources.items():
            with contextlib.suppress(TimeoutError):
                self._of(name, source)

    def applied(self, name: str) -> None:
        """A replica has applied a transaction of that database, now."""
        source = self._catalog.sources().get(name)
        if source is None:
            return
        with contextlib.suppress(TimeoutError):
            _, timestamp, *_ = source.header()
            self._of(name, source).lag = max(0.0, time.time() - timestamp / 1000)

    def measured(self, message: Measured) -> None:
        """The fs process has measured something."""
        for name, (buckets, total) in message.times.items():
            self._fs.times[name].merge(buckets, total)
        for database, counts in message.counts.items():
            for name, count in counts.items():
                self._fs.counts[name][database] += count

    def meters(self) -> Meters:
        """What both processes have counted and timed."""
        found = Meters()
        found.merge(METERS)
        found.merge(self._fs)
        return found

    def databases(self) -> list[DatabaseInfo]:
        """All of them, by name; a database that is being recovered is left out. Reads files, and may wait for
        a second: for a worker thread."""
        sources = sorted(dict(self._catalog.sources()).items())
        found = []
        for name, source in sources:
            with contextlib.suppress(TimeoutError, ValueError):  # recovery is about to begin; it was removed
                found.append(self._database(name, source))
        return found

    def _database(self, name: str, source: StoreSource) -> DatabaseInfo:
        point, _, page_size, pages = source.header()
        position = point.position
        seen = self._of(name, source)
        seen.first_txid = min(seen.first_txid, position.txid)  # lost to another history
        usage, now = seen.usage, time.monotonic()
        if usage is None or usage.txid != position.txid or now > usage.at + USAGE_SECONDS:
            usage = seen.usage = _Usage(position.txid, now, *_log_usage(source.directory.log))
        return DatabaseInfo(
            name,
            position,
            page_size=page_size,
            pages=pages,
            commits=position.txid - seen.first_txid,
            log_segments=usage.segments,
            log_bytes=usage.size,
            first_txid=usage.first_txid,
            damaged=source.damaged,
            sync=self._rules.required(name),
            lag=seen.lag,
        )

    def _of(self, name: str, source: StoreSource) -> _Seen:
        seen = self._seen.get(name)
        if seen is None or seen.source() is not source:
            seen = self._seen[name] = _Seen(weakref.ref(source), source.header()[0].txid)
        return seen


def _log_usage(directory: Path) -> tuple[int, int, int]:
    """Files and bytes of a log, and the first TXID in it; files that retention deletes meanwhile do not
    count."""
    count = size = 0
    first = ""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(".seg"):
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat().st_size
                    count += 1
                    first = min(first or entry.name, entry.name)
    return count, size, int(first.removesuffix(".seg"), 16) if first else 0
