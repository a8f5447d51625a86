"""The node process: composition root.

One nursery holds the guard over the fs process, the HTTP server and, by role, the publisher (primary) or
the follower with its applier (replica).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterable
from pathlib import Path

import trio

from litefs.apply.sink import ReplicaSink
from litefs.apply.transfer import export_file, import_file
from litefs.cluster.follow import Callbacks, follow
from litefs.cluster.lease import StaticLease
from litefs.config import Config
from litefs.errors import DatabaseNotFound, LiteFSError, NotPrimary
from litefs.guard import FsGuard, Hooks, prepare_mountpoint
from litefs.housekeeping import Primary, Retention, raise_file_limit
from litefs.link.channel import Wake
from litefs.link.messages import (
    FOREVER,
    AnyMessage,
    Dropped,
    Exposed,
    ExposedAck,
    Forget,
    Forgotten,
    Lag,
    LogOptions,
    Loose,
    Mounted,
    Opened,
    SetRole,
    Start,
    Unpublished,
)
from litefs.server.app import create_app
from litefs.server.serve import bind, serve
from litefs.server.view import DatabaseInfo, Export
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.stream.handshake import Hello
from litefs.stream.protocols import Identity
from litefs.supervise import Supervisor, commands_of
from litefs.types import ZERO, Position, Role

log = logging.getLogger("litefs.node")

EXPOSE_SECONDS = 10.0
"""How long the fs process may take to show a database that was installed."""

LAG_SECONDS = 0.25
"""Between two updates of ``.lag``."""

WAKE_PACE_SECONDS = 0.001
"""Between two wake-ups by the fs process: under load one serves several commits, a lone one never waits."""

COPIES = 4
"""Imports and exports that are worked on at a time; more of them wait, and hold up nothing else."""

DETACH_SECONDS = 2.0
"""How long the applier may take to checkpoint and let go of the mount at a stop."""


class Node:
    """One node; implements :class:`litefs.server.view.NodeView`."""

    def __init__(self, config: Config, data: DataDir, lock_fd: int) -> None:
        self._config = config
        self._data = data
        self._mount = Path(os.path.abspath(config.fuse.dir))
        self._wake = Wake()
        self._role = Role.NONE
        self._term = 0
        self._node_id = secrets.randbits(64)
        self._primary: str | None = None
        self._sink: ReplicaSink | None = None
        self._sink_ready = trio.Event()
        self._follow_scope = trio.CancelScope()
        self._exposed: dict[str, trio.Event] = {}
        self._forgotten: dict[str, trio.Event] = {}
        self._ready = trio.Event()
        self._stop = trio.Event()
        self._copies = trio.CapacityLimiter(COPIES)
        self._signal = signal.SIGTERM
        self._lease = StaticLease(
            candidate=config.lease.candidate,
            hostname=config.lease.hostname,
            advertise_url=config.lease.advertise_url,
        )
        self._catalog = StoreCatalog(data)
        hooks = Hooks(self._mounted, self._message, self._died)
        self._guard = FsGuard(str(self._mount), self._start, self._wake, lock_fd, hooks)
        self._watch = Primary(data, self._mount, self._guard.mount_guard, self._guard.restart)

    # -- life -----------------------------------------------------------------------------------------

    async def run(self, command: list[str] | None) -> int:
        """Run until told to stop or until the supervised command ends; returns the exit code."""
        sockets = bind(self._config.http.addr)
        supervisor = Supervisor(commands_of(self._config.commands, command))
        prepare_mountpoint(str(self._mount))
        gone, http_stop = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._signals, supervisor)
            grant = await self._lease.acquire()
            self._role = Role.PRIMARY if grant else Role.REPLICA
            if grant:
                self._term = grant.term
                self._ensure_cluster_id()
            await nursery.start(self._guarded, gone)
            if self._stop.is_set() and not self._guard.served:
                nursery.cancel_scope.cancel()
                return 0
            await nursery.start(serve, create_app(self), sockets, http_stop)
            for task in (self._wake_loop, self._watch.run, self._lag_loop):
                nursery.start_soon(task)
            data = self._config.data
            retention = Retention(self._data, self._catalog, data.retention, data.retention_bytes)
            nursery.start_soon(retention.run, data.retention_monitor_interval)
            if self._role is Role.REPLICA:
                nursery.start_soon(self._replicate)
            else:
                self._ready.set()
            code = await self._application(supervisor)
            http_stop.set()
            await self._leave(gone)
            nursery.cancel_scope.cancel()
        return code

    async def _application(self, supervisor: Supervisor) -> int:
        """Wait until ready, then run what is supervised; without commands wait for the signal."""
        code = 0
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                nonlocal code
                if not self._config.skip_sync:
                    await self._ready.wait()
                log.info("ready as %s", self._role)
                code = await supervisor.run(self._config.lease.candidate)
                if code and not self._config.exit_on_error:
                    log.error("the command failed with exit status %d; exit-on-error is false", code)
                    await self._stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            await self._stop.wait()
            supervisor.terminate(self._signal)
            if not self._ready.is_set():
                nursery.cancel_scope.cancel()
        return code

    async def _signals(self, supervisor: Supervisor) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("received %s, stopping", signal.Signals(number).name)
                self._signal = signal.Signals(number)
                self._stop.set()
                if not self._guard.served:
                    self._guard.stop()

    async def _guarded(
        self, gone: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await self._guard.run(task_status=task_status)
        finally:
            gone.set()

    async def _leave(self, gone: trio.Event) -> None:
        """Let go of the mount, then have it removed; bounded, so that a stop never takes long."""
        self._guard.prepare_stop()
        self._follow_scope.cancel()
        if self._sink is not None:
            with trio.move_on_after(DETACH_SECONDS):
                await self._sink.close()
        self._watch.close()
        self._guard.stop()
        await gone.wait()

    def _ensure_cluster_id(self) -> None:
        if self._data.cluster_id() is None:
            self._data.set_cluster_id(f"LFSC{secrets.randbits(64):016X}")

    def _start(self) -> Start:
        """What a fresh fs process has to know."""
        fuse, log_ = self._config.fuse, self._config.log
        return Start(
            str(self._data.path),
            str(self._mount),
            self._node_id,
            replica=self._role is Role.REPLICA,
            allow_other=fuse.allow_other,
            debug=fuse.debug,
            uid=fuse.uid,
            gid=fuse.gid,
            mode=fuse.mode,
            log=LogOptions(log_.format, log_.timestamp, log_.debug),
        )

    # -- the fs process -------------------------------------------------------------------------------

    async def _mounted(self, message: Mounted) -> None:
        for line in message.reports:
            log.warning("recovery: %s", line)
        self._post_role()
        if self._role is Role.REPLICA:
            sink = ReplicaSink(
                self._data,
                self._mount,
                on_database_ready=self._expose,
                on_drop=self._forget,
                on_applied=self._applied,
                on_recovery_needed=self._guard.restart,
            )
            await sink.start()
            self._sink = sink
            self._sink_ready.set()
        self._catalog.rescan()
        self._catalog.notify()

    def _post_role(self) -> None:
        deadline = FOREVER if self._role is Role.PRIMARY else 0
        self._guard.post(SetRole(self._role, self._term, deadline, self._primary))

    async def _message(self, message: AnyMessage) -> None:
        match message:
            case Opened():
                self._watch.opened(message.name)
                self._catalog.rescan()
            case Unpublished():
                self._watch.unpublished(message.name)
            case Loose():
                self._watch.loose(message.name)
            case Dropped():
                self._dropped(message.name)
            case Forgotten():
                self._forgotten.pop(message.name, trio.Event()).set()
            case ExposedAck():
                self._exposed.pop(message.name, trio.Event()).set()

    async def _died(self) -> None:
        """The mount is gone: everything that was a client of it ends."""
        self._follow_scope.cancel()
        sink, self._sink = self._sink, None
        self._sink_ready = trio.Event()
        if sink is not None:
            await sink.close()
        self._watch.forget()

    async def _expose(self, name: str) -> None:
        event = self._exposed[name] = trio.Event()
        self._guard.post(Exposed(name))
        with trio.move_on_after(EXPOSE_SECONDS):
            await event.wait()
            self._watch.opened(name)
            self._catalog.add(name)
            return
        raise LiteFSError(f"{name}: the fs process did not show the database")

    async def _forget(self, name: str, readers: bool) -> None:
        event = self._forgotten[name] = trio.Event()
        self._guard.post(Forget(name, readers))
        with trio.move_on_after(EXPOSE_SECONDS):
            await event.wait()
            return
        raise LiteFSError(f"{name}: the fs process did not let go of the database")

    def _dropped(self, name: str) -> None:
        log.info("%s: removed", name)
        self._catalog.remove(name)
        self._watch.dropped(name)

    # -- replica --------------------------------------------------------------------------------------

    async def _replicate(self) -> None:
        """Follow the primary; with a new applier whenever the mount was made anew."""
        while True:
            await self._sink_ready.wait()
            sink = self._sink
            if sink is None:
                await trio.lowlevel.checkpoint()
                continue
            primary = await self._lease.primary()
            assert primary is not None
            with trio.CancelScope() as self._follow_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sink.run)
                    nursery.start_soon(self._note_ready, sink)
                    callbacks = Callbacks(self._adopt_cluster_id, self._connected, self._disconnected)
                    await follow(
                        primary.advertise_url,
                        sink,
                        lambda: self.identity,
                        callbacks,
                        reconnect_delay=self._config.lease.reconnect_delay,
                        spool_dir=self._data.path,
                    )
            if self._stop.is_set():
                return

    async def _note_ready(self, sink: ReplicaSink) -> None:
        await sink.caught_up.wait()
        self._ready.set()

    async def _adopt_cluster_id(self, cluster_id: str) -> None:
        self._data.set_cluster_id(cluster_id)

    def _connected(self, hello: Hello) -> None:
        self._primary, self._term = hello.identity.hostname, hello.identity.term
        self._post_role()

    def _disconnected(self, error: LiteFSError | None) -> None:
        self._primary = None
        self._post_role()

    def _applied(self, name: str, position: Position) -> None:
        if position == ZERO:
            self._dropped(name)
        self._catalog.notify()

    # -- loops ----------------------------------------------------------------------------------------

    async def _wake_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._catalog.notify()
            await trio.sleep(WAKE_PACE_SECONDS)

    async def _lag_loop(self) -> None:
        shown: tuple[int | None, int] | None = None
        while True:
            sink = self._sink
            if sink is not None and sink.primary_time_ms:
                now = (int(self.lag_seconds * 1000), sink.primary_time_ms)
                if now != shown:
                    shown = now
                    self._guard.post(Lag(*now))
            await trio.sleep(LAG_SECONDS)

    # -- NodeView -------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        hostname = self._config.lease.hostname or os.environ.get("HOSTNAME", "")
        return Identity(self._node_id, self._data.cluster_id() or "", self._term, hostname)

    @property
    def is_primary(self) -> bool:
        return self._role is Role.PRIMARY

    @property
    def candidate(self) -> bool:
        return self._config.lease.candidate

    @property
    def mountpoint(self) -> str:
        return str(self._mount)

    @property
    def primary_hostname(self) -> str | None:
        return self._primary

    @property
    def catalog(self) -> StoreCatalog:
        return self._catalog

    @property
    def lag_seconds(self) -> float:
        if self.is_primary or self._sink is None or not self._sink.primary_time_ms:
            return 0.0
        return max(0.0, time.time() - self._sink.primary_time_ms / 1000)

    def databases(self) -> list[DatabaseInfo]:
        found = []
        for name, source in self._catalog.sources().items():
            position = source.position()
            sizes = []
            for path in self._data.database_dir(name).log.glob("*.seg"):
                with contextlib.suppress(FileNotFoundError):  # retention was quicker
                    sizes.append(path.stat().st_size)
            found.append(DatabaseInfo(name, position, position.txid, len(sizes), sum(sizes)))
        return found

    async def import_database(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Replace or create *name* by the SQLite database in *chunks*; nothing changes unless all is well."""
        if not self.is_primary:
            raise NotPrimary("lease expired")
        self._data.database_dir(name)  # the name is checked before anything is received
        target = self._mount / name
        with self._watch.scratch() as scratch:
            async with await trio.open_file(scratch, "wb") as file:
                async for chunk in chunks:
                    await file.write(chunk)
            await trio.to_thread.run_sync(import_file, scratch, target, limiter=self._copies)

    async def export_database(self, name: str) -> Export:
        """A consistent copy of *name*, of any node. Raises DatabaseNotFound."""
        if self._data.database_dir(name).name not in self._catalog.sources():
            raise DatabaseNotFound("database not found")
        return await trio.to_thread.run_sync(self._export, name, limiter=self._copies)

    def _export(self, name: str) -> Export:
        with self._watch.scratch() as scratch:
            export_file(self._mount / name, scratch)
            file = scratch.open("rb")
        return Export(file, os.fstat(file.fileno()).st_size)


async def _main(config: Config, command: list[str] | None) -> int:
    data = DataDir(config.data.dir)
    lock_fd = data.lock()
    raise_file_limit()
    try:
        return await Node(config, data, lock_fd).run(command)
    finally:
        os.close(lock_fd)


def run(config: Config, *, command: list[str] | None = None) -> int:
    """Run a node until it stops; returns the exit code. Raises LiteFSError."""
    try:
        return trio.run(_main, config, command, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        expected = group.subgroup(LiteFSError)
        while isinstance(expected, BaseExceptionGroup):
            expected = expected.exceptions[0]  # type: ignore[assignment]
        if isinstance(expected, LiteFSError):
            log.debug("stopped by", exc_info=group)
            raise expected from None
        raise
