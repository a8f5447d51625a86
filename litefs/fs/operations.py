"""The FUSE requests that open and change files. On the primary changes go through capture; on a replica
only the node process changes anything.

Every handler runs to its end without awaiting, except where a big commit moves to a thread: meanwhile other
changes to that database wait (``FsDatabase.busy``), reads do not.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable

import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from litefs._core.openinfo import UnflushedInfo
from litefs.apply.shm import APPLIER
from litefs.capture.commit import Refused
from litefs.capture.database import DatabaseCapture
from litefs.errors import InvalidName, LiteFSError
from litefs.fs import control
from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.handles import Handle, may_be_sqlite
from litefs.fs.inodes import CONTROL, ROOT_INO, Inode, Kind, split_suffix
from litefs.fs.namespace import Ownership, answered
from litefs.fs.role import RoleState
from litefs.fs.supers import SuperRequests
from litefs.store import fileops
from litefs.store.paths import DataDir, validate_name
from litefs.types import Role

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
FIRST_PAGE = 4096
"""Bytes at the start of a file that the kernel asks for together. Who begins a transaction needs those of the
database, or after its wal-index header was zeroed those of the WAL.
"""
_CACHED = (Kind.DATABASE, Kind.WAL, Kind.SHM)


class Operations(SuperRequests):
    """The request handlers. ``on_open`` is told the name of each database at its first open by a client,
    ``on_drop`` of each one that a client removed.
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
        on_open: Callable[[str], None],
        on_drop: Callable[[str], None],
    ) -> None:
        super().__init__(data, databases, role, owner, root_mode, node_pid)
        self._handles: dict[int, Handle] = {}
        self._on_open = on_open
        self._on_drop = on_drop

    # -- attributes that change a file -------------------------------------------------------------

    @answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        target = self.inodes[inode]
        if fields.update_size:
            applies = fh is not None and self._handles[fh].applies
            await self._truncate(target, attr.st_size, self._is_node(ctx.pid), applies, fh)
        if not target.is_control and target.kind is not Kind.DIRECTORY:
            file = target.fd if target.fd >= 0 else target.backing
            if fields.update_mode:
                os.chmod(file, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                os.chown(file, uid, gid)
        return self._attributes(target)

    async def _truncate(
        self, inode: Inode, size: int, from_node: bool, applies: bool, fh: int | None = None
    ) -> None:
        db = inode.db
        if inode.is_control or db is None:
            raise FUSEError(errno.EPERM)
        await self._turn(db, inode)
        opened = inode.fd < 0
        fd = os.open(inode.backing, os.O_RDWR | os.O_CLOEXEC) if opened else inode.fd
        try:
            if (
                inode.kind is Kind.SHM
                and not from_node
                and size < os.fstat(fd).st_size
                and self._is_applied(inode, mapped=True)
            ):
                raise FUSEError(errno.EBUSY)
            if inode.kind is Kind.SHM or (applies and self._role.role is not Role.PRIMARY):
                os.ftruncate(fd, size)
                return
            capture = self._capture(db)
            if inode.kind is Kind.WAL:
                capture.check_writable(inode.path)
                capture.wal.truncate(fd, size)
            elif inode.kind is Kind.JOURNAL:
                capture.check_writable(inode.path)
                await db.run(capture.journal.truncate(fd, size, db.open_database()))
            else:
                capture.database_truncate(fd, size, fh)
            await db.answerable()
        finally:
            if opened:
                os.close(fd)

    async def _turn(self, db: FsDatabase, inode: Inode) -> None:
        """Wait until a change of the file may be looked at: until the deadline moves, or grace is over, and
        no big commit is under way, and a little if replicas are missing."""
        if inode.kind is not Kind.SHM and self._role.must_wait():
            await self._role.wait()
        await db.ready()

    def _is_applied(self, shm: Inode, *, mapped: bool = False) -> bool:
        """Whether the node process, as a replica, has a wal-index open: were it removed, readers would make
        one of their own, in which no commit is announced. ``mapped``: whether it holds DMS shared and has a
        map of it; to cut it would then kill that process.

        SQLite does neither while DMS is held. Before, as when a primary has become a replica that has no one
        to follow yet, a reader who is alone cuts the file when it opens it.
        """
        return self._role.role is not Role.PRIMARY and any(
            handle.inode is shm and (handle.applies if mapped else handle.from_node)
            for handle in self._handles.values()
        )

    def _capture(self, db: FsDatabase) -> DatabaseCapture:
        if db.removed:
            raise Refused(db.name, "it was removed")
        if db.capture is None and db.error is not None:
            raise Refused(db.name, f"served for reading only, its log cannot be written: {db.error}")
        if db.capture is None:
            raise FUSEError(errno.EROFS)
        return db.capture

    # -- opening -----------------------------------------------------------------------------------

    def _is_node(self, thread_id: int) -> bool:
        """Whether a request comes from the node process: FUSE tells the thread, not the process."""
        return thread_id == self._node_pid or os.path.exists(f"/proc/{self._node_pid}/task/{thread_id}")

    def _opened(self, inode: Inode, flags: int, from_node: bool) -> FileInfo:
        writable = bool(flags & _WRITE_FLAGS)
        fd = -1 if inode.is_control else inode.open_backing()
        inode.handles += 1
        number = self._new_handle()
        applies = from_node and bool(flags & APPLIER)
        self._handles[number] = Handle(inode, fd, writable, from_node, applies)
        if inode.kind is Kind.WAL and inode.db is not None and inode.db.capture is not None:
            inode.db.capture.wal.opened(os.fstat(fd).st_size)
        db = inode.db
        # on a replica the node process opens what it applies; on the primary it creates what it imports
        client = not from_node or self._role.role is Role.PRIMARY
        if db is not None and inode.kind is Kind.DATABASE:
            db.ino = inode.ino
            if flags & os.O_TRUNC and db.capture is not None:
                db.capture.raw.join(number)
        if db is not None and inode.kind is Kind.SHM:
            db.shm_ino = inode.ino
        if db is not None and not db.announced and inode.kind is Kind.DATABASE and client:
            db.announced = True
            self._on_open(db.name)
        if inode.kind is Kind.DATABASE and may_be_sqlite(flags):
            return UnflushedInfo(fh=number)
        return FileInfo(fh=number, direct_io=inode.is_control, keep_cache=not inode.is_control)

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        target = self.inodes[inode]
        if target.unlinked:  # the kernel has not heard yet that the name is gone: it looks it up again
            raise FUSEError(errno.ESTALE)
        from_node = self._is_node(ctx.pid)
        if flags & _WRITE_FLAGS:
            if target.is_control:
                raise FUSEError(errno.EACCES)
            read_only = self._role.role is not Role.PRIMARY and not (target.db and target.db.halted)
            if target.kind is not Kind.SHM and not from_node and read_only:
                raise FUSEError(errno.EROFS)
            if flags & os.O_TRUNC:  # the kernel leaves that to us
                await self._truncate(target, 0, from_node, from_node and bool(flags & APPLIER))
        return self._opened(target, flags, from_node)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        path = self._path(parent_inode, name)
        from_node = self._is_node(ctx.pid)
        stem, kind = split_suffix(path)
        if kind is not Kind.SHM and not from_node and self._role.role is not Role.PRIMARY:
            raise FUSEError(errno.EROFS)
        inode = self._find(path)
        if inode is None:
            inode = self._create(path, stem, kind, stat.S_IMODE(mode))
        elif flags & os.O_EXCL:
            raise FUSEError(errno.EEXIST)
        info = self._opened(inode, flags, from_node)
        inode.lookups += 1
        return info, self._attributes(inode)

    def _create(self, path: str, stem: str, kind: Kind, mode: int) -> Inode:
        if path in CONTROL or kind is Kind.POS:
            raise InvalidName(f"{path}: the name of a control file")
        if kind is Kind.SUPER:
            return self._create_super(path, stem, mode)
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

    @answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh, None)
        if handle is None:
            return
        db = handle.inode.db
        try:
            if db is not None and db.capture is not None:
                db.capture.raw.leave(fh)
                await db.sweep()
        finally:
            self.inodes.closed(handle.inode)

    @answered
    async def flush(self, fh: int) -> None:
        handle = self._handles[fh]
        handle.closed = True
        db = handle.inode.db
        if db is None or handle.inode.kind is not Kind.DATABASE or not handle.writable:
            return
        await db.ready()
        if db.capture is not None and not handle.inode.unlinked:
            await db.run(db.capture.database_flush(fh))
            await db.answerable()

    # -- data --------------------------------------------------------------------------------------

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        if handle.fd < 0:
            return control.content(handle.inode, self._role)[off : off + size]
        db = handle.inode.db
        if db is not None and off < db.forgotten_below and handle.inode.kind is not Kind.SHM:
            # not EIO, which SQLite takes for a damaged file system and calls a malformed database
            raise Refused(db.name, "it was removed on the primary, or replaced: open it again", errno.ESTALE)
        return os.pread(handle.fd, size, off)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles[fh]
        inode = handle.inode
        db = inode.db
        if inode.kind is Kind.SHM or db is None:
            fileops.pwrite_all(handle.fd, buf, off)
            return len(buf)
        if db.must_wait or self._role.must_wait():
            await self._turn(db, inode)
        if handle.applies and self._role.role is not Role.PRIMARY:
            fileops.pwrite_all(handle.fd, buf, off)
            return len(buf)
        capture = self._capture(db)
        if inode.unlinked:
            raise Refused(inode.path, "write to a file that was unlinked meanwhile")
        before = capture.db.sums.txid
        if inode.kind is Kind.WAL:
            job = capture.wal_write(handle.fd, off, buf)
        elif inode.kind is Kind.DATABASE:
            job = capture.database_write(handle.fd, off, buf, fh)
        else:
            job = capture.journal_write(handle.fd, off, buf, db.open_database())
        if job is not None:
            await db.run(job)
        if capture.db.sums.txid != before:
            handle.unconfirmed = True
        if db.owes_answer:
            await db.answerable()
        return len(buf)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self._handles[fh]
        db = handle.inode.db
        if db is None or handle.inode.kind is Kind.SHM:
            return
        await self._turn(db, handle.inode)
        if db.capture is None:
            if handle.inode.kind is Kind.DATABASE:
                await trio.to_thread.run_sync(os.fdatasync, handle.fd)
        elif handle.inode.kind is Kind.WAL:
            await db.run(db.capture.wal_sync())
        elif handle.inode.kind is Kind.DATABASE:
            await db.run(db.capture.database_sync(handle.fd, fh))
        else:
            await db.run(db.capture.journal_sync(handle.fd))
        await db.answerable()
        if handle.inode.kind is Kind.WAL and not handle.applies and not db.halted:
            if handle.unconfirmed:
                self._role.confirm()  # the end of a COMMIT, whose last frame may have been answered long ago
            handle.unconfirmed = False

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names need no sync of their own: recovery makes journal and WAL follow the log."""

    # -- unlinking ---------------------------------------------------------------------------------

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        path = self._path(parent_inode, name)
        inode = self._find(path)
        if inode is None:
            raise FUSEError(errno.ENOENT)
        db = inode.db
        if inode.kind is Kind.SUPER:
            await self._unlink_super(parent_inode, inode)
            return
        if inode.is_control or db is None:
            raise FUSEError(errno.EPERM)
        try:
            await self._turn(db, inode)
            if inode.kind is Kind.SHM and not self._is_applied(inode):
                os.unlink(inode.backing)
            elif self._role.role is not Role.PRIMARY and (inode.kind is not Kind.JOURNAL or not db.capture):
                raise FUSEError(errno.EROFS)
            else:
                await self._unlink_captured(db, inode)
        except (LiteFSError, OSError):
            if not inode.exists():
                self._vanished(parent_inode, inode)
            raise
        self.inodes.unlink(path)
        if inode.kind is Kind.DATABASE:
            for companion in self.inodes.of_database(db):
                self._vanished(parent_inode, companion)
        try:
            await db.answerable()
        except LiteFSError:
            self._vanished(parent_inode, inode)
            raise

    async def _unlink_captured(self, db: FsDatabase, inode: Inode) -> None:
        if inode.kind is Kind.DATABASE:  # also one that is damaged: its owner has nothing else left to do
            if db.removed:
                raise FUSEError(errno.ENOENT)
            (db.gate or self._role).check()
            self._dbs.remove(db)
            self._on_drop(db.name)
            self._role.confirm()
            return
        capture = self._capture(db)
        if inode.kind is Kind.WAL or capture.journal.hot or self._role.writable():
            capture.check_writable(inode.path)
        if inode.kind is Kind.WAL:
            capture.wal.unlink()
            os.unlink(inode.backing)
        else:
            await db.run(capture.journal.unlink(inode.backing, db.open_database()))

    def _users(self, db: FsDatabase) -> list[bool]:
        handles = self._handles.values()
        return [handle.closed for handle in handles if handle.inode.db is db and not handle.from_node]

    def forget_database(self, name: str, readers: bool) -> list[tuple[int, Kind]]:
        """Show a database no more, and let no connection to it begin another transaction; without ``readers``
        answer no read of it at all.

        Returns what the kernel may hold pages of, as :meth:`invalidated_inodes`.
        """
        db = self._dbs.get(name)
        if db is None:
            return []
        db.forgotten_below = FIRST_PAGE if readers else sys.maxsize
        inodes = self.inodes.of_database(db)
        self._dbs.forget(db)
        for inode in inodes:
            parent = self.inodes.at(inode.path.rpartition("/")[0])
            if parent is not None:
                self._vanished(parent.ino, inode)
        return [(inode.ino, inode.kind) for inode in inodes if inode.kind in _CACHED]

    def invalidated_inodes(self) -> list[tuple[int, Kind]]:
        """(inode, kind) of every database, WAL and shm that the kernel may hold pages of."""
        return [
            (inode.ino, inode.kind)
            for inode in self.inodes.live()
            if inode.kind in _CACHED and inode.ino != ROOT_INO
        ]
