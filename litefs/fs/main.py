"""The fs process: recover, mount, serve, settle. Started by the node process with its end of the link.

Usage: ``python -m litefs.fs.main LINK_FD WAKE_FD``. Standard error is the node's log. It never opens a file
of its mount (I7), never talks to the network, and ends when the node process does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

from litefs import logs
from litefs.apply.wal import seed_wal
from litefs.clock import boottime_ns
from litefs.errors import FormatError, LiteFSError, MountError
from litefs.fs.databases import Databases
from litefs.fs.halting import Halts
from litefs.fs.inodes import Kind
from litefs.fs.measuring import report
from litefs.fs.namespace import Ownership
from litefs.fs.operations import Operations
from litefs.fs.replication import Replicated
from litefs.fs.role import RoleState
from litefs.fs.rolechange import RoleChanges
from litefs.fs.session import Session
from litefs.link.channel import Channel, LinkClosed, Wake
from litefs.link.messages import (
    Accepted,
    Alive,
    AnyMessage,
    Deadline,
    Dropped,
    Exposed,
    ExposedAck,
    Failed,
    Forget,
    Forgotten,
    Freeze,
    Halt,
    HaltEnd,
    HaltUntil,
    Holding,
    Lag,
    Logged,
    Loose,
    Message,
    Mounted,
    Opened,
    Replication,
    SetRole,
    Start,
    Stop,
    Stopped,
    Thaw,
    Unpublished,
)
from litefs.store import fileops
from litefs.store.damage import advice, mark_damaged
from litefs.store.dropped import complete_replacing
from litefs.store.paths import DataDir
from litefs.store.recovery import Report, recover, settle
from litefs.store.together import resolve
from litefs.trace import TRACE
from litefs.types import Role

log = logging.getLogger("litefs.fs")

READ_AHEAD_KIB = 1024
"""Read-ahead of the mount: cold scans then run at native speed (reference/speed.md)."""

WAL_INDEX_HEADERS = 96
"""Bytes of the two copies of the wal-index header."""

HOUSEKEEPING_SECONDS = 2.0

SWEEP_SECONDS = 0.05
"""How long a commit may wait for its record that nothing tells of: journal_mode MEMORY or OFF with
synchronous=OFF.
"""

SEAL_SECONDS = 3.0
"""How long a client may take to seal the frames of a commit, at least."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class FsProcess:
    """State and tasks of the fs process; implements :class:`litefs.capture.commit.Watcher`."""

    def __init__(self, channel: Channel, wake: Wake, start: Start) -> None:
        self.role = RoleState(start.grace_ns)
        self.replicated = Replicated(self.role, start.sync, wake.signal)
        self._channel = channel
        self._wake = wake
        self._start = start
        self._data = DataDir(start.data_dir)
        self._session: Session | None = None
        self._databases: Databases | None = None
        self._unrecovered: dict[str, str] = {}
        """Databases that could not be recovered, and why."""

    # -- Watcher -----------------------------------------------------------------------------------

    def logged(self, name: str) -> None:
        if self._start.strict_verify and self._databases is not None:
            self._databases.verify(name)
        loop = self._session.loop if self._session is not None else None
        if loop is not None:
            loop.signal_later(self._wake.fd)
        else:
            self._wake.signal()

    def unpublished(self, name: str) -> None:
        self._post(Unpublished(name))

    def loose(self, name: str) -> None:
        self._post(Loose(name))

    def _dropped(self, name: str) -> None:
        if TRACE.enabled:
            TRACE("Drop", name)
        self.replicated.removed(name)
        self._post(Dropped(name))

    def _post(self, message: Message) -> None:
        try:
            self._channel.post(message)
        except LinkClosed:
            log.debug("the node process is gone")

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop or the node process dies.

        Raises LiteFSError if the mount cannot be made.
        """
        die_with_parent(True)  # until there is a mount to remove: recovery may be cut short anywhere
        reports = await trio.to_thread.run_sync(self._recover)
        databases = Databases(
            self._data, self.role, self, self._start.node_id, self._unrecovered, self.replicated
        )
        databases.compress = self._start.compress
        self._databases = databases
        operations = self._operations(databases)
        self._changes = RoleChanges(self.role, databases, self._channel.send)
        self._halts = Halts(databases, self.role, self, self._start.node_id, self._post)
        session = Session(
            operations,
            self._start.mountpoint,
            source=self._start.data_dir,  # by which litefs.client finds the node's socket
            allow_other=self._start.allow_other,
            debug=self._start.debug,
        )
        die_with_parent(False)
        session.mount()
        self._session = session
        databases.mounted(session.minor)
        try:
            session.set_read_ahead(READ_AHEAD_KIB)
        except OSError as exc:
            log.info("read-ahead stays as it is: %s", exc)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.serve)
                nursery.start_soon(self._housekeeping, databases)
                nursery.start_soon(self._sweep, databases)
                nursery.start_soon(self._look_at_seals, databases)
                nursery.start_soon(self._flush_link)
                nursery.start_soon(report, self._post)
                nursery.start_soon(self._changes.run)
                asked = await self._serve_link(databases, operations, Mounted(session.minor, reports))
                self._halts.abandon()
                await databases.sweep()
                await self._leave(operations, session)
                nursery.cancel_scope.cancel()
        finally:
            with contextlib.suppress(MountError):
                session.unmount(lazy=True)
        databases.close()
        await trio.to_thread.run_sync(self._settle)
        if asked:
            await self._channel.send(Stopped())

    def _operations(self, databases: Databases) -> Operations:
        root, start = os.stat(self._start.mountpoint), self._start
        uid = root.st_uid if start.uid is None else start.uid
        owner = Ownership(uid, root.st_gid if start.gid is None else start.gid, start.mode)
        mode = stat.S_IMODE(root.st_mode)
        return Operations(
            self._data,
            databases,
            self.role,
            owner,
            mode,
            os.getppid(),
            lambda name: self._post(Opened(name)),
            self._dropped,
        )

    def _recover(self) -> list[str]:
        lines, self._unrecovered = resolve(self._data)  # first: its intents know databases by their names
        complete_replacing(self._data)
        for name in self._data.names():
            if name in self._unrecovered:
                lines.append(f"{name}: not recovered: {self._unrecovered[name]}")
                continue
            try:
                lines += self._recover_one(name)
            except (LiteFSError, OSError) as exc:
                # one database must not keep the others from being served
                self._unrecovered[name] = str(exc)
                lines.append(f"{name}: not recovered: {exc}")
                if isinstance(exc, FormatError):  # and no trouble of the disk, which may pass
                    mark_damaged(self._data.database_dir(name))
                    lines.append(self._advice(name))
        return lines

    def _advice(self, name: str) -> str:
        """What becomes of a database that may only be read."""
        if self._start.replica:
            return f"{name}: the primary is asked for a snapshot of it"
        return f"{name}: {advice(self._data.database_dir(name))}"

    def _recover_one(self, name: str) -> list[str]:
        report: Report = recover(self._data.database_dir(name), node_id=self._start.node_id)
        if self._start.replica and report.position.txid:
            seed_wal(self._data.database_dir(name).database)
        lines = [f"{name}: {line}" for line in report.lines()]
        return [*lines, self._advice(name)] if report.damaged else lines

    async def _serve_link(self, databases: Databases, operations: Operations, mounted: Mounted) -> bool:
        """Handle the node's messages; True when told to stop, False when the node process is gone."""
        try:
            await self._channel.send(mounted)
            while not isinstance(message := await self._channel.receive(), Stop):
                await self._handle(message, databases, operations)
            return True
        except LinkClosed:
            log.warning("the node process is gone: unmounting")
            return False

    async def _handle(self, message: AnyMessage, databases: Databases, operations: Operations) -> None:
        match message:
            case SetRole() | Freeze():
                await self._changes.request(message)
            case Thaw():
                self._changes.thaw()
            case Deadline():
                self.role.extend(message.deadline_ns)
                self._post(Alive())
            case Replication():
                if self.replicated.told(message):
                    self._post(Holding(message.hold))
            case Lag():
                self.role.lag_ms = message.lag_ms
                self.role.primary_timestamp_ms = message.timestamp_ms
            case Exposed():
                databases.expose(message.name)
                await self._channel.send(ExposedAck(message.name))
            case Forget():
                inodes = operations.forget_database(message.name, message.readers)
                with trio.move_on_after(2):
                    await trio.to_thread.run_sync(_drop_caches, inodes, abandon_on_cancel=True)
                await self._channel.send(Forgotten(message.name))
            case Halt() | HaltUntil() | HaltEnd() | Logged() | Accepted():
                await self._halts.handle(message)
            case _:
                log.error("unexpected message on the link: %r", message)

    async def _flush_link(self) -> None:
        while True:
            await trio.sleep(0.05)
            try:
                await self._channel.flush()
            except LinkClosed:
                return

    async def _sweep(self, databases: Databases) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            await databases.sweep()

    async def _look_at_seals(self, databases: Databases) -> None:
        """Find commits whose client died before it sealed them (litefs.capture.unsealed)."""
        while True:
            await trio.sleep(SEAL_SECONDS)
            for db in databases:
                if db.capture is not None and not db.busy:
                    db.capture.wal.look_at_seal()

    async def _housekeeping(self, databases: Databases) -> None:
        """Sync what clients with synchronous=OFF never sync, so that the log can be reaped (I6)."""
        while True:
            await trio.sleep(HOUSEKEEPING_SECONDS)
            for db in databases:
                capture = db.capture
                if capture is None or db.busy:
                    continue
                try:
                    await db.run(capture.mend())
                    if db.capture is not capture or (txid := capture.begin_sync()) is None:
                        continue
                except (LiteFSError, OSError):
                    continue  # of the log, which says so itself
                try:
                    await trio.to_thread.run_sync(fileops.fdatasync, db.open_database())
                except OSError as exc:
                    if db.capture is capture:  # it may have been removed meanwhile
                        capture.db.file_unsynced(f"{db.name}: could not be synced: {exc}")
                    continue
                if db.capture is capture:
                    capture.end_sync(txid)

    # -- the end -----------------------------------------------------------------------------------

    async def _leave(self, operations: Operations, session: Session) -> None:
        """Answer nothing any more, make connections that stay open fail instead of answering from caches
        (I10), unmount.
        """
        self.role.become(Role.NONE, self.role.term, 0, None)
        self.replicated.begin()
        operations.dead = True
        inodes = operations.invalidated_inodes()
        with trio.move_on_after(2):
            await trio.to_thread.run_sync(functools.partial(_drop_caches, inodes), abandon_on_cancel=True)
        with trio.move_on_after(2):
            await trio.to_thread.run_sync(
                functools.partial(session.unmount, lazy=True), abandon_on_cancel=True
            )

    def _settle(self) -> None:
        """Bring the database files to their logs' tips, so that the next start reads nothing."""
        _, failed = resolve(self._data)
        for name in self._data.names():
            if name in failed:
                continue
            directory = self._data.database_dir(name)
            try:
                settle(directory)
            except (LiteFSError, OSError) as exc:
                log.error("%s: could not be settled, the next start recovers it: %s", name, exc)


def die_with_parent(yes: bool) -> None:
    """Whether this process is killed when its parent dies (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if yes else 0)


def _drop_caches(inodes: list[tuple[int, Kind]]) -> None:
    """Pages of database and WAL first, then the wal-index headers through the page cache that clients have
    mapped.
    """
    for ino, kind in inodes:
        if kind is not Kind.SHM:
            try:
                pyfuse3.invalidate_inode(ino)
            except OSError:
                continue  # the kernel does not know it any more
    for ino, kind in inodes:
        if kind is Kind.SHM:
            try:
                pyfuse3.notify_store(ino, 0, bytes(WAL_INDEX_HEADERS))
            except OSError:
                continue


async def _main(link_fd: int, wake_fd: int) -> int:
    channel = Channel(socket.socket(fileno=link_fd))
    try:
        start = await channel.receive()
    except LinkClosed:
        return 1
    assert isinstance(start, Start)
    logs.setup(start.log)
    try:
        TRACE.setup(start.trace)
        await FsProcess(channel, Wake(wake_fd), start).run()
    except (LiteFSError, OSError) as exc:
        code = exc.exit_code if isinstance(exc, LiteFSError) else 1
        log.debug("giving up at %d", boottime_ns(), exc_info=True)
        try:
            await channel.send(Failed(str(exc), code))
        except LinkClosed:
            log.error("%s", exc)
        return code
    except LinkClosed:
        return 1
    return 0


def main() -> None:
    # the node process decides when to stop; a Ctrl-C reaches the whole process group
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir(Path("/"))
    sys.exit(trio.run(_main, int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
