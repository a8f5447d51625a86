"""Where a replica's stream ends: every record and snapshot becomes a change of a database on the mount.

The trio edge over :class:`~litefs.apply.applier.Applier`: file work runs in worker threads, in order for
one database, side by side for several. Implements the ``Sink`` protocol of the stream.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import trio

from litefs.apply.applier import SYNC_INTERVAL, Applier
from litefs.apply.checkpoint import CheckpointPolicy
from litefs.apply.locks import LockTimeout
from litefs.apply.repair import Scrubber, can_attach, describe, leave_to_recovery
from litefs.apply.state import DatabaseState, lay_records, put_in_place, rebuild
from litefs.apply.wal import Buffer
from litefs.errors import LiteFSError, PositionMismatch
from litefs.ltx import Header
from litefs.meters import METERS, now_ns
from litefs.store.dropped import drop
from litefs.store.lost import keep_file
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.segments import list_segments
from litefs.store.snapshot import SnapshotTarget
from litefs.trace import TRACE
from litefs.types import START, ZERO, Point, Position

log = logging.getLogger(__name__)

THREADS = 4
"""Databases that are worked on at the same time."""

TICK = 1.0
"""Seconds between two looks for idle databases."""

IDLE = 1.0
"""Seconds without a record after which a database is checkpointed whatever its WAL holds."""

DURABLE_EVERY = 5
"""Ticks between two syncs of the database files."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ReplicaSink:
    """Applies what the receiver hands it. ``start`` first, ``run`` beside the receiver, ``close`` last.

    When the fs process dies, calls raise OSError (ENOTCONN, ECONNABORTED, EIO); close this sink then and
    make another one after recovery and the next mount.
    """

    applier_type: type[Applier] = Applier

    def __init__(
        self,
        datadir: DataDir,
        mountpoint: Path,
        *,
        on_database_ready: Callable[[str], Awaitable[None]],
        on_drop: Callable[[str, bool], Awaitable[None]] | None = None,
        on_applied: Callable[[str, Position], None] | None = None,
        on_recovery_needed: Callable[[str], None] | None = None,
        on_damage: Callable[[], None] | None = None,
        locate: Callable[[str], Path] | None = None,
        sync_interval: float = SYNC_INTERVAL,
        policy: CheckpointPolicy | None = None,
    ) -> None:
        """``on_database_ready(name)``: a database was installed in the data directory and has a WAL; the
        mount shows it when this returns. ``on_drop(name, readers)``: a database was removed on the primary,
        or its page size changed and transactions that are open may end; when this returns the mount shows it
        no more. ``on_applied(name, position)`` follows every change, on the trio thread; ZERO: it is gone.
        ``on_recovery_needed(reason)``: the mount must end and recovery run, which puts in place what waits
        for it; told once per case. ``on_damage()``: the primary must be told the positions anew, so that it
        sends a snapshot of what is damaged. ``locate(name)``: the path by which clients reach a database,
        unless it is ``mountpoint / name``.
        """
        self._datadir = datadir
        self._on_ready = on_database_ready
        self._on_drop = on_drop or _nothing
        self._on_applied = on_applied
        self._on_recovery_needed = on_recovery_needed
        self._on_damage = on_damage
        self._scrubber = Scrubber()
        self._locate = locate or (lambda name: mountpoint / name)
        self._sync_interval = sync_interval
        self._policy = policy
        self.sync_at_once: Callable[[str], bool] = lambda name: False
        """Whether the log of a database is to be synced with each batch of records."""
        self._states: dict[str, DatabaseState] = {}
        self._limiter = trio.CapacityLimiter(THREADS)
        self.primary_time_ms = 0
        """The primary's clock, Unix ms, up to which all its commits are here; 0 before the first contact."""
        self.caught_up = trio.Event()
        """Set once every database has caught up with the primary."""

    async def start(self) -> None:
        """Open the databases of the data directory, which was recovered, and attach to each on the mount.

        Attaching creates a WAL where there is none, without which a WAL database cannot be opened
        read-only. A database that cannot be opened is left alone, and named. Raises OSError.
        """
        for name in await self._thread(self._datadir.names):
            state = self._state(name)
            if await self._thread(list_segments, state.directory.log):
                try:
                    applier = await self._thread(self._open, state.directory)
                except LiteFSError as error:
                    self._damaged(state, f"its log cannot be read: {error}")
                    continue
                if applier.position == ZERO:  # its first transaction was refused
                    applier.close()
                    continue
                state.applier = applier
                if applier.database.sums.damaged:
                    state.kept = True  # by recovery
                    self._damaged(state, "recovery found the file unlike its log")
                try:
                    await self._thread(applier.attach)
                except (OSError, LiteFSError) as error:
                    # The others go on; whoever brings the next record for this one is told again.
                    log.error("%s: cannot be applied to: %s", name, error)

    async def run(self) -> None:
        """Checkpoint databases that are idle, and make checkpointed files durable; until cancelled."""
        tick = 0
        while True:
            await trio.sleep(TICK)
            tick += 1
            for name, state in list(self._states.items()):
                try:
                    await self._keep(state, durable=tick % DURABLE_EVERY == 0)
                    state.complaint = ""
                except (OSError, LiteFSError) as error:
                    # Whoever applies the next record meets the same trouble, and has someone to tell.
                    if str(error) != state.complaint:
                        state.complaint = str(error)
                        log.warning("%s: checkpoint failed, it is tried again: %s", name, error)
                except Exception:
                    log.exception("%s: unexpected error in a checkpoint", name)
            with contextlib.suppress(OSError):  # whoever applies the next record meets it, too
                await self._scrub(tick)

    async def _keep(self, state: DatabaseState, *, durable: bool) -> None:
        applier = state.applier
        if applier is None or applier.needs_recovery:
            return
        if not state.lock.locked() and state.is_behind():
            # A full disk, say, came between its log and its readers; perhaps no other record follows.
            async with state.working():
                await self._thread(applier.attach)
                if applier.must_reopen:
                    await self._reopen(state, applier)
            applier = state.applier or applier
            self._applied(state.directory.name, applier.position)
        idle = time.monotonic() - applier.last_used > IDLE
        if idle and not state.lock.locked() and (applier.pending_frames or applier.has_unsynced):
            async with state.lock:
                await self._thread(applier.rest)
        if not state.lock.locked() and applier.is_distrusted:
            async with state.lock:
                await self._thread(applier.make_good)
        if durable or idle:
            await self._thread(applier.sync_database)

    # The Sink protocol.

    def positions(self) -> Mapping[str, Point]:
        """What this replica holds, database by database; START if it takes nothing but a snapshot."""
        found = {name: state.point for name, state in self._states.items()}
        return {name: point for name, point in found.items() if point is not None}

    def held(self, name: str) -> tuple[Point, Point] | None:
        """The last transaction in a database's log, and the last durable one; None if nothing of it is here,
        or it is damaged."""
        state = self._states.get(name)
        return state.held if state is not None else None

    async def sync_log(self, name: str) -> None:
        """Make a database's log durable. Raises LogSyncFailed, OSError."""
        state = self._state(name)
        async with state.lock:
            if state.applier is not None:
                await self._thread(state.applier.sync_log)

    async def records(self, name: str, bodies: Sequence[Buffer]) -> Position:
        """Apply contiguous whole LTX records. Raises as :meth:`Applier.apply`, InvalidName."""
        state = self._state(name)
        async with state.working():
            if state.target is not None:
                return await self._thread(lay_records, state.target, bodies)
            state.check()
            if state.applier is None:
                return await self._first_records(state, bodies)
            position = await self._apply(state, bodies)
        self._applied(name, position)
        return position

    async def snapshot_begin(self, name: str, page_size: int, commit: int, at: Point, timestamp: int) -> None:
        """Begin to receive a whole database. Raises InvalidName, FormatError, OSError."""
        state = self._state(name)
        async with state.lock:
            await self._abort(state)
            state.check()
            state.target = await self._thread(
                SnapshotTarget, state.directory, page_size, commit, at, timestamp
            )

    async def snapshot_pages(self, name: str, pgnos: bytes, images: bytes) -> None:
        """Pages of the snapshot: native u32 numbers, contiguous images. Raises FormatError, OSError."""
        state = self._state(name)
        async with state.lock:
            await self._thread(state.incoming().pages, pgnos, images)

    async def snapshot_end(self, name: str, point: Point) -> None:
        """Check the snapshot, and make it this replica's database.

        A new database is installed and shown; in one that exists the pages that differ are changed like any
        transaction, after what the primary does not know was set aside under ``lost/``. Raises
        ChecksumMismatch, PositionMismatch, OSError.
        """
        state = self._state(name)
        async with state.working():
            state.check()
            target = state.incoming()
            await self._thread(target.verify, point)
            state.target = None
            if state.damage is not None:
                await self._repair(state, target)
            elif state.applier is None:
                await self._install(state, target)
            else:
                await self._replace(state, state.applier, target)
        if TRACE.enabled:
            TRACE("Snapshot", name, pos=point.position)
        self._applied(name, point.position)

    async def snapshot_abort(self, name: str) -> None:
        """Forget an unfinished snapshot; nothing if there is none."""
        state = self._state(name)
        async with state.lock:
            await self._abort(state)

    async def drop(self, name: str, *, deliberate: bool = False) -> None:
        """The primary has no such database.

        If it was removed there it goes here too, into ``lost/`` for the time of the log's retention. Else it
        is kept, and served for reading as it is: a primary may have lost its disk. Raises LiteFSError if the
        mount goes on showing it, OSError.
        """
        if not deliberate:
            log.warning("%s: the primary does not hold this database; what is here stays as it is", name)
            return
        state = self._state(name)
        async with state.lock:
            await self._abort(state)
            state.check()
            if (applier := state.applier) is None:
                return
            await self._on_drop(name, False)
            state.applier = None
            position = applier.position
            await self._thread(applier.close)
            kept = await self._thread(drop, self._datadir, name, position, keep_file=True)
        if TRACE.enabled:
            TRACE("Drop", name, kept=kept.name)
        log.warning("%s: removed on the primary; what was here is in %s until retention", name, kept.name)
        self._applied(name, ZERO)

    def primary_time(self, timestamp_ms: int) -> None:
        """All that the primary had committed at this time of its clock has been applied here.

        Passed over while a database's readers cannot see all that its log holds.
        """
        for state in self._states.values():
            if state.damage is not None or state.is_behind():
                return
        self.primary_time_ms = timestamp_ms

    def ready(self) -> None:
        """Every database has caught up once since the stream began."""
        self.caught_up.set()

    async def close(self) -> None:
        """Checkpoint what readers allow, sync the logs and let go of the mount. Never raises for a dead
        mount."""
        try:
            for name, state in self._states.items():
                async with state.lock:
                    await self._abort(state)
                    if state.applier is not None:
                        await self._finish(name, state.applier)
        finally:
            with trio.CancelScope(shield=True):
                for state in self._states.values():
                    if state.lock.locked():
                        # Given up by a stop that could not wait: a thread still works with these files, and
                        # a descriptor closed under it might be another file's by then. The process ends.
                        continue
                    for applier in (state.applier, state.lent):
                        if applier is not None:
                            await self._thread(applier.close)
                    state.applier = state.lent = None

    async def release(self) -> dict[str, str]:
        """As ``close``, for the fs process to write the logs: for which databases that takes a recovery, and
        why. Never raises for a dead mount."""
        failed: dict[str, str] = {}
        for name, state in self._states.items():
            async with state.lock:
                await self._abort(state)
                applier, state.applier = state.applier, None
                if state.broken is not None:
                    failed[name] = state.broken
                if applier is None:
                    continue
                try:
                    reason = await self._thread(applier.release)
                except (OSError, LiteFSError) as error:
                    reason = f"{name}: {error}"
                if reason is not None:
                    failed[name] = reason
        return failed

    async def _finish(self, name: str, applier: Applier) -> None:
        try:
            await self._thread(applier.finish)
        except (OSError, LiteFSError) as error:
            log.warning("%s: detached without a checkpoint: %s", name, error)

    # Parts.

    def _state(self, name: str) -> DatabaseState:
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = DatabaseState(self._datadir.database_dir(name))
        return state

    def _open(self, directory: DatabaseDir) -> Applier:
        return self.applier_type(
            directory,
            self._locate(directory.name),
            sync_interval=self._sync_interval,
            policy=self._policy,
        )

    async def _apply(self, state: DatabaseState, bodies: Sequence[Buffer]) -> Position:
        assert state.applier is not None
        at_once = self.sync_at_once(state.directory.name)
        state.applier.sync_interval = 0.0 if at_once else self._sync_interval
        begin, count = now_ns(), len(bodies)
        try:
            position = await self._thread(state.applier.apply, bodies)
        except LockTimeout as error:  # of somebody who opened it while this node was primary
            self._need_recovery(f"{state.directory.name}: a client keeps the WAL from being written: {error}")
            raise
        while state.applier.must_reopen:
            await self._reopen(state, state.applier)
            position = state.applier.position
            bodies = [body for body in bodies if Header.unpack(body).min_txid > position.txid]
            if bodies:
                position = await self._thread(state.applier.apply, bodies)
        METERS.apply.since(begin)
        METERS.applied[state.directory.name] += count
        if TRACE.enabled:
            elapsed = f"{(now_ns() - begin) / 1e6:.3f}ms"
            TRACE("Apply", state.directory.name, pos=position, records=count, elapsed=elapsed)
        return position

    async def _first_records(self, state: DatabaseState, bodies: Sequence[Buffer]) -> Position:
        """A database that begins with its first transaction: its first record holds all its pages."""
        header = Header.unpack(bodies[0])
        if header.min_txid != 1 or state.damage is not None:
            raise PositionMismatch(
                f"{state.directory.name}: record {header.min_txid:016x} offered, but nothing of it is here"
            )
        target = await self._thread(
            SnapshotTarget, state.directory, header.page_size, header.commit, START, header.timestamp
        )
        try:
            position = await self._thread(lay_records, target, bodies)
            await self._thread(target.verify, target.point)
        except BaseException:
            target.abort()
            raise
        await self._install(state, target)
        self._applied(state.directory.name, position)
        return position

    async def _install(self, state: DatabaseState, target: SnapshotTarget) -> None:
        """Put a received database in place, have the mount show it, and attach to it."""
        await self._thread(put_in_place, state.directory, target)
        await self._show(state)

    async def _show(self, state: DatabaseState) -> None:
        """Have the mount show what recovery or an installation left, and attach to it."""
        try:
            await self._on_ready(state.directory.name)
            state.applier = await self._thread(self._open, state.directory)
        except (OSError, LiteFSError) as error:
            # It lies where the mount may show it already: nothing may take its place beneath clients.
            state.broken = f"{state.directory.name}: installed, but it could not be shown: {error}"
            self._need_recovery(state.broken)
            raise
        await self._thread(state.applier.attach)

    async def _repair(self, state: DatabaseState, target: SnapshotTarget) -> None:
        """Put a snapshot in the place of damaged files, after they were kept."""
        applier, name = state.applier, state.directory.name
        try:
            attached = applier is not None and await self._thread(can_attach, applier)
            if not state.kept:
                await self._thread(keep_file, state.directory.database, state.directory, "damaged")
                state.kept = True
        except BaseException:
            target.abort()
            raise
        if attached and applier is not None:
            await self._replace(state, applier, target)
        else:
            await self._thread(leave_to_recovery, state.directory, target)
            state.broken = f"{name}: a snapshot takes the place of its damaged files"
            self._need_recovery(state.broken)
            state.check()
        state.damage, state.kept = None, False
        log.warning("%s: repaired from the primary's snapshot", name)

    async def _reopen(self, state: DatabaseState, applier: Applier) -> None:
        """Make every connection to a database fail, recover it, and show it anew: its page size changed while
        readers stayed inside, or by a snapshot."""
        name = state.directory.name
        with trio.CancelScope(shield=True):  # clients do not find it meanwhile
            try:
                await self._on_drop(name, True)
                state.applier = None
                await self._thread(applier.close)
                await self._thread(rebuild, state.directory)
            except (OSError, LiteFSError) as error:
                state.broken = f"{name}: could not be made anew with another page size: {error}"
                self._need_recovery(state.broken)
                raise
            await self._show(state)

    async def _replace(self, state: DatabaseState, applier: Applier, target: SnapshotTarget) -> None:
        try:
            await self._thread(applier.replace, target)
            if applier.must_reopen:
                await self._reopen(state, applier)
        except (OSError, LiteFSError) as error:
            if applier.needs_recovery and not applier.must_reopen:
                self._need_recovery(str(error))
            raise

    def _damaged(self, state: DatabaseState, what: str) -> None:
        state.damage = what
        name, lost = state.directory.name, self._datadir.path / "lost"
        log.error("%s: damaged: %s; it is kept in %s and fetched from the primary", name, what, lost)

    async def _scrub(self, tick: int) -> None:
        """Look at a piece of one database file, of each in its turn."""
        states = [state for state in self._states.values() if state.applier is not None]
        state = states[tick % len(states)] if states else None
        if state is None or state.damage or state.broken or state.lock.locked():
            return
        async with state.lock:
            applier = state.applier if state.applier is not None and state.applier.is_settled else None
            wrong = await self._thread(self._scrubber.step, applier) if applier is not None else None
        if wrong:
            self._damaged(state, describe(wrong))
            if self._on_damage is not None:
                self._on_damage()

    def _need_recovery(self, reason: str) -> None:
        if self._on_recovery_needed is not None:
            self._on_recovery_needed(reason)

    async def _abort(self, state: DatabaseState) -> None:
        if state.target is not None:
            target, state.target = state.target, None
            await self._thread(target.abort)

    def _applied(self, name: str, position: Position) -> None:
        if self._on_applied is not None:
            self._on_applied(name, position)

    async def _thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await trio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._limiter)


async def _nothing(name: str, readers: bool) -> None:
    """Nobody shows the database."""
