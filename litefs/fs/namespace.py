"""Names and attributes of the mount: lookup, getattr, statfs, directories; what every request shares.

Databases, their companions (``-wal``, ``-shm``, ``-journal``), control files and directories; which of them
exist follows from the data directory, so nothing has to be kept in step.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import posixpath
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError, ReaddirToken, RequestContext, StatvfsData

from litefs.errors import LiteFSError
from litefs.fs import control
from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.directories import Directories
from litefs.fs.inodes import CONTROL, Inode, InodeTable, Kind, split_suffix
from litefs.fs.role import RoleState
from litefs.store.paths import DataDir

log = logging.getLogger("litefs.fs")

TIMEOUT = 1.0
"""Seconds the kernel may keep attributes and names:

bounds what a dead mount goes on answering (DESIGN §2).
"""

_COMPANIONS = (Kind.WAL, Kind.SHM, Kind.JOURNAL)

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, object]])


def answered(handler: Handler) -> Handler:
    """A request handler that answers every error with an errno, and nothing else once the mount is dead.

    Whatever else left a handler would end the request loop, and with it the mount for everybody.
    """

    @functools.wraps(handler)
    async def answer(self: Namespace, *args: object) -> object:
        if self.dead:
            raise FUSEError(errno.EIO)
        try:
            return await handler(self, *args)
        except FUSEError:
            raise
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc
        except Exception as exc:
            log.exception("request %s failed", handler.__name__)
            raise FUSEError(errno.EIO) from exc

    return cast(Handler, answer)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Owner, group and mode of what is created; None:

    the client's umask decides the mode, the mount's root the owner.
    """

    uid: int
    gid: int
    mode: int | None


@dataclass(slots=True)
class OpenDirectory:
    """An open directory. It is listed when it is read first, and anew from its begin: SQLite opens it at each
    commit with a journal, to sync it, and reads nothing.
    """

    path: str
    listing: list[str] = dataclasses.field(default_factory=list)


class Namespace(pyfuse3.Operations):
    """The requests about names and attributes.

    ``node_pid``: the node process, which may write on a replica.
    """

    enable_writeback_cache = False

    def __init__(
        self,
        data: DataDir,
        databases: Databases,
        role: RoleState,
        owner: Ownership,
        root_mode: int,
        node_pid: int,
    ) -> None:
        super().__init__()
        self.dead = False
        """Set when this node must not answer any more: every request fails."""
        self.inodes = InodeTable()
        self._data = data
        self._dbs = databases
        self._role = role
        self._owner = owner
        self._root_mode = root_mode
        self._node_pid = node_pid
        self._dirs = Directories(data)
        self._directories: dict[int, OpenDirectory] = {}
        self._next_handle = 1
        self._born_ns = time.time_ns()
        self._refusals: dict[str, float] = {}

    # -- errors ------------------------------------------------------------------------------------

    def _fail(self, exc: Exception) -> FUSEError:
        """The errno for the client. Never EINTR: SQLite would repeat the call without end."""
        code = exc.errno if isinstance(exc, OSError | LiteFSError) and exc.errno else errno.EIO
        if isinstance(exc, OSError) and code not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.ENOENT,
            errno.EEXIST,
            errno.ENOTEMPTY,
        ):
            code = errno.EIO
        if isinstance(exc, LiteFSError) or code == errno.EIO:
            self._log_refusal(str(exc))
        return FUSEError(errno.ENOSPC if code == errno.EDQUOT else code)

    def _log_refusal(self, text: str) -> None:
        """One line per distinct refusal and ten seconds: clients repeat what fails."""
        now = time.monotonic()
        if now - self._refusals.get(text, -60.0) >= 10:
            if len(self._refusals) > 1000:
                self._refusals.clear()
            self._refusals[text] = now
            log.warning("refused: %s", text)

    # -- names -------------------------------------------------------------------------------------

    def _path(self, parent: int, name: bytes) -> str:
        text = os.fsdecode(name)
        base = self.inodes[parent].path
        return f"{base}/{text}" if base else text

    def _names(self) -> list[str]:
        return [db.name for db in self._dbs]

    def _find(self, path: str) -> Inode | None:
        """The inode of a path that exists, else None."""
        inode = self.inodes.at(path)
        if inode is not None and not inode.is_control and inode.kind is not Kind.DIRECTORY:
            return inode
        if path in CONTROL:
            kind = CONTROL[path]
            return (
                self.inodes.get_or_make(path, kind, None, "")
                if control.exists(kind, self._role, None)
                else None
            )
        stem, kind = split_suffix(path)
        if kind is Kind.SUPER:
            supers = self._dbs.supers
            there = path in supers
            return self.inodes.get_or_make(path, kind, None, str(supers.backing(path))) if there else None
        db = self._dbs.get(stem)
        if db is not None:
            if kind is Kind.POS:
                return self.inodes.get_or_make(path, kind, db, "")
            backing = self._backing(db, kind)
            return self.inodes.get_or_make(path, kind, db, backing) if os.path.exists(backing) else None
        if self._dirs.exists(path, self._names()):
            return self.inodes.get_or_make(path, Kind.DIRECTORY, None, "")
        return None

    @staticmethod
    def _backing(db: FsDatabase, kind: Kind) -> str:
        paths = {
            Kind.DATABASE: db.dir.database,
            Kind.WAL: db.dir.wal,
            Kind.SHM: db.dir.shm,
            Kind.JOURNAL: db.dir.journal,
        }
        return str(paths[kind])

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        path = self._path(parent_inode, name)
        inode = self._find(path)
        if inode is None:
            stem, kind = split_suffix(path)
            if kind in _COMPANIONS and self._dbs.get(stem) is not None:
                # created through this mount or not at all, so the kernel may remember that it is not there:
                # SQLite looks for a journal at each read transaction
                missing = EntryAttributes()
                missing.st_ino = 0
                missing.entry_timeout = TIMEOUT
                return missing
            raise FUSEError(errno.ENOENT)
        attributes = self._attributes(inode)
        inode.lookups += 1
        return attributes

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, lookups in inode_list:
            self.inodes.forget(ino, lookups)

    # -- attributes --------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        # of a super-journal SQLite must see at once that it is gone, also when the unlink gave an error
        asked = inode.is_control or inode.kind is Kind.SUPER
        entry.entry_timeout = entry.attr_timeout = 0.0 if asked else TIMEOUT
        mtime = self._born_ns
        if inode.kind is Kind.DIRECTORY:
            entry.st_mode = stat.S_IFDIR | self._root_mode
            entry.st_nlink = 2
            entry.st_uid, entry.st_gid = self._owner.uid, self._owner.gid
        elif inode.is_control:
            entry.st_mode = stat.S_IFREG | 0o444
            entry.st_uid, entry.st_gid = self._owner.uid, self._owner.gid
            entry.st_size = len(control.content(inode, self._role))
            mtime = control.mtime_ns(inode, self._role, mtime)
        else:
            status = os.fstat(inode.fd) if inode.fd >= 0 else os.stat(inode.backing)
            entry.st_mode, entry.st_size = status.st_mode, status.st_size
            entry.st_uid, entry.st_gid, entry.st_blocks = status.st_uid, status.st_gid, status.st_blocks
        # a constant mtime: the kernel drops a file's cached pages when it sees another one
        # (reference/wal-apply.md)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = mtime
        return entry

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self.inodes[inode])

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        real = os.statvfs(self._data.path)
        result = StatvfsData()
        for field in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
        ):
            setattr(result, field, getattr(real, field))
        result.f_namemax = 200
        return result

    # -- directories -------------------------------------------------------------------------------

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = self._new_handle()
        self._directories[handle] = OpenDirectory(self.inodes[inode].path)
        return handle

    def _list(self, path: str) -> list[str]:
        """What is in a directory, as paths. NAME-pos only in the root, where Go LiteFS has it: it goes with
        its database, and were it listed elsewhere ``rm -r`` would stumble over it.
        """
        names = self._names()
        directories, databases = self._dirs.children(path, names)
        found = sorted(directories)
        prefix = path + "/" if path else ""
        suffixes = ("", "-journal", "-shm", "-wal") if path else ("", "-journal", "-pos", "-shm", "-wal")
        for base in sorted(databases):
            for suffix in suffixes:
                if self._find(prefix + base + suffix) is not None:
                    found.append(base + suffix)
        found += [posixpath.basename(name) for name in self._dbs.supers if posixpath.dirname(name) == path]
        if not path:
            found += [name for name, kind in CONTROL.items() if control.exists(kind, self._role, None)]
        return [prefix + name for name in found]

    @answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        directory = self._directories[fh]
        if not start_id:
            directory.listing = self._list(directory.path)
        listing = directory.listing
        for index in range(start_id, len(listing)):
            inode = self._find(listing[index])
            if inode is None:
                continue
            name = os.fsencode(listing[index].rpartition("/")[2])
            if not pyfuse3.readdir_reply(token, name, self._attributes(inode), index + 1):
                return
            inode.lookups += 1

    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        path = self._path(parent_inode, name)
        self._dirs.make(path)
        inode = self.inodes.get_or_make(path, Kind.DIRECTORY, None, "")
        inode.lookups += 1
        return self._attributes(inode)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        path = self._path(parent_inode, name)
        self._dirs.remove(path, [*self._names(), *self._dbs.supers])
        self.inodes.unlink(path)

    def _new_handle(self) -> int:
        handle = self._next_handle
        self._next_handle += 1
        return handle
