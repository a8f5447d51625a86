"""``mv`` on the primary's mount: a database, or a file that is none, takes another name with all its files.

Replicas see it as a removal and a new database. Nobody but the node process may have the file open: the
capture of its WAL and journal begins anew under the new name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pyfuse3
import trio
from pyfuse3 import FUSEError, RequestContext

from litefs.capture.commit import Refused
from litefs.errors import CommitRefused
from litefs.fs.databases import FsDatabase
from litefs.fs.inodes import CONTROL, Inode, Kind, split_suffix
from litefs.fs.namespace import Namespace, answered
from litefs.store import fileops
from litefs.store.paths import validate_name
from litefs.types import Role

CLOSE_SECONDS = 2.0
"""How long to wait for the last handle: the kernel tells of a close after the client's close(2) returned."""

RELEASE_SECONDS = 0.05
"""How long to wait for one of which the kernel tells nothing earlier (``UnflushedInfo``)."""


class Renaming(Namespace):
    """The request that renames."""

    _on_open: Callable[[str], None]
    _on_drop: Callable[[str], None]

    def _users(self, db: FsDatabase) -> list[bool]:
        """For each file of the database that a client has open, whether it is known that it was closed."""
        raise NotImplementedError

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        old, new = self._path(parent_inode_old, name_old), self._path(parent_inode_new, name_new)
        inode, target = self._find(old), self._find(new)
        if inode is None:
            raise FUSEError(errno.ENOENT)
        db = inode.db
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        if inode.kind is not Kind.DATABASE or db is None or split_suffix(new)[1] is not Kind.DATABASE:
            self._log_refusal(f"{old}: only databases and files that are none can be renamed, by such names")
            raise FUSEError(errno.EPERM)
        if new in CONTROL or (target is not None and target.kind is not Kind.DATABASE):
            raise FUSEError(errno.EEXIST)
        validate_name(new)
        if target is not None and flags & pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EEXIST)
        if self._role.role is not Role.PRIMARY:
            raise FUSEError(errno.EROFS)
        if old != new:
            await self._closed(db)
            self._move(parent_inode_old, inode, db, parent_inode_new, new)

    async def _closed(self, db: FsDatabase) -> None:
        """Wait until no client has it open. Raises Refused with EBUSY.

        Almost at once if one is not about to close it, as far as we know: the kernel holds up every other
        change to the directories meanwhile.
        """
        begin = trio.current_time()
        while (users := self._users(db)) or db.busy:
            if trio.current_time() >= begin + (CLOSE_SECONDS if all(users) else RELEASE_SECONDS):
                raise Refused(db.name, "cannot be renamed while a client has it open", errno.EBUSY)
            await trio.sleep(0.002)
        if db.dir.wal.exists() and db.dir.wal.stat().st_size:
            raise Refused(db.name, "cannot be renamed with a WAL: open and close it", errno.EBUSY)

    def _move(self, parent: int, inode: Inode, db: FsDatabase, new_parent: int, new: str) -> None:
        if db.removed or self._dbs.get(db.name) is not db:
            raise FUSEError(errno.ENOENT)
        capture = db.capture
        if capture is None:
            raise CommitRefused(f"{db.name}: {db.error}")
        if capture.journal.hot:
            raise Refused(db.name, "cannot be renamed with a hot journal: open it with SQLite", errno.EBUSY)
        if capture.raw.pending and db.position()[0].txid:
            raise Refused(db.name, "cannot be renamed with changes that are not in its log", errno.EBUSY)
        capture.check_writable(db.name)
        self._role.check()
        replaced = self._dbs.get(new)
        if replaced is not None and replaced.busy:
            raise Refused(new, "cannot be replaced while a big commit is under way", errno.EBUSY)
        fileops.unlink(db.dir.journal)  # of PERSIST mode
        try:
            renamed = self._dbs.rename(db, new)
        finally:
            if replaced is not None and replaced.removed:
                for gone in self.inodes.of_database(replaced):
                    self._vanished(new_parent, gone)
                self._on_drop(new)
        for companion in self.inodes.of_database(db):
            if companion is not inode:
                self._vanished(parent, companion)
        self.inodes.rename(inode, new, renamed, str(renamed.dir.database))
        self._on_drop(db.name)
        renamed.announced = True
        self._on_open(new)
        self._role.confirm()

    def _vanished(self, parent_inode: int, inode: Inode) -> None:
        """A file is gone, but the kernel was not asked for that, or is told of an error: it must not go on
        believing in it.
        """
        self.inodes.unlink(inode.path)
        name = os.fsencode(inode.path.rpartition("/")[2])
        pyfuse3.invalidate_entry_async(parent_inode, name, ignore_enoent=True)
