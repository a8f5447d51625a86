"""The node process: composition root.

One nursery holds the guard over the fs process, the HTTP server and, by role, the publisher (primary) or
the follower with its applier (replica).
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
from pathlib import Path

import trio

from litefs.answers import Answers, Parts
from litefs.application import Application
from litefs.archiving import Archiving
from litefs.client import SOCKET
from litefs.cluster.follow import Callbacks
from litefs.cluster.replicas import Replicas, sync_rules
from litefs.config import Config
from litefs.errors import LiteFSError
from litefs.exposure import Exposure
from litefs.guard import FsGuard, Hooks, prepare_mountpoint
from litefs.halt.node import HaltLinks, Halts
from litefs.housekeeping import Limits, Primary, Retention, raise_file_limit, rotate, tell_lag
from litefs.leading import Leading, ask_for_handoff
from litefs.link.channel import Wake
from litefs.link.messages import (
    AnyMessage,
    Dropped,
    ExposedAck,
    Forgotten,
    HaltEnded,
    HaltSet,
    Holding,
    Loose,
    Measured,
    Mounted,
    Opened,
    Staged,
    Start,
    Unpublished,
)
from litefs.notify import Notifier
from litefs.proxying import Proxying
from litefs.replica import Replica, ReplicaSettings, SinkHooks
from litefs.rolechange import RoleChanges
from litefs.security import Security
from litefs.seeding import seed
from litefs.server.app import create_app
from litefs.server.serve import bind, bind_local, serve
from litefs.starting import start_message, trace_to
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.stream.handshake import Hello
from litefs.stream.protocols import Identity
from litefs.supervise import Supervisor, commands_of
from litefs.takeback import TakeBack
from litefs.telling import Telling
from litefs.trace import TRACE
from litefs.types import ZERO, Position, Role
from litefs.verifying import Verifying, plan_of

log = logging.getLogger("litefs.node")

WAKE_PACE_SECONDS = 0.001
"""Between two wake-ups by the fs process: under load one serves several commits, a lone one never waits."""


class Node:
    """One node."""

    def __init__(self, config: Config, data: DataDir, lock_fd: int) -> None:
        self._config = config
        self._data = data
        self._mount = Path(os.path.abspath(config.fuse.dir))
        self._wake = Wake()
        self._node_id = secrets.randbits(64)
        self._ready = trio.Event()
        self._stop = trio.Event()
        self._signal = signal.SIGTERM
        self._catalog = StoreCatalog(data)
        self._supervisor = Supervisor([])
        self._manager = Notifier.taken_from(os.environ)
        hooks = Hooks(self._mounted, self._message, self._died)
        self._guard = FsGuard(str(self._mount), self._start, self._wake, lock_fd, hooks)
        self._exposure = Exposure(self._guard.post)
        self._security = Security.of(config)
        self._replica = Replica(
            ReplicaSettings(data, self._mount, config.lease.reconnect_delay, self._security.peer),
            lambda: self.identity,
            SinkHooks(self._expose, self._exposure.forget, self._applied, self._guard.restart),
            Callbacks(self._adopt_cluster_id, self._connected, self._disconnected),
        )
        elected = config.lease.type != "static"
        self.replicas = Replicas(
            self._catalog,
            sync_rules(config.replication),
            lambda: self.identity,
            self._guard.post,
            (lambda: self._leading.renew_now()) if elected else None,
        )
        self.roles = RoleChanges(
            data,
            self._catalog,
            self._guard,
            self._replica,
            self.replicas,
            config.lease.demote_delay,
            self._role_changed,
            lambda primary: ask_for_handoff(primary, self._security.peer, lambda: self.identity),
        )
        self._leading = Leading(config, self.roles, self._node_id)
        timeout = config.lease.take_back_timeout
        self._take_back = TakeBack(data, self._security, lambda: self.identity, timeout)
        watched = self._guard.mount_guard
        self._telling = Telling(
            config,
            data,
            self._security,
            lambda: self.identity,
            self._catalog,
            self.roles,
            self._replica,
            self.replicas,
            self._ready.is_set,
        )
        self._watch = Primary(data, self._mount, watched, self._guard.restart, self.roles.may_publish)
        self._halts = Halts(
            data,
            self._mount,
            self._catalog,
            HaltLinks(
                lambda: self._replica.primary,
                lambda: self.identity,
                self._guard.post,
                self._guard.restart,
                lambda: self._replica.sink,
                self._security.peer,
            ),
        )
        drills = plan_of(config.backup, data)
        self._verifying = Verifying(drills, lambda: self.roles.leads, self._telling.events.publish)
        self._archiving = Archiving(
            config.backup,
            data,
            self._catalog,
            lambda: self.roles.leads,
            self.roles.may_publish,
            lambda: self.identity.hostname,
            self._telling.events.publish,
        )
        self._replica.end_loans = self._halts.replica.void
        self._shown = self._answers()
        self._proxying = Proxying(config, self._security, self._shown, self._replica)
        self.roles.hold_requests = self._proxying.hold
        self.roles.resume_requests = self._proxying.resume

    @property
    def identity(self) -> Identity:
        lease = self._config.lease
        # of a static lease it is the primary's, on all nodes
        named = lease.hostname if lease.candidate or lease.type != "static" else ""
        hostname = named or os.environ.get("HOSTNAME") or socket.gethostname()
        return Identity(self._node_id, self._data.cluster_id() or "", self.roles.term, hostname)

    # -- life -----------------------------------------------------------------------------------------

    async def run(self, command: list[str] | None) -> int:
        """Run until told to stop or until the supervised command ends; returns the exit code."""
        sockets = bind(self._config.http.addr)
        self._proxying.bind()
        self._supervisor = supervisor = Supervisor(
            commands_of(self._config.commands, command),
            role=lambda: Role.PRIMARY if self.roles.leads else Role.REPLICA,
        )
        application = Application(
            self._config, supervisor, self._manager, self._proxying, self._leading, self._ready, self._stop
        )
        prepare_mountpoint(str(self._mount))
        remote = list(sockets)
        sockets.append(self._bind_local())
        gone, http_stop = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._signals)
            nursery.start_soon(self._manager.run, self._telling.overview.in_words)
            grant = self._leading.grant()
            self.roles.begin(grant)
            if grant:
                self._ensure_cluster_id()
                await self._take_back.run(remote, self._stop)
            await nursery.start(self.roles.run)
            await nursery.start(self._guarded, gone)
            if self._stop.is_set() and not self._guard.served:
                nursery.cancel_scope.cancel()
                return 0
            if grant:
                await self.roles.settled()
            opened, routes = self._config.http.open, self._proxying.routes
            app = create_app(self._shown, self._security.tokens, opened=opened, routes=routes)
            await nursery.start(serve, app, sockets, http_stop, self._security.tls)
            tasks = (self._wake_loop, self._watch.run, self.replicas.run, self._halts.run)
            for task in (*tasks, self._telling.run, self._verifying.run, self._archiving.run):
                nursery.start_soon(task)
            nursery.start_soon(tell_lag, self._replica.lag, self._guard.post)
            data = self._config.data
            limits = Limits(data.retention, data.retention_bytes, self._config.backup.max_log_bytes)
            retention = Retention(self._data, self._catalog, limits, self._archiving.pinned_txid)
            nursery.start_soon(retention.run, data.retention_monitor_interval)
            nursery.start_soon(rotate, self._config.tracing)
            nursery.start_soon(self._replica.run, self._ready)
            nursery.start_soon(self._proxying.run)
            await nursery.start(self._leading.run)
            code = await application.run(lambda: self._signal)
            self._manager.stopping()
            self.roles.stopping = True
            if not self.replicas.connected():
                await self._archiving.flush()  # nobody would go on with it
            await self._leading.stop()  # the next primary still has to be sent what it lacks
            self._telling.events.close()
            http_stop.set()
            await self._leave(gone)
            await self._archiving.flush()
            nursery.cancel_scope.cancel()
        return code

    async def _signals(self) -> None:
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
        await self._halts.leave()
        await self._replica.leave()
        self._watch.close()
        self._guard.stop()
        await gone.wait()

    def _answers(self) -> Answers:
        parts = Parts(
            self._data,
            self._mount,
            self._config.lease.candidate,
            float(self._config.http.snapshot_timeout) or math.inf,
            lambda: self.identity,
            self._catalog,
            self.roles,
            self._replica,
            self.replicas,
            self._leading,
            self._telling,
            self._halts,
            self._take_back,
            self._verifying.figures,
            self._archiving.figures,
            self._archiving.snapshot if self._archiving.enabled else None,
        )
        return Answers(parts)

    def _bind_local(self) -> socket.socket:
        """The socket of litefs.client: for those who may write the databases, since it lets them do so."""
        fuse = self._config.fuse
        return bind_local(self._data.path / SOCKET, fuse.mode or 0o600, fuse.uid, fuse.gid)

    def _ensure_cluster_id(self) -> None:
        if self._data.cluster_id() is None:
            self._data.set_cluster_id(f"LFSC{secrets.randbits(64):016X}")

    def _start(self) -> Start:
        """What a fresh fs process has to know."""
        replica, rules = self.roles.role is not Role.PRIMARY, self.replicas.rules
        return start_message(
            self._config, self._data, str(self._mount), self._node_id, rules, replica=replica
        )

    # -- the fs process -------------------------------------------------------------------------------

    async def _mounted(self, message: Mounted) -> None:
        for line in message.reports:
            log.warning("recovery: %s", line)
        self._catalog.rescan()
        self._catalog.notify()
        self.roles.mounted()
        self._leading.mounted()

    async def _role_changed(self, role: Role) -> None:
        self._leading.changed(role)
        self._telling.role_changed(role)
        if role is Role.PRIMARY:
            self._ready.set()
        else:
            await self._halts.primary.void()
        await self._supervisor.tell(role)

    async def _message(self, message: AnyMessage) -> None:
        match message:
            case Opened():
                self._watch.opened(message.name)
                self._catalog.refresh(message.name)
            case Unpublished():
                self._watch.unpublished(message.name)
            case Loose():
                self._watch.loose(message.name)
            case Holding():
                self.replicas.holding(message.hold)
            case Measured():
                self._telling.figures.measured(message)
            case Dropped():
                self._dropped(message.name)
            case Forgotten() | ExposedAck():
                self._exposure.message(message)
            case Staged() | HaltSet() | HaltEnded():
                self._halts.replica.message(message)
            case _:
                self.roles.message(message)

    async def _died(self) -> None:
        """The mount is gone: everything that was a client of it ends."""
        self._leading.unmounted()
        await self._halts.unmounted()
        await self.roles.unmounted()
        self._watch.forget()

    async def _expose(self, name: str) -> None:
        await self._exposure.expose(name)
        self._watch.opened(name)
        self._catalog.add(name)

    def _dropped(self, name: str) -> None:
        log.info("%s: removed", name)
        self._catalog.remove(name)
        self.replicas.dropped(name)
        self._archiving.dropped(name)
        self._watch.dropped(name)

    # -- replica --------------------------------------------------------------------------------------

    async def _adopt_cluster_id(self, cluster_id: str) -> None:
        self._data.set_cluster_id(cluster_id)

    def _connected(self, hello: Hello) -> None:
        self._leading.saw_term(hello.identity.term)
        self.roles.connected(hello.identity.hostname, hello.identity.term)
        self._telling.connected(hello)

    def _disconnected(self, error: LiteFSError | None) -> None:
        self.roles.disconnected()
        self._telling.disconnected(error)

    def _applied(self, name: str, position: Position) -> None:
        if position == ZERO:
            self._dropped(name)
        self._telling.figures.applied(name)
        self._catalog.notify()

    # -- loops ----------------------------------------------------------------------------------------

    async def _wake_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._catalog.notify()
            await trio.sleep(WAKE_PACE_SECONDS)


async def _main(config: Config, command: list[str] | None) -> int:
    try:
        data = DataDir(config.data.dir)
        lock_fd = data.lock()
    except OSError as error:
        raise LiteFSError(
            f"cannot use the data directory {config.data.dir}: {error.strerror}; let this user write there, "
            "or choose another data.dir in litefs.yml"
        ) from error
    raise_file_limit()
    TRACE.setup(trace_to(config))
    try:
        # nobody else has the databases of a static primary
        alone = config.lease.type == "static" and config.lease.candidate
        await seed(config.backup, data, required=alone)
        return await Node(config, data, lock_fd).run(command)
    finally:
        (data.path / SOCKET).unlink(missing_ok=True)
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
