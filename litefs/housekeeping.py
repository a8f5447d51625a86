"""What the node process looks after on its own: unpublished commits, open databases, the log's length."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from litefs.apply.ownprocess import call
from litefs.apply.publish import Publisher
from litefs.apply.retire import MountGuard
from litefs.apply.transfer import empty_wal
from litefs.config_sections import TracingConfig
from litefs.errors import LiteFSError
from litefs.link.messages import Lag
from litefs.meters import METERS
from litefs.store.dropped import reap_dropped
from litefs.store.paths import DataDir
from litefs.store.retention import reap
from litefs.store.segments import list_segments
from litefs.store.sums import SumsFile
from litefs.stream.catalog import StoreCatalog
from litefs.trace import TRACE, Rotation

log = logging.getLogger("litefs.node")

LOOK_SECONDS = 0.2
"""Between two looks for commits that nobody published."""

STUCK_LOOKS = 5
"""Looks after which a WAL that cannot be emptied, and that blocks a client, is given up."""

BLOCKED_SECONDS = 10.0
"""How long a client that was turned away counts as waiting."""

LAG_SECONDS = 0.25
"""Between two updates of ``.lag``."""

ROTATION_SECONDS = 1.0
"""Between two looks whether the trace log has grown too big."""

REFRESH_LOOKS = 5
"""Looks between two checks for ``-wal`` and ``-shm`` files that came or went."""


async def tell_lag(lag: Callable[[], tuple[int, int] | None], post: Callable[[Lag], None]) -> None:
    """Tell the fs process how far this replica is behind, for ``.lag``; until cancelled."""
    shown: tuple[int, int] | None = None
    while True:
        now = lag()
        if now is not None and now != shown:
            shown = now
            post(Lag(*now))
        await trio.sleep(LAG_SECONDS)


async def rotate(tracing: TracingConfig) -> None:
    """Rotate the trace log when it is due; until cancelled."""
    rotation = Rotation(tracing.file, tracing.max_size, tracing.max_count, tracing.compress)
    failed = False
    while tracing.file:
        await trio.sleep(ROTATION_SECONDS)
        try:
            await trio.to_thread.run_sync(rotation.look, abandon_on_cancel=True)
            failed = False
        except OSError as error:
            if not failed:
                log.warning("tracing: %s cannot be rotated: %s", tracing.file, error)
            failed = True


def _is_emptied(database: Path) -> bool:
    try:
        return call(empty_wal, database)
    except (LiteFSError, OSError) as error:
        log.debug("%s: %s", database.name, error)
        return False


def raise_file_limit() -> None:
    """Allow as many open files as this process may have: a replica needs about 15 for each database, and
    the usual soft limit of 1,024 would end it at 65."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        log.debug("open files: limit raised from %d to %d", soft, hard)


class Primary:
    """Databases that clients have opened: their dead mount's caches and their unpublished commits.

    On a replica there is nothing to publish, but the guard over the mount is needed as well.
    """

    def __init__(
        self,
        data: DataDir,
        mountpoint: Path,
        guard: MountGuard,
        restart: Callable[[str], None],
        may_publish: Callable[[], bool],
    ) -> None:
        """``restart(reason)`` has the fs process recover and mount anew. ``may_publish``: whether this is a
        primary whose commits count."""
        self._may_publish = may_publish
        self._data = data
        self._mountpoint = mountpoint
        self._guard = guard
        self._publishers: dict[str, Publisher] = {}
        self._sums: dict[str, SumsFile] = {}
        self._new: set[str] = set()
        self._gone: set[str] = set()
        self._loose: dict[str, int] = {}
        self._blocked: dict[str, float] = {}
        self._restart = restart
        self._look_under_way = False
        self._retired: list[SumsFile] = []
        """Maps that a look under way may still read."""
        self._pressing = trio.Event()

    def opened(self, name: str) -> None:
        """A client opened that database, or it appeared."""
        self._new.add(name)

    def dropped(self, name: str) -> None:
        """That database was removed; another one may take its name."""
        self._gone.add(name)
        self._new.discard(name)
        self._blocked.pop(name, None)
        self._loose.pop(name, None)
        self._pressing.set()

    def unpublished(self, name: str) -> None:
        """A commit of that database stands in a client's way."""
        self._new.add(name)
        self._blocked[name] = time.monotonic()
        self._pressing.set()

    def loose(self, name: str) -> None:
        """The WAL of that database must be emptied: SQLite could not recover it."""
        self._loose.setdefault(name, 0)
        self._pressing.set()

    async def run(self) -> None:
        """Look now and then, and at once when asked; until cancelled."""
        looks = 0
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._pressing.wait()
            self._pressing = trio.Event()
            looks += 1
            self._look_under_way = True
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(
                        self._look, self._new, self._publishers, self._sums, looks % REFRESH_LOOKS == 0
                    )
            finally:
                self._look_under_way = False
                self._close_retired()

    def _look(
        self, new: set[str], publishers: dict[str, Publisher], maps: dict[str, SumsFile], refresh: bool
    ) -> None:
        while self._gone:
            name = self._gone.pop()
            publishers.pop(name, None)
            if (old := maps.pop(name, None)) is not None:
                old.close()
            self._guard.unwatch(name)
        while new:
            name = new.pop()
            if name not in publishers or not maps[name].is_current():
                publishers.pop(name, None)
                if (stale := maps.pop(name, None)) is not None:
                    stale.close()
                with contextlib.suppress(LiteFSError, OSError):
                    sums = maps[name] = SumsFile(self._data.database_dir(name).sums)
                    publishers[name] = Publisher(self._mountpoint / name, sums)
            with contextlib.suppress(OSError):
                self._guard.watch(name)
        for name, publisher in publishers.items() if self._may_publish() else ():
            try:
                if publisher.check():
                    log.info("%s: published a commit that its client had not", name)
            except (LiteFSError, OSError) as exc:
                log.debug("%s: %s", name, exc)
            except Exception:
                log.exception("%s: cannot look for unpublished commits", name)
        if self._may_publish():
            self._mend_loose()
        if refresh:
            self._guard.refresh()

    def _mend_loose(self) -> None:
        """Empty WALs that SQLite could not recover; if clients died on one, have the log rebuild it."""
        for name, failures in list(self._loose.items()):
            if _is_emptied(self._mountpoint / name):
                log.info("%s: emptied a WAL in which SQLite had left commits unsealed", name)
                self._loose.pop(name, None)  # unless ``dropped`` did
                self._blocked.pop(name, None)
            else:
                self._loose[name] = failures + 1
                if failures >= STUCK_LOOKS and self._is_blocked(name):
                    self._restart(f"{name}: the WAL lost commits that the log has")

    def _is_blocked(self, name: str) -> bool:
        """Whether a client met a commit that nobody published a short while ago."""
        return time.monotonic() - self._blocked.get(name, -BLOCKED_SECONDS) < BLOCKED_SECONDS

    def forget(self) -> None:
        """The mount is gone."""
        self._blocked.clear()
        self._retired += self._sums.values()
        self._publishers, self._sums, self._new, self._gone = {}, {}, set(), set()
        if not self._look_under_way:
            self._close_retired()

    def _close_retired(self) -> None:
        while self._retired:
            self._retired.pop().close()

    def close(self) -> None:
        self.forget()


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each log, by age (seconds) and bytes; ``waiting_bytes``: what it may hold for an archive that it
    waits for."""

    max_age: float
    max_bytes: int
    waiting_bytes: int


class Retention:
    """Deletes what the logs no longer need. ``archived``: after which TXID the archive needs a database's
    log; None if it does not."""

    def __init__(
        self, data: DataDir, catalog: StoreCatalog, limits: Limits, archived: Callable[[str], int | None]
    ) -> None:
        self._data = data
        self._catalog = catalog
        self._limits = limits
        self._archived = archived

    async def run(self, interval: float) -> None:
        """Look every *interval* seconds until cancelled."""
        while True:
            await trio.sleep(interval)
            for name in list(self._catalog.sources()):
                pinned, archived = self._catalog.pinned_txid(name), self._archived(name)
                await trio.to_thread.run_sync(self._reap, name, pinned, archived)
            await trio.to_thread.run_sync(self._reap_dropped)

    def _reap_dropped(self) -> None:
        try:
            removed = reap_dropped(self._data, self._limits.max_age)
        except OSError as exc:
            log.warning("retention of removed databases: %s", exc)
            return
        for path in removed:
            log.info("deleted %s, which was kept of a removed database", path.name)

    def _reap(self, name: str, pinned: int | None, archived: int | None) -> None:
        directory, limits = self._data.database_dir(name), self._limits
        needed = [txid for txid in (pinned, archived) if txid is not None]
        try:
            sums = SumsFile(directory.sums)
            try:
                limit = min(needed, default=None)
                removed = reap(directory.log, sums.sums, limits.max_age, limits.max_bytes, limit)
                if archived is not None:  # a disk that is full would be worse than a gap in the archive
                    removed += reap(directory.log, sums.sums, math.inf, limits.waiting_bytes, pinned)
            finally:
                sums.close()
        except (LiteFSError, OSError) as exc:
            log.warning("%s: retention: %s", name, exc)
            return
        if removed:
            first = list_segments(directory.log)[0][0]
            METERS.reaped[name] += first - int(removed[0].stem, 16)
            if TRACE.enabled:
                TRACE("Retention", name, segments=len(removed), first=f"{first:016x}")
            log.debug("%s: removed %d log segments", name, len(removed))
