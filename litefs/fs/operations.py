"""The FUSE requests. On the primary changes go through capture; on a replica only the node process changes anything.

Every handler runs to its end without awaiting, except where a big commit moves to a thread: meanwhile other changes to that
database wait (``FsDatabase.busy``), reads do not.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from litefs.capture.commit import BigCommit
from litefs.errors import InvalidName, LiteFSError
from litefs.fs import control
from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.directories import Directories
from litefs.fs.inodes import CONTROL, ROOT_INO, Inode, InodeTable, Kind, split_suffix
from litefs.fs.role import RoleState
from litefs.store import fileops
from litefs.store.paths import DataDir, validate_name
from litefs.types import Role

log = logging.getLogger("litefs.fs")

TIMEOUT = 1.0
"""Seconds the kernel may keep attributes and names: bounds what a dead mount goes on answering (DESIGN §2)."""

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
_COMPANIONS = (Kind.WAL, Kind.SHM, Kind.JOURNAL)


@dataclass(slots=True, eq=False)
class Handle:
    """An open file. ``captured``: changes are judged, because a client of the primary makes them."""

    inode: Inode
    fd: int
    writable: bool
    from_node: bool


@dataclass(frozen=True, slots=True)
class Ownership:
    """Owner, group and mode of what is created; None: the client's umask decides the mode, the mount's root the owner."""

    uid: int
    gid: int
    mode: int | None


class Operations(pyfuse3.Operations):
    """The request handlers. ``node_pid``: the node process, which may write on a replica."""

    enable_writeback_cache = False

    def __init__(
        self, data: DataDir, databases: Databases, role: RoleState, owner: Ownership, root_mode: int, node_pid: int
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
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, list[str]] = {}
        self._next_handle = 1
        self._born_ns = time.time_ns()
        self._refusals: dict[str, float] = {}
        self.on_open = _ignore

    # -- errors ---------------------------------------------------------------------------------------------------

    def _fail(self, exc: Exception) -> FUSEError:
        """The errno for the client. Never EINTR: SQLite would repeat the call without end."""
        code = exc.errno if isinstance(exc, OSError | LiteFSError) and exc.errno else errno.EIO
        if isinstance(exc, OSError) and code not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
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

    def _check_alive(self) -> None:
        if self.dead:
            raise FUSEError(errno.EIO)

    # -- names ----------------------------------------------------------------------------------------------------

    def _path(self, parent: int, name: bytes) -> str:
        text = os.fsdecode(name)
        base = self.inodes[parent].path
        return f"{base}/{text}" if base else text

    def _names(self) -> list[str]:
        return [db.name for db in self._dbs]

    def _find(self, path: str) -> Inode | None:
        """The inode of a path that exists, else None."""
        inode = self.inodes.at(path)
        if inode is not None and not inode.is_control:
            return inode
        if path in CONTROL:
            kind = CONTROL[path]
            return self.inodes.get_or_make(path, kind, None, "") if control.exists(kind, self._role, None) else None
        stem, kind = split_suffix(path)
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
        paths = {Kind.DATABASE: db.dir.database, Kind.WAL: db.dir.wal, Kind.SHM: db.dir.shm, Kind.JOURNAL: db.dir.journal}
        return str(paths[kind])

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        self._check_alive()
        path = self._path(parent_inode, name)
        inode = self._find(path)
        if inode is None:
            if split_suffix(path)[1] in _COMPANIONS:
                # created through this mount or not at all, so the kernel may remember that it is not there: SQLite looks
                # for a journal at each read transaction
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

    # -- attributes -----------------------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        entry.entry_timeout = entry.attr_timeout = 0.0 if inode.is_control else TIMEOUT
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
            try:
                status = os.fstat(inode.fd) if inode.fd >= 0 else os.stat(inode.backing)
            except OSError as exc:
                raise self._fail(exc) from exc
            entry.st_mode, entry.st_size = status.st_mode, status.st_size
            entry.st_uid, entry.st_gid, entry.st_blocks = status.st_uid, status.st_gid, status.st_blocks
        # a constant mtime: the kernel drops a file's cached pages when it sees another one (reference/wal-apply.md)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = mtime
        return entry

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        self._check_alive()
        return self._attributes(self.inodes[inode])

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        self._check_alive()
        target = self.inodes[inode]
        try:
            if fields.update_size:
                await self._truncate(target, attr.st_size, self._is_node(ctx.pid))
            if not target.is_control and target.kind is not Kind.DIRECTORY:
                if fields.update_mode:
                    os.chmod(target.backing, stat.S_IMODE(attr.st_mode))
                if fields.update_uid or fields.update_gid:
                    uid = attr.st_uid if fields.update_uid else -1
                    gid = attr.st_gid if fields.update_gid else -1
                    os.chown(target.backing, uid, gid)
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc
        return self._attributes(target)

    async def _truncate(self, inode: Inode, size: int, from_node: bool) -> None:
        db = inode.db
        if inode.is_control or db is None:
            raise FUSEError(errno.EPERM)
        await db.idle()
        opened = inode.fd < 0
        fd = os.open(inode.backing, os.O_RDWR | os.O_CLOEXEC) if opened else inode.fd
        try:
            if inode.kind is Kind.SHM or (from_node and self._role.role is not Role.PRIMARY):
                os.ftruncate(fd, size)
                return
            capture = self._capture(db, inode)
            if inode.kind is Kind.WAL:
                capture.check_writable(inode.path)
                capture.wal.truncate(fd, size)
            elif inode.kind is Kind.JOURNAL:
                capture.check_writable(inode.path)
                await self._finish(db, capture.journal.truncate(fd, size, db.open_database()))
            else:
                capture.database_truncate(fd, size)
        finally:
            if opened:
                os.close(fd)

    def _capture(self, db: FsDatabase, inode: Inode):  # type: ignore[no-untyped-def]
        if db.capture is None:
            raise FUSEError(errno.EROFS)
        return db.capture

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        real = os.statvfs(self._data.path)
        result = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(result, field, getattr(real, field))
        result.f_namemax = 200
        return result

    # -- directories ----------------------------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self._check_alive()
        path = self.inodes[inode].path
        names = self._names()
        directories, databases = self._dirs.children(path, names)
        found = sorted(directories)
        prefix = path + "/" if path else ""
        for base in sorted(databases):
            for suffix in ("", "-journal", "-pos", "-shm", "-wal"):
                if self._find(prefix + base + suffix) is not None:
                    found.append(base + suffix)
        if not path:
            found += [name for name, kind in CONTROL.items() if control.exists(kind, self._role, None)]
        handle = self._new_handle()
        self._listings[handle] = [prefix + name for name in found]
        return handle

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        self._check_alive()
        listing = self._listings[fh]
        for index in range(start_id, len(listing)):
            inode = self._find(listing[index])
            if inode is None:
                continue
            name = os.fsencode(listing[index].rpartition("/")[2])
            if not pyfuse3.readdir_reply(token, name, self._attributes(inode), index + 1):
                return
            inode.lookups += 1

    async def releasedir(self, fh: int) -> None:
        self._listings.pop(fh, None)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        path = self._path(parent_inode, name)
        try:
            self._dirs.make(path)
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc
        inode = self.inodes.get_or_make(path, Kind.DIRECTORY, None, "")
        inode.lookups += 1
        return self._attributes(inode)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        path = self._path(parent_inode, name)
        try:
            self._dirs.remove(path, self._names())
        except OSError as exc:
            raise self._fail(exc) from exc
        self.inodes.unlink(path)

    # -- opening --------------------------------------------------------------------------------------------------

    def _new_handle(self) -> int:
        handle = self._next_handle
        self._next_handle += 1
        return handle

    def _is_node(self, thread_id: int) -> bool:
        """Whether a request comes from the node process: FUSE tells the thread, not the process."""
        return thread_id == self._node_pid or os.path.exists(f"/proc/{self._node_pid}/task/{thread_id}")

    def _opened(self, inode: Inode, flags: int, from_node: bool) -> FileInfo:
        writable = bool(flags & _WRITE_FLAGS)
        fd = -1 if inode.is_control else inode.open_backing()
        inode.handles += 1
        number = self._new_handle()
        self._handles[number] = Handle(inode, fd, writable, from_node)
        if inode.kind is Kind.WAL and inode.db is not None and inode.db.capture is not None:
            inode.db.capture.wal.opened(os.fstat(fd).st_size)
        if inode.db is not None and not inode.db.announced and inode.kind is Kind.DATABASE and not from_node:
            inode.db.announced = True
            self.on_open(inode.db.name)
        return FileInfo(fh=number, direct_io=inode.is_control, keep_cache=not inode.is_control)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        self._check_alive()
        target = self.inodes[inode]
        from_node = self._is_node(ctx.pid)
        if flags & _WRITE_FLAGS:
            if target.is_control:
                raise FUSEError(errno.EACCES)
            if target.kind is not Kind.SHM and not from_node and self._role.role is not Role.PRIMARY:
                raise FUSEError(errno.EROFS)
        try:
            return self._opened(target, flags, from_node)
        except OSError as exc:
            raise self._fail(exc) from exc

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._check_alive()
        path = self._path(parent_inode, name)
        from_node = self._is_node(ctx.pid)
        stem, kind = split_suffix(path)
        if kind is not Kind.SHM and not from_node and self._role.role is not Role.PRIMARY:
            raise FUSEError(errno.EROFS)
        try:
            inode = self._find(path)
            if inode is None:
                inode = self._create(path, stem, kind, stat.S_IMODE(mode))
            elif flags & os.O_EXCL:
                raise FUSEError(errno.EEXIST)
            info = self._opened(inode, flags, from_node)
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc
        inode.lookups += 1
        return info, self._attributes(inode)

    def _create(self, path: str, stem: str, kind: Kind, mode: int) -> Inode:
        if path in CONTROL or kind is Kind.POS:
            raise InvalidName(f"{path}: the name of a control file")
        if self._owner.mode is not None:
            mode = self._owner.mode
        db = self._dbs.get(stem)
        if kind is Kind.DATABASE:
            validate_name(path)
            db = self._dbs.create(path, mode)
            backing = str(db.dir.database)
            os.chown(backing, self._owner.uid, self._owner.gid)
        elif db is None:
            raise InvalidName(f"{path}: there is no database {stem}")
        else:
            backing = self._backing(db, kind)
            os.close(os.open(backing, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
            like = os.stat(db.dir.database)
            os.chmod(backing, stat.S_IMODE(like.st_mode))
            os.chown(backing, like.st_uid, like.st_gid)
        return self.inodes.get_or_make(path, kind, db, backing)

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh, None)
        if handle is not None:
            self.inodes.closed(handle.inode)

    # -- data -----------------------------------------------------------------------------------------------------

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if self.dead:
            raise FUSEError(errno.EIO)
        handle = self._handles[fh]
        try:
            if handle.fd < 0:
                return control.content(handle.inode, self._role)[off : off + size]
            return os.pread(handle.fd, size, off)
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if self.dead:
            raise FUSEError(errno.EIO)
        handle = self._handles[fh]
        inode = handle.inode
        db = inode.db
        try:
            if inode.kind is Kind.SHM or db is None:
                fileops.pwrite_all(handle.fd, buf, off)
                return len(buf)
            if db.busy:
                await db.idle()
            if handle.from_node and self._role.role is not Role.PRIMARY:
                fileops.pwrite_all(handle.fd, buf, off)
                return len(buf)
            capture = db.capture
            if capture is None:
                raise FUSEError(errno.EROFS)
            if inode.kind is Kind.WAL:
                job = capture.wal_write(handle.fd, off, buf)
            elif inode.kind is Kind.DATABASE:
                capture.database_write(handle.fd, off, buf)
                return len(buf)
            else:
                job = capture.journal_write(handle.fd, off, buf, db.open_database())
            if job is not None:
                await self._finish(db, job)
            return len(buf)
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc

    async def _finish(self, db: FsDatabase, job: BigCommit | None) -> None:
        """Run a big commit in a thread; the database is busy meanwhile."""
        if job is None:
            return
        db.begin_job()
        try:
            error: Exception | None = None
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(job.run)
            except (LiteFSError, OSError, ValueError) as exc:
                error = exc
            job.finish(error)
        finally:
            db.end_job()

    async def fsync(self, fh: int, datasync: bool) -> None:
        if self.dead:
            raise FUSEError(errno.EIO)
        handle = self._handles[fh]
        db = handle.inode.db
        if db is None or handle.inode.kind is Kind.SHM:
            return
        try:
            await db.idle()
            if db.capture is None:
                if handle.inode.kind is Kind.DATABASE:
                    await trio.to_thread.run_sync(os.fdatasync, handle.fd)
            elif handle.inode.kind is Kind.WAL:
                db.capture.wal_sync()
            elif handle.inode.kind is Kind.DATABASE:
                db.capture.database_sync(handle.fd)
            else:
                db.capture.journal_sync(handle.fd)
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names need no sync of their own: recovery makes journal and WAL follow the log."""

    # -- unlinking ------------------------------------------------------------------------------------------------

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._check_alive()
        path = self._path(parent_inode, name)
        inode = self._find(path)
        if inode is None:
            raise FUSEError(errno.ENOENT)
        db = inode.db
        if inode.is_control or db is None:
            raise FUSEError(errno.EPERM)
        try:
            await db.idle()
            if inode.kind is Kind.SHM:
                os.unlink(inode.backing)
            elif self._role.role is not Role.PRIMARY:
                raise FUSEError(errno.EROFS)
            else:
                await self._unlink_captured(db, inode)
        except (LiteFSError, OSError) as exc:
            raise self._fail(exc) from exc
        self.inodes.unlink(path)

    async def _unlink_captured(self, db: FsDatabase, inode: Inode) -> None:
        capture = self._capture(db, inode)
        capture.check_writable(inode.path)
        if inode.kind is Kind.WAL:
            capture.wal.unlink()
            os.unlink(inode.backing)
        elif inode.kind is Kind.JOURNAL:
            await self._finish(db, capture.journal.unlink(inode.backing, db.open_database()))
        elif db.position()[0].txid:
            raise FUSEError(errno.EPERM)
        else:
            self._dbs.remove(db)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: RequestContext
    ) -> None:
        self._log_refusal(f"{self._path(parent_inode_old, name_old)}: rename of files is not supported")
        raise FUSEError(errno.EPERM)

    def invalidated_inodes(self) -> list[tuple[int, Kind]]:
        """(inode, kind) of every database, WAL and shm that the kernel may hold pages of."""
        kinds = (Kind.DATABASE, Kind.WAL, Kind.SHM)
        return [(inode.ino, inode.kind) for inode in self.inodes.live() if inode.kind in kinds and inode.ino != ROOT_INO]


def _ignore(name: str) -> None:
    """No one asked to be told of opened databases."""
