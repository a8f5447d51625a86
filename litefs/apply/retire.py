"""A mount whose fs process died must not go on answering from the kernel's memory.

Connections that were open keep what the page cache and their own maps hold: in WAL mode they find their
snapshot in a mapped wal-index and mapped or cached pages, in a rollback mode they compare the change
counter of a cached page 1, and either way answer from the past without an error. Nothing of that needs the
dead process. So, before the next mount serves:

* both wal-index header copies are zeroed through a map of the old ``-shm``: a connection must then recover
  from the WAL, which it can no longer read;
* cached pages of database and WAL are dropped, which works for pages that nobody maps;
* page 1 of the database is zeroed in the page cache: a connection with ``mmap_size`` in a rollback mode
  keeps its pages mapped, where dropping does not reach them, and this makes it fail with "file is not a
  database". A connection that is dead takes no write, so none of this can reach a disk.

What SQLite holds in a transaction that is open stays readable to it until that transaction ends; and a
connection with ``locking_mode=EXCLUSIVE`` asks nobody and cannot be reached: it has to be restarted
(:class:`Holder` names it).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from litefs.apply import locks
from litefs.apply.memory import map_shared, populate
from litefs.apply.shm import clear_headers, map_header

log = logging.getLogger(__name__)

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a FUSE file system answers once its process is gone."""

STALE_TIMEOUT = 10.0
"""Seconds for the child that looks at a stale mount; a call into it could block for ever."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds files of a stale mount."""

    pid: int
    command: str
    paths: tuple[str, ...]
    retired: bool
    """Its wal-index was reached and zeroed, or it held none."""


def is_dead(fd: int) -> bool:
    """Whether the file system of an open file has lost its process. Asks it: blocks if that process hangs."""
    try:
        os.fstatvfs(fd)
    except OSError as error:
        return error.errno in DEAD
    return False


def drop_cache(fd: int) -> None:
    """Drop the cached pages of an open file as far as nobody maps them."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def spoil_database(fd: int) -> bool:
    """Zero page 1 of a database on a *dead* mount in the page cache. False if it is not cached, or ``fd``
    is read-only."""
    size = mmap.PAGESIZE
    with contextlib.suppress(OSError):  # the mount is dead, but its attributes may be cached
        size = min(size, os.fstat(fd).st_size)  # a database may be smaller than a page of memory
    if not size:
        return False
    try:
        view = map_shared(fd, size)
    except OSError:
        return False
    with view:
        view[:] = bytes(len(view))
    return True


@dataclass(slots=True)
class _Watched:
    """Descriptors of one database's files, and the map of its wal-index header."""

    database: int
    wal: int | None = None
    shm: int | None = None
    header: mmap.mmap | None = None
    inodes: dict[str, int] = field(default_factory=dict)

    def close(self) -> None:
        if self.header is not None:
            self.header.close()
        for fd in (self.database, self.wal, self.shm):
            if fd is not None:
                locks.close(fd)


class MountGuard:
    """Keeps what it takes to retire a mount after its fs process died; lives in the node process.

    All methods do file I/O on the mount: call them in a worker thread. The descriptors keep the mount busy,
    so ``close`` it before an unmount that is not lazy. No SQLite lock is ever taken.
    """

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    def watch(self, name: str) -> None:
        """Begin to guard a database, or look again for files that came or went. Raises OSError if it does
        not exist."""
        with self._lock:
            watched = self._watched.get(name)
            paths = {suffix: self._path(name, suffix) for suffix in ("", "-wal", "-shm")}
            inodes = {suffix: _inode(path) for suffix, path in paths.items()}
            if watched is not None:
                if watched.inodes == inodes and (watched.header is not None or not inodes["-shm"]):
                    return
                del self._watched[name]
                watched.close()
            self._watched[name] = self._open(paths, inodes)

    def _path(self, name: str, suffix: str) -> Path:
        return self._mountpoint / (name + suffix)

    def _open(self, paths: dict[str, Path], inodes: dict[str, int]) -> _Watched:
        watched = _Watched(os.open(paths[""], os.O_RDWR | os.O_CLOEXEC), inodes=inodes)
        try:
            with contextlib.suppress(FileNotFoundError):
                watched.wal = os.open(paths["-wal"], os.O_RDONLY | os.O_CLOEXEC)
            with contextlib.suppress(FileNotFoundError):
                watched.shm = os.open(paths["-shm"], os.O_RDWR | os.O_CLOEXEC)
                watched.header = _map_if_filled(watched.shm)
        except BaseException:
            watched.close()
            raise
        return watched

    def unwatch(self, name: str) -> None:
        """Let go of a database that no client has open, or that is gone."""
        with self._lock:
            watched = self._watched.pop(name, None)
            if watched is not None:
                watched.close()

    def refresh(self) -> None:
        """Look at every watched database again: clients create and remove ``-wal`` and ``-shm``. A few stat
        calls each."""
        for name in list(self._watched):
            try:
                self.watch(name)
            except OSError as error:
                if error.errno in DEAD:
                    return
                self.unwatch(name)

    def retire(self) -> list[str]:
        """Make every connection of the dead mount fail; returns the databases it was done for.

        Call after the fs process has ended and before the next mount serves. Does nothing, with a warning,
        to a file system that still answers. Lets go of everything.
        """
        with self._lock:
            names = []
            for name, watched in self._watched.items():
                if is_dead(watched.database):
                    _retire(name, watched)
                    names.append(name)
                else:
                    log.warning(
                        "%s: the file system still answers, its cache is left alone", self._path(name, "")
                    )
                watched.close()
            self._watched.clear()
            return names

    def close(self) -> None:
        """Let go of every database."""
        with self._lock:
            for watched in self._watched.values():
                watched.close()
            self._watched.clear()


def _map_if_filled(shm: int) -> mmap.mmap | None:
    try:
        return map_header(shm)
    except ValueError:
        return None  # a client truncated it between our look and the map
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return None


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def _retire(name: str, watched: _Watched) -> None:
    if watched.header is not None:
        try:
            populate(watched.header)  # where it could not be locked into memory: ask before touching it
        except OSError as error:
            log.warning("%s: its wal-index is no longer in memory: %s", name, error)
        else:
            clear_headers(watched.header)
    if watched.wal is not None:
        drop_cache(watched.wal)
    spoil_database(watched.database)
    drop_cache(watched.database)


def retire_stale(mountpoint: Path, timeout: float = STALE_TIMEOUT) -> list[Holder]:
    """Make the connections of a stale mount fail, whose two processes are both gone; returns who holds its
    files.

    Call before the stale mount is unmounted, which is what tells its files from others. All work is done by
    a child process, because a call into a file system that hangs never returns; it is given ``timeout``
    seconds. Whoever is named should be restarted: descriptors of the stale mount fail for good.
    """
    command = [sys.executable, "-m", "litefs.apply.stale", str(mountpoint)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        # Not waited for: inside a file system that hangs even a killed process stays.
        log.warning("%s: looking at the stale mount took longer than %g s, given up", mountpoint, timeout)
        return []
    holders = [Holder(**{**item, "paths": tuple(item["paths"])}) for item in json.loads(output or "[]")]
    for holder in holders:
        log.warning(
            "process %d (%s) holds files of the stale mount %s: %s%s",
            holder.pid,
            holder.command,
            mountpoint,
            ", ".join(holder.paths),
            "" if holder.retired else " (could not be made to fail; restart it)",
        )
    return holders
