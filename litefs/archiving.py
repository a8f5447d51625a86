"""The archive of this node's databases, kept up while it is primary.

One look a moment: which databases have something new, which are due again after an error, whose levels passed
a boundary. The work is done by threads, of which a slow store may hold as many as ``backup.concurrency`` and
one more; what each database does is in litefs.backup.archiver. What it promises: docs/concurrency.md, I76 to
I82.
"""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from litefs.backup.archive import databases, timelines
from litefs.backup.archiver import Archiver, News, Settings, end_removed, now_ms
from litefs.backup.compaction import boundary, compact_level
from litefs.backup.pruning import Policy, prune, prune_raw, prune_timelines
from litefs.backup.target import Target
from litefs.config_backup import BackupConfig
from litefs.errors import DatabaseNotFound, LiteFSError, NotPrimary
from litefs.server.view import ArchiveFigures
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog, StoreSource
from litefs.types import Point

log = logging.getLogger("litefs.archive")

LOOK_SECONDS = 0.1
"""Between two looks at most so many of the databases that change all the time."""
IDLE_LOOK_SECONDS = 0.5
"""Between two looks while nothing changes."""
HEAD_SECONDS = 10.0
"""How often the archive of a database that changes is told how far it goes: the next primary goes on from
there."""
IDLE_HEAD_SECONDS = 600.0
"""The same of one that does not change: each time is a request."""
PRUNE_SECONDS = 3600.0
"""Between two prunings of a timeline."""
MAX_BACK_OFF_SECONDS = 15.0
FLUSH_SECONDS = 3.0
"""That a stop waits for the last transactions."""
SNAPSHOT_WAIT_SECONDS = 60.0
"""That a snapshot waits for its transactions to be archived."""
SCRATCH = "archive"
"""The directory of the data directory for copies and compaction."""

Publish = Callable[[str, Mapping[str, object], str], None]


@dataclass(slots=True)
class _Followed:
    """One database. Times are of the monotonic clock."""

    source: StoreSource
    archiver: Archiver
    levels: list[int]
    """Unix ms of the boundary up to which each level was compacted, from level 1 on."""
    snapshot_boundary: int = 0
    """The same of snapshots; of a database just met the archive says whether one is due."""
    tending: bool = False
    due: float = 0.0
    behind_since: float | None = None
    """Since when it holds something that is not archived."""
    failures: int = 0
    tend_due: float = 0.0
    tend_failures: int = 0
    error: str = ""
    head_due: float = 0.0
    noted: Point | None = None
    """Where the archive was told last that it ends."""
    pruned: float = 0.0
    snapshots: int = 0
    errors: int = 0
    compacted: dict[tuple[int, int], int] = field(default_factory=dict)
    """By timeline and level the last TXID of it, once known."""
    idle: trio.Event = field(default_factory=trio.Event)
    """Set while no thread is sending its transactions."""

    @property
    def syncing(self) -> bool:
        """Whether one is."""
        return not self.idle.is_set()


_in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
"""A stop of the node does not wait for a store that does not answer."""


class Archiving:
    """``run`` must be running. ``leads``: whether this node is primary; ``may``: whether its word counts
    still, asked by the threads before each change of the archive."""

    def __init__(
        self,
        config: BackupConfig,
        data: DataDir,
        catalog: StoreCatalog,
        leads: Callable[[], bool],
        may: Callable[[], bool],
        node: Callable[[], str],
        publish: Publish,
    ) -> None:
        self._config = config
        self._data = data
        self._catalog = catalog
        self._leads = leads
        self._may = may
        self._node = node
        self._publish = publish
        self._target: Target | None = None
        self._open_due = 0.0
        self._followed: dict[str, _Followed] = {}
        self._removed: set[str] = set()
        self._swept = False
        self._limit = trio.CapacityLimiter(config.concurrency)
        self._slow = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._flush_seconds = FLUSH_SECONDS
        self._token: trio.lowlevel.TrioToken | None = None
        self._scratch = data.path / SCRATCH
        self._policy = Policy(retention=int(config.reach * 1000))

    @property
    def enabled(self) -> bool:
        """Whether there is an archive."""
        return self._config.enabled

    # -- what others ask ------------------------------------------------------------------------------

    def pinned_txid(self, name: str) -> int | None:
        """Retention of the log keeps what comes after it for the archive; None if it need not wait."""
        if not self.enabled or not self._leads() or not self._config.wants(name):
            return None
        followed = self._followed.get(name)
        tip = followed.archiver.tip if followed is not None else None
        return tip.point.txid if tip is not None else 0

    def figures(self) -> Sequence[ArchiveFigures]:
        """Of every database that is archived from here, by name; nothing on a replica."""
        found = []
        for name, one in sorted(self._followed.items()):
            tip, target = one.archiver.tip, one.archiver.target
            try:
                txid = one.source.position().txid
            except TimeoutError:
                txid = 0
            archived = tip.point.txid if tip is not None else 0
            since = one.behind_since
            lag = time.monotonic() - since if since is not None and txid > archived else 0.0
            found.append(
                ArchiveFigures(
                    name,
                    timeline=one.archiver.timeline,
                    txid=archived,
                    behind=max(0, txid - archived),
                    lag=lag,
                    bytes=target.bytes,
                    objects=target.objects,
                    snapshots=one.snapshots,
                    errors=one.errors,
                    error=one.error,
                )
            )
        return found

    async def snapshot(self, name: str) -> Mapping[str, int]:
        """As ``NodeView.archive_snapshot``."""
        if name and name not in self._followed:
            raise DatabaseNotFound(f"{name}: not archived: there is no such database, or it is excluded")
        made = {}
        for one in [self._followed[name]] if name else list(self._followed.values()):
            made[one.archiver.name] = await self._snapshot(one, wait=True)
        return made

    # -- life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        if not self.enabled:
            return
        self._token = trio.lowlevel.current_trio_token()
        await _in_thread(_empty, self._scratch)
        async with trio.open_nursery() as self._nursery:
            while True:
                seen = self._catalog.revision
                if self._leads() and not self._stopping:
                    self._look(time.monotonic())
                elif not self._stopping:
                    self._let_go()
                await trio.sleep(LOOK_SECONDS)
                with trio.move_on_after(IDLE_LOOK_SECONDS):
                    await self._catalog.wait_change(seen)

    async def flush(self) -> None:
        """Archive what is left, at a stop of the primary; bounded, also if it is called twice."""
        self._stopping = True
        if not self.enabled or self._nursery is None or not self._leads():
            return
        if self._target is None:
            self._open()
        if self._target is None:
            return
        with trio.move_on_after(self._flush_seconds) as scope:
            for one in self._follow_all():
                await one.idle.wait()
                if self._lacks(one):
                    await self._sync(one, flush=True)
        if scope.cancelled_caught:
            self._flush_seconds = 0.5
        behind = [one.name for one in self.figures() if one.behind]
        if scope.cancelled_caught or behind:
            log.warning("archive: stopped before everything was sent: %s", ", ".join(behind) or "-")

    def dropped(self, name: str) -> None:
        """That database was removed."""
        if self._config.wants(name):
            self._removed.add(name)

    # -- looking --------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Start what is due."""
        assert self._nursery is not None
        if self._target is None and now >= self._open_due:
            self._open()
        if self._target is None:
            return
        if not self._swept or self._removed:
            names, self._removed = set(self._removed), set()
            whole, self._swept = not self._swept, True
            self._nursery.start_soon(self._end_removed, names, whole)
        for one in self._follow_all():
            if self._lacks(one) and one.behind_since is None:
                one.behind_since = now
            if not one.syncing and now >= one.due and (one.behind_since is not None or now >= one.head_due):
                one.idle = trio.Event()
                self._nursery.start_soon(self._sync, one)
            if not one.tending and now >= one.tend_due and self._is_tendable(one):
                one.tending = True
                self._nursery.start_soon(self._tend, one)

    def _follow_all(self) -> list[_Followed]:
        """What is to be archived now."""
        sources = self._catalog.sources()
        for name in [name for name, one in self._followed.items() if sources.get(name) is not one.source]:
            self._forget(name)
        for name, source in sources.items():
            if name not in self._followed and self._config.wants(name):
                self._follow(name, source)
        return list(self._followed.values())

    def _open(self) -> None:
        from litefs.backup.targets import target_of

        try:
            self._target = target_of(self._config)
        except (LiteFSError, OSError) as error:
            log.error("archive: nothing is archived: %s", error)
            self._open_due = time.monotonic() + MAX_BACK_OFF_SECONDS

    def _lacks(self, one: _Followed) -> bool:
        """Whether something of it is not archived."""
        tip = one.archiver.tip
        try:
            position = one.source.position()
        except TimeoutError:
            return True
        return position.txid > 0 and (tip is None or position != tip.point.position)

    def _follow(self, name: str, source: StoreSource) -> None:
        try:
            if source.position().txid == 0 or source.damaged:
                return
        except TimeoutError:
            return
        assert self._target is not None
        settings = Settings(self._node(), self._scratch, self._news(name))
        archiver = Archiver(self._target, self._data, source, self._may, settings)
        moment = now_ms()
        levels = [boundary(moment, int(level * 1000)) for level in self._config.levels]
        one = self._followed[name] = _Followed(source, archiver, levels)
        one.idle.set()

    def _news(self, name: str) -> News:
        def tell(kind: str, data: Mapping[str, object]) -> None:
            token = self._token
            assert token is not None
            token.run_sync_soon(self._publish, f"archive{kind.capitalize()}", data, name)

        return tell

    def _forget(self, name: str) -> None:
        one = self._followed.pop(name)
        if not one.syncing:
            one.archiver.close()

    def _let_go(self) -> None:
        """Not primary: whoever is goes on. What a thread is doing ends by the fence."""
        for name in list(self._followed):
            self._forget(name)
        self._removed.clear()
        self._swept = False

    # -- transactions ---------------------------------------------------------------------------------

    async def _sync(self, one: _Followed, flush: bool = False) -> None:
        """Send what there is."""
        begun = time.monotonic()
        if one.idle.is_set():
            one.idle = trio.Event()
        try:
            done = await _in_thread(one.archiver.sync, limiter=self._limit)
            if done:
                one.behind_since = None
            if done and (flush or begun >= one.head_due):
                complete = await _in_thread(one.archiver.note_head, limiter=self._limit)
                tip = one.archiver.tip
                point = tip.point if tip is not None else None
                idle = complete and one.noted == point
                one.noted = point
                one.head_due = begun + (IDLE_HEAD_SECONDS if idle else HEAD_SECONDS)
            elif done:
                one.head_due = min(one.head_due, begun + HEAD_SECONDS)
            if one.failures:
                log.info("%s: the archive goes on", one.archiver.name)
            one.failures, one.error = 0, ""
            one.due = begun + (float(self._config.sync_interval) if done else 0.0)
        except NotPrimary:
            one.due = begun + float(self._config.sync_interval)
        except DatabaseNotFound:
            one.due = begun + 1.0  # the catalog is about to let it go
        except (LiteFSError, OSError) as error:
            one.failures += 1
            one.due = time.monotonic() + self._failed(one, error, one.failures)
        finally:
            one.idle.set()
            if self._followed.get(one.archiver.name) is not one:
                one.archiver.close()

    def _failed(self, one: _Followed, error: Exception, failures: int) -> float:
        """Say so once, and return for how many seconds to leave it alone."""
        one.errors += 1
        text = str(error)
        if text != one.error:
            log.warning("%s: not archived: %s", one.archiver.name, text)
        one.error = text
        interval = float(self._config.sync_interval)
        wait = min(MAX_BACK_OFF_SECONDS, interval * 2.0 ** min(failures, 10))
        return wait * random.uniform(0.5, 1.0)

    # -- levels, snapshots, pruning -------------------------------------------------------------------

    def _is_tendable(self, one: _Followed) -> bool:
        return one.archiver.archive is not None and bool(self._passed(one) or self._snapshot_boundary(one))

    def _passed(self, one: _Followed) -> list[tuple[int, int]]:
        """The levels that passed a boundary, with it, ascending."""
        moment = now_ms()
        found = []
        for number, level in enumerate(self._config.levels):
            at = boundary(moment, int(level * 1000))
            if at > one.levels[number]:
                found.append((number + 1, at))
        return found

    def _snapshot_boundary(self, one: _Followed) -> int:
        at = boundary(now_ms(), int(self._config.snapshot.interval * 1000))
        return at if at > one.snapshot_boundary else 0

    async def _tend(self, one: _Followed) -> None:
        """Compact, take the snapshot that is due, prune."""
        try:
            for level, at in self._passed(one):
                await _in_thread(self._compact, one, level, at, limiter=self._slow)
                one.levels[level - 1] = at
            if at := self._snapshot_boundary(one):
                if await _in_thread(one.archiver.snapshot_due, at, limiter=self._slow):
                    await self._snapshot(one, wait=False)
                one.snapshot_boundary = at
            if time.monotonic() >= one.pruned + PRUNE_SECONDS:
                await _in_thread(self._prune, one, limiter=self._slow)
                one.pruned = time.monotonic()
            one.tend_failures = 0
        except (NotPrimary, DatabaseNotFound):
            one.tend_due = time.monotonic() + 1.0
        except (LiteFSError, OSError) as error:
            one.tend_failures += 1
            one.tend_due = time.monotonic() + self._failed(one, error, one.tend_failures)
        finally:
            one.tending = False

    def _compact(self, one: _Followed, level: int, before: int) -> None:
        archive = one.archiver.archive
        if archive is None:
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        known = one.compacted.get((archive.number, level))  # saves listing the level
        files = compact_level(archive, level, before, self._scratch, after=known)
        if files:
            one.compacted[archive.number, level] = files[-1].max_txid
            log.debug("%s: level %d up to TXID %016x", one.archiver.name, level, files[-1].max_txid)
        if level == 1:
            prune_raw(archive, self._policy, now_ms(), one.compacted.get((archive.number, 1)))

    def _prune(self, one: _Followed) -> None:
        archive = one.archiver.archive
        if archive is None:
            return
        pruned = prune(archive, self._policy, now_ms()).objects
        lines = timelines(one.archiver.target, one.archiver.name)
        pruned |= prune_timelines(lines, self._policy, now_ms()).objects
        if pruned:
            text = ", ".join(f"{count} of {kind}" for kind, count in sorted(pruned.items()))
            log.info("%s: removed from the archive: %s", one.archiver.name, text)

    async def _snapshot(self, one: _Followed, *, wait: bool) -> int:
        """Copy and send; returns the TXID. Raises LiteFSError, OSError."""
        scratch = await _in_thread(one.archiver.copy, limiter=self._slow)
        try:
            deadline = time.monotonic() + SNAPSHOT_WAIT_SECONDS
            while not await _in_thread(one.archiver.send, scratch, limiter=self._slow):
                if not self._leads() or self._followed.get(one.archiver.name) is not one:
                    raise NotPrimary(f"{one.archiver.name}: no snapshot: this node is no longer the primary")
                if one.error or time.monotonic() > deadline:
                    if not wait:
                        return 0
                    reason = one.error or "its transactions are not archived yet"
                    raise LiteFSError(f"{one.archiver.name}: no snapshot: {reason}")
                await trio.sleep(0.1)  # its transactions are on their way
            one.snapshots += 1
            return scratch.point.txid
        finally:
            with trio.CancelScope(shield=True):
                await _in_thread(scratch.close, limiter=self._slow)

    # -- removed databases ----------------------------------------------------------------------------

    async def _end_removed(self, names: Iterable[str], whole: bool) -> None:
        """Say in the archive which databases were removed. ``whole``: look at all that it holds, once after
        this node became primary, for those that were removed before that."""
        target = self._target
        assert target is not None
        try:
            await _in_thread(self._end_all, target, set(names), whole, limiter=self._slow)
        except (LiteFSError, OSError) as error:
            if not isinstance(error, NotPrimary):
                log.warning("archive: removed databases are not noted yet: %s", error)
                await trio.sleep(MAX_BACK_OFF_SECONDS / 4)
            self._removed |= set(names)
            self._swept = self._swept and not whole

    def _end_all(self, target: Target, names: set[str], whole: bool) -> None:
        if whole:
            names |= {name for name in databases(target) if self._config.wants(name)}
        for name in sorted(names - set(self._catalog.sources())):
            if end_removed(target, self._data, name, self._may):
                log.info("%s: the archive says that it was removed", name)


def _empty(directory: Path) -> None:
    """Remove what a killed process left."""
    if directory.exists():
        shutil.rmtree(directory, ignore_errors=True)
