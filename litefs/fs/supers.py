"""Super-journals on the mount: to unlink one commits a transaction over several databases.

What it means is in litefs.capture.super.
"""

from __future__ import annotations

import errno
import os
import stat

from pyfuse3 import FUSEError

from litefs.capture.commit import BigCommit
from litefs.errors import InvalidName
from litefs.fs.databases import FsDatabase
from litefs.fs.inodes import Inode, Kind
from litefs.fs.renaming import Renaming
from litefs.store.paths import validate_name
from litefs.types import Role


class SuperRequests(Renaming):
    """What creating and unlinking a super-journal does."""

    def _create_super(self, path: str, stem: str, mode: int) -> Inode:
        """Owned as the database that it is named after. Raises InvalidName, OSError."""
        validate_name(stem)
        db = self._dbs.get(stem)
        if db is None:
            raise InvalidName(f"{path}: there is no database {stem}")
        self._dbs.supers.create(path, mode)
        backing = str(self._dbs.supers.backing(path))
        like = os.stat(db.dir.database)
        os.chmod(backing, stat.S_IMODE(like.st_mode))
        os.chown(backing, like.st_uid, like.st_gid)
        return self.inodes.get_or_make(path, Kind.SUPER, None, backing)

    async def _unlink_super(self, parent_inode: int, inode: Inode) -> None:
        """Commit what it stands for. Raises as ``SuperJournals.commit``, FUSEError."""
        supers, path = self._dbs.supers, inode.path
        while waiting := [db for db in self._members(path) if db.must_wait]:
            await waiting[0].ready()
        if self._role.role is not Role.PRIMARY:
            raise FUSEError(errno.EROFS)
        if path not in supers:
            raise FUSEError(errno.ENOENT)
        members = self._members(path)
        job = supers.commit(path, supers.members(path))
        try:
            await _run(members, job)
            self.inodes.unlink(path)
            for db in members:
                await db.answerable()
        except BaseException:
            if path not in supers:
                self._vanished(parent_inode, inode)
            raise

    def _members(self, path: str) -> list[FsDatabase]:
        names = self._dbs.supers.members(path) if path in self._dbs.supers else ()
        return [db for name in names if (db := self._dbs.get(name)) is not None]


async def _run(members: list[FsDatabase], job: BigCommit) -> None:
    """Run the job in a thread, all members busy; at once if there are none."""
    if not members:
        job.run()
        job.finish(None)
        return
    for db in members[1:]:
        db.begin_job()
    try:
        await members[0].run(job)
    finally:
        for db in members[1:]:
            db.end_job()
