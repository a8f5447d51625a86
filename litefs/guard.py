"""The node process as guard over its fs process: start, watch, clear away after its death, start again
(DESIGN §2).

Also what has to happen before a mount may serve at all: a mount left over from a node that died is made
harmless first.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from litefs.apply.retire import MountGuard, retire_stale
from litefs.errors import FsProcessDied, LiteFSError, MountError
from litefs.fs import session, underlay
from litefs.link.channel import Channel, LinkClosed, Wake, socketpair
from litefs.link.messages import AnyMessage, Failed, Message, Mounted, Start, Stop, Stopped

log = logging.getLogger("litefs.guard")

MOUNT_SECONDS = 600.0
"""How long recovery and mounting may take (an unclean stop reads every page)."""

STOP_SECONDS = 4.0
"""How long the fs process may take to unmount and settle before it is killed."""

REAP_SECONDS = 1.0
"""How long it may take to end after it closed the link; nothing is left to do then."""

FLUSH_SECONDS = 0.05
"""Between two looks for messages that the link did not take at once."""

RESTART_DELAYS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each restart in a row; the last one repeats. A run of a minute starts the row again."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the node does at the turns of the fs process's life.

    ``mounted``: a mount serves; its databases are recovered. ``message``: anything else it says.
    ``died``: it is gone; let go of every file of the mount.
    """

    mounted: Callable[[Mounted], Awaitable[None]]
    message: Callable[[AnyMessage], Awaitable[None]]
    died: Callable[[], Awaitable[None]]


class FsGuard:
    """Keeps one fs process running for a mount point."""

    def __init__(
        self, mountpoint: str, start: Callable[[], Start], wake: Wake, lock_fd: int, hooks: Hooks
    ) -> None:
        """``start``: what a fresh fs process is told; ``lock_fd``: it inherits the data directory's lock."""
        self._mountpoint = mountpoint
        self._start = start
        self._wake = wake
        self._lock_fd = lock_fd
        self._hooks = hooks
        self._channel: Channel | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = trio.Event()
        self._mounted = False
        self.served = False
        """A mount of this node has served once: what fails from then on is tried again."""
        self.mount_guard = MountGuard(Path(mountpoint))
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def post(self, message: Message) -> None:
        """Tell the fs process; lost if it is just dying, since its successor is told everything anew."""
        if self._channel is not None:
            try:
                self._channel.post(message)
            except LinkClosed:
                log.debug("the fs process is gone, dropped %r", message)

    def prepare_stop(self) -> None:
        """From now on the fs process is not started again, and has STOP_SECONDS until it is killed.

        One that does not serve yet is killed at once: recovery may be cut short anywhere.
        """
        self._stopping.set()

    def stop(self) -> None:
        """Ask the fs process to unmount and settle; :meth:`run` returns when it is gone."""
        self.prepare_stop()
        self.post(Stop())

    def restart(self, reason: str) -> None:
        """End the fs process the hard way: its successor recovers every database from its log. Any thread."""
        child = self._child
        if child is not None and not self._stopping.is_set():
            log.error("restarting the fs process: %s", reason)
            child.kill()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the fs process running until :meth:`stop`; "started" when the mount serves, or never will.

        The first start's failure is raised (LiteFSError).
        """
        await trio.to_thread.run_sync(clear_stale_mount, self._mountpoint)
        await trio.to_thread.run_sync(underlay.lay, self._mountpoint)
        try:
            await self._keep_running(task_status)
        finally:
            underlay.lift(self._mountpoint)

    async def _keep_running(self, task_status: trio.TaskStatus[None]) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = trio.current_time()
            try:
                await self._run_once(task_status)
            except LiteFSError as exc:
                if self._stopping.is_set():
                    break
                if not self.served:
                    raise
                log.error("%s; starting it again", exc)
            failures = 0 if trio.current_time() - began > 60 else failures + 1
            self.restarts += 1
            with trio.move_on_after(RESTART_DELAYS[min(max(failures - 1, 0), len(RESTART_DELAYS) - 1)]):
                await self._stopping.wait()
        if not self.served:
            task_status.started()

    async def _run_once(self, task_status: trio.TaskStatus[None]) -> None:
        """One fs process from start to end. Raises LiteFSError unless it stopped as asked."""
        child, channel = self._spawn()
        error: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._bound_stop, child)
                nursery.start_soon(_flush, channel)
                try:
                    await self._talk(channel, task_status)
                except (LinkClosed, LiteFSError, OSError) as exc:
                    error = exc
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                status = await self._clear_away(child, channel)
        if isinstance(error, LiteFSError):
            raise error
        if error is not None:
            raise FsProcessDied(f"the fs process ended unexpectedly ({status}): {error}") from error

    async def _talk(self, channel: Channel, task_status: trio.TaskStatus[None]) -> None:
        """Until the fs process has stopped. Raises LinkClosed, MountError, and OSError of a mount that died
        under a hook.
        """
        await channel.send(self._start())
        with trio.move_on_after(MOUNT_SECONDS) as scope:
            first = await channel.receive()
        if scope.cancelled_caught:
            raise MountError(f"the mount did not appear within {MOUNT_SECONDS:g} s")
        if isinstance(first, Failed):
            error = MountError(first.error)
            error.exit_code = first.exit_code
            raise error
        assert isinstance(first, Mounted)
        self._mounted = True
        await self._hooks.mounted(first)
        if not self.served:
            self.served = True
            task_status.started()
        while not isinstance(message := await channel.receive(), Stopped):
            await self._hooks.message(message)

    async def _bound_stop(self, child: subprocess.Popen[bytes]) -> None:
        """Kill a fs process that does not stop in time; all that waits for it or its mount goes on then."""
        await self._stopping.wait()
        if self._mounted:
            await trio.sleep(STOP_SECONDS)
            log.warning("the fs process did not stop within %g s, killing it", STOP_SECONDS)
        child.kill()
        await trio.to_thread.run_sync(self._abort_mount)

    def _abort_mount(self) -> None:
        try:
            session.abort_mount(self._mountpoint)
        except MountError as exc:
            log.error("%s", exc)

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Channel]:
        ours, theirs = socketpair()
        fds = (theirs.fileno(), self._wake.fd, self._lock_fd)
        argv = [sys.executable, "-m", "litefs.fs.main", str(fds[0]), str(fds[1])]
        self._mounted = False
        self._child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=fds, start_new_session=True)
        theirs.close()
        self._channel = Channel(ours)
        return self._child, self._channel

    async def _clear_away(self, child: subprocess.Popen[bytes], channel: Channel) -> str:
        """After the fs process ended, asked or not: nothing of its mount may answer or hang anybody.

        Returns how it ended.
        """
        self._channel = None
        channel.close()
        if not await _ended(child, REAP_SECONDS):
            log.warning("the fs process did not end by itself, killing it")
            child.kill()
            await trio.to_thread.run_sync(self._abort_mount)
            if not await _ended(child, 5):
                log.error("the fs process %d hangs in the kernel", child.pid)
        self._child = None
        await trio.to_thread.run_sync(self._abort_mount)
        await trio.to_thread.run_sync(self.mount_guard.retire)
        await self._hooks.died()
        if session.is_mounted(self._mountpoint):
            await trio.to_thread.run_sync(clear_stale_mount, self._mountpoint)
        code = child.returncode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"


async def _flush(channel: Channel) -> None:
    """Send what the socket did not take at once."""
    while True:
        await trio.sleep(FLUSH_SECONDS)
        try:
            await channel.flush()
        except LinkClosed:
            return


async def _ended(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether *child* ends within that time; it is reaped then."""
    descriptor = os.pidfd_open(child.pid) if child.poll() is None else -1
    try:
        with trio.move_on_after(seconds):
            while child.poll() is None:
                await trio.lowlevel.wait_readable(descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return child.poll() is not None


def clear_stale_mount(mountpoint: str) -> None:
    """Make a mount whose server is dead harmless and remove it (I10).

    Raises MountError if it cannot be removed.
    """
    while session.is_stale(mountpoint):
        for holder in retire_stale(Path(mountpoint)):
            log.warning(
                "process %d (%s) still holds files of the dead mount: restart it", holder.pid, holder.command
            )
        log.info("removing the dead mount at %s", mountpoint)
        session.lazy_unmount(mountpoint)


def prepare_mountpoint(path: str) -> None:
    """Create the mount point if it is missing. Raises MountError."""
    if session.is_mounted(path):
        return  # stat()ing a dead mount fails; the guard looks at it next
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as exc:
        raise MountError(
            f"cannot create mount point {path}: {exc.strerror}; fuse.dir has to name a directory, or a place "
            "where this user may make one"
        ) from exc
