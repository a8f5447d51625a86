"""The mount itself: mounting, the request loop, unmounting, and what /proc and /sys say about FUSE mounts.

Everything that looks at a mount from outside reads ``/proc/self/mountinfo`` or asks a child process: a stat
of a mount whose server hangs would hang as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from types import SimpleNamespace

import pyfuse3
import trio

from litefs._core.fuseloop import FuseLoop, ReadLock
from litefs.errors import MountError
from litefs.mountinfo import MountInfo as MountInfo
from litefs.mountinfo import mount_table as mount_table
from litefs.mountinfo import parse_mountinfo as parse_mountinfo

log = logging.getLogger(__name__)

FSTYPE = "fuse.litefs"
UNDERLAY_SOURCE = "litefs-underlay"
"""Names the mounts of litefs.fs.underlay."""

PROBE_SECONDS = 2.0
"""How long a mount may take to answer before it counts as served by a hanging process."""

MAX_REQUESTS = 10_000
"""Worked at at a time; each commit that waits for replicas is one."""

_PROBE = """
import os, sys
try:
    os.statvfs(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""
_MNT_FORCE = 1
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def find_mount(path: str | os.PathLike[str]) -> MountInfo | None:
    """The topmost mount at exactly ``path``, or None; an underlay does not count.

    Does not touch the mount.
    """
    mounts = mounts_at(path)
    return mounts[-1] if mounts and mounts[-1].source != UNDERLAY_SOURCE else None


def mounts_at(path: str | os.PathLike[str]) -> list[MountInfo]:
    """All mounts at exactly ``path``, the topmost last."""
    wanted = _absolute(path)
    return [mount for mount in mount_table() if mount.path == wanted]


def _absolute(path: str | os.PathLike[str]) -> str:
    # realpath of the parent only: resolving the last component could ask the mount.
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def is_mounted(path: str | os.PathLike[str]) -> bool:
    """Whether anything is mounted at exactly ``path``, alive or not."""
    return find_mount(path) is not None


def is_stale(path: str | os.PathLike[str]) -> bool:
    """Whether a FUSE mount is at ``path`` whose server is gone (statfs gives ENOTCONN or ECONNABORTED).

    A mount that does not answer within PROBE_SECONDS is not stale: somebody holds its other end.
    """
    mount = find_mount(path)
    if mount is None or not mount.fstype.startswith("fuse"):
        return False
    command = [sys.executable, "-I", "-S", "-c", _PROBE, mount.path]
    try:
        probe = subprocess.run(command, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode in (errno.ENOTCONN, errno.ECONNABORTED)


def lazy_unmount(path: str | os.PathLike[str]) -> None:
    """Detach the topmost mount at ``path`` now; it ends when its last open file closes. Raises MountError."""
    _umount(_absolute(path), _MNT_DETACH)


def _umount(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags) != 0:
        code = ctypes.get_errno()
        raise MountError(f"cannot unmount {path}: {os.strerror(code)}")


def abort(minor: int) -> None:
    """Abort the FUSE connection of the mount with this device minor: every waiting client gets an error.

    Uses the control file system where it is mounted, else a forced unmount, which aborts also if the mount is
    busy and removes it if not; for that it must be in the mount table: abort before :func:`lazy_unmount`.
    A connection that is already gone is no error. Raises MountError if it cannot be aborted.
    """
    try:
        with open(f"/sys/fs/fuse/connections/{minor}/abort", "w", encoding="ascii") as file:
            file.write("1")
    except FileNotFoundError:
        mount = next((mount for mount in mount_table() if (mount.major, mount.minor) == (0, minor)), None)
        if mount is not None and _libc.umount2(os.fsencode(mount.path), _MNT_FORCE) != 0:
            code = ctypes.get_errno()
            if code != errno.EBUSY:
                raise MountError(f"cannot abort the mount at {mount.path}: {os.strerror(code)}") from None
    except OSError as error:
        raise MountError(f"cannot abort FUSE connection {minor}: {error.strerror}") from error


def abort_mount(path: str | os.PathLike[str]) -> None:
    """Abort the connection of the FUSE mount at exactly ``path``, if there is one. Raises MountError.

    Never abort by a number that was noted earlier: once a mount is gone the kernel gives its minor to the
    next one, of whatever process.
    """
    mount = find_mount(path)
    if mount is not None and mount.fstype.startswith("fuse"):
        abort(mount.minor)


class Session:
    """One mount and its request loop. At most one per process: pyfuse3 keeps its session in a global.

    ``loop`` is the FuseLoop once :meth:`serve` runs. Handlers use it to ask for a turn of other tasks.
    """

    def __init__(
        self,
        operations: pyfuse3.Operations,
        mountpoint: str | os.PathLike[str],
        *,
        source: str = "litefs",
        allow_other: bool = False,
        debug: bool = False,
        max_spin_us: int | None = None,
        read_only: bool = False,
    ) -> None:
        """``source``: what the mount table shows as the device. ``read_only``: the kernel refuses writes."""
        self._operations = operations
        self._source = source
        self._path = _absolute(mountpoint)
        self._allow_other = allow_other
        self._debug = debug
        self._read_only = read_only
        self._max_spin_us = max_spin_us
        self._minor = -1
        self.loop: FuseLoop | None = None

    @property
    def minor(self) -> int:
        """Device minor of the mount: N of ``/sys/fs/fuse/connections/N``. Raises MountError before mount."""
        if self._minor < 0:
            raise MountError(f"{self._path} is not mounted")
        return self._minor

    def mount(self) -> None:
        """Mount, without answering requests yet. Raises MountError with what to do about it."""
        check_mountpoint(self._path)
        source = self._source.replace("\\", "\\\\").replace(",", "\\,")  # fuse_opt_parse undoes it
        options = {f"fsname={source}", "subtype=litefs", "default_permissions"}
        if self._allow_other:
            options.add("allow_other")
        if self._debug:
            options.add("debug")
        if self._read_only:
            options.add("ro")
        try:
            pyfuse3.init(self._operations, self._path, options)
        except RuntimeError as error:
            raise MountError(
                f"cannot mount {self._path}: {error}, for the reason above; to mount takes root, in a "
                "container --device /dev/fuse and --cap-add SYS_ADMIN, or fusermount3 of the package fuse3"
            ) from error
        mount = find_mount(self._path)
        if mount is None or mount.fstype != FSTYPE:
            pyfuse3.close(unmount=True)
            raise MountError(f"cannot mount {self._path}: the mount did not appear")
        self._minor = mount.minor

    def set_read_ahead(self, kib: int) -> None:
        """Set the kernel's read-ahead for files of the mount, in KiB. Raises OSError without root."""
        path = f"/sys/class/bdi/0:{self.minor}/read_ahead_kb"
        with open(path, "w", encoding="ascii") as file:
            file.write(str(kib))

    async def serve(self) -> None:
        """Answer requests until the mount ends or :meth:`terminate` is called; then free pyfuse3's session.

        The mount itself is left as it is when cancelled or terminated; :meth:`unmount` removes it.
        """
        self.loop = FuseLoop(_trio_wakeup_fd(), self._spin())
        original = pyfuse3.trio  # type: ignore[attr-defined]
        pyfuse3.trio = _primitives(self.loop)  # type: ignore[attr-defined]
        try:
            await pyfuse3.main(max_tasks=MAX_REQUESTS)
        finally:
            pyfuse3.trio = original  # type: ignore[attr-defined]
            pyfuse3.close(unmount=False)

    def _spin(self) -> int:
        if self._max_spin_us is not None:
            return self._max_spin_us
        # On a single CPU a spin only keeps the client from making its next request.
        return 200 if len(os.sched_getaffinity(0)) > 1 else 0

    def terminate(self) -> None:
        """Make :meth:`serve` return once the requests in work are answered. From the trio thread."""
        if self.loop is not None:
            pyfuse3.terminate()

    def unmount(self, lazy: bool = False) -> None:
        """Remove the mount if it is still there. Blocks: call it in a thread while :meth:`serve` runs.

        Raises MountError ("target is busy") if files are open and ``lazy`` is False.
        """
        mount = find_mount(self._path)
        if mount is not None and mount.minor == self._minor:
            _umount(self._path, _MNT_DETACH if lazy else 0)


def check_mountpoint(path: str | os.PathLike[str]) -> None:
    """Raise MountError unless ``path`` is an empty directory with nothing mounted on it."""
    if is_mounted(path):
        raise MountError(
            f"mount point {path} is in use: unmount what is there (umount {path}), or choose another fuse.dir"
        )
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode):
            raise MountError(f"mount point {path} is not a directory: choose another fuse.dir")
        if os.listdir(path):
            raise MountError(
                f"mount point {path} is not empty: mounting would hide its files; move them away, or choose "
                "another fuse.dir. Databases go into the mount when it is there"
            )
    except OSError as error:
        raise MountError(f"mount point {path}: {error.strerror}") from error
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError(
            "/dev/fuse is missing or not accessible: load the module (modprobe fuse), or give the container "
            "--device /dev/fuse"
        )


def _trio_wakeup_fd() -> int:
    """The epoll descriptor under the running trio loop, or -1 where this version of trio has none.

    It is readable whenever trio has an event to process, so a spin that watches it delays no other task. Not
    public API: without it other tasks still run at the loop's periodic checkpoint.
    """
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        return int(GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
    except (ImportError, AttributeError):
        log.info("trio %s hides its epoll descriptor; other tasks may wait a millisecond", version("trio"))
        return -1


def _primitives(loop: FuseLoop) -> SimpleNamespace:
    """What pyfuse3 3.5 uses of trio, with the request path replaced by ``loop``."""
    lowlevel = SimpleNamespace(
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        wait_readable=loop.wait_readable,
        notify_closing=loop.notify_closing,
    )
    return SimpleNamespace(
        Lock=ReadLock,
        lowlevel=lowlevel,
        open_nursery=_open_nursery,
        ClosedResourceError=trio.ClosedResourceError,
    )


class _WorkerNursery:
    """Starts pyfuse3's workers, and starts one again whose read found the queue empty.

    The device is non-blocking (see fuseloop) and pyfuse3 knows no EAGAIN: the worker ends with an OSError.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(
        self, worker: Callable[..., Awaitable[None]], *args: object, name: str | None = None
    ) -> None:
        async def run() -> None:
            while True:
                with contextlib.suppress(BlockingIOError):
                    await worker(self, *args[1:])
                    return

        self._nursery.start_soon(run, name=name)


@contextlib.asynccontextmanager
async def _open_nursery() -> AsyncIterator[_WorkerNursery]:
    async with trio.open_nursery() as nursery:
        yield _WorkerNursery(nursery)
