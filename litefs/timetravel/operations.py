"""The FUSE requests of a time-travel mount. What it shows never changes, so the kernel may keep all of it."""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from litefs.errors import LiteFSError
from litefs.timetravel.database import Database, Reader

log = logging.getLogger("litefs.timetravel")

TIMEOUT = 300.0
"""Seconds the kernel may keep names and attributes."""
_BLOCK = 4096
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, object]])


@dataclass(slots=True, eq=False)
class Node:
    """A directory, with what is in it by name, or a database."""

    ino: int
    database: Database | None = None
    children: dict[str, Node] = field(default_factory=dict)


def answered(handler: Handler) -> Handler:
    """A request handler that answers every error with an errno; what else left it would end the mount."""

    @functools.wraps(handler)
    async def answer(self: Operations, *args: object) -> object:
        try:
            return await handler(self, *args)
        except FUSEError:
            raise
        except LiteFSError as error:
            log.warning("%s", error)
            raise FUSEError(errno.EIO) from error
        except Exception as error:
            log.exception("request %s failed", handler.__name__)
            raise FUSEError(errno.EIO) from error

    return cast(Handler, answer)


class Operations(pyfuse3.Operations):
    """A read-only tree of databases; ``/`` in a name makes directories. ``status``: owner of all."""

    enable_writeback_cache = False

    def __init__(self, databases: Iterable[Database], time_ms: int, status: os.stat_result) -> None:
        """``time_ms``: that directories show, and the file system's clock stands at."""
        super().__init__()
        self._nodes: dict[int, Node] = {}
        self._root = self._make()
        self._time_ns = time_ms * 1_000_000
        self._owner = (status.st_uid, status.st_gid)
        self._readers: dict[int, tuple[Node, Reader]] = {}
        self._next_handle = 1
        self._bytes = 0
        for database in databases:
            self._add(database)

    def _make(self, database: Database | None = None) -> Node:
        node = Node(pyfuse3.ROOT_INODE + len(self._nodes), database)
        self._nodes[node.ino] = node
        return node

    def _add(self, database: Database) -> None:
        *directories, name = database.moment.name.split("/")
        node = self._root
        for directory in directories:
            if directory not in node.children:
                node.children[directory] = self._make()
            node = node.children[directory]
        if node.database is not None or name in node.children:
            log.warning("%s: not shown: another database has a part of its name", database.moment.name)
            return
        node.children[name] = self._make(database)
        self._bytes += database.moment.size

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = node.ino
        entry.entry_timeout = entry.attr_timeout = TIMEOUT
        entry.st_uid, entry.st_gid = self._owner
        time_ns = self._time_ns
        if node.database is None:
            entry.st_mode = stat.S_IFDIR | 0o555
            entry.st_nlink = 2
        else:
            moment = node.database.moment
            entry.st_mode = stat.S_IFREG | 0o444
            entry.st_size = moment.size
            entry.st_blocks = -(-moment.size // 512)
            entry.st_blksize = max(_BLOCK, moment.page_size)
            time_ns = moment.time * 1_000_000
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = time_ns
        return entry

    # -- names ----------------------------------------------------------------------------------------

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self._nodes[parent_inode].children.get(os.fsdecode(name))
        if node is not None:
            return self._attributes(node)
        missing = EntryAttributes()  # SQLite looks for a journal and a WAL again and again
        missing.st_ino = 0
        missing.entry_timeout = TIMEOUT
        return missing

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._nodes[inode])

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inodes last as long as the mount."""

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    @answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for index, (name, node) in enumerate(sorted(self._nodes[fh].children.items())):
            if index >= start_id and not pyfuse3.readdir_reply(
                token, os.fsencode(name), self._attributes(node), index + 1
            ):
                return

    async def releasedir(self, fh: int) -> None:
        """Nothing is kept of an open directory."""

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        result = StatvfsData()
        result.f_bsize = result.f_frsize = _BLOCK
        result.f_blocks = -(-self._bytes // _BLOCK)
        result.f_bfree = result.f_bavail = result.f_ffree = result.f_favail = 0
        result.f_files = len(self._nodes)
        result.f_namemax = 255
        return result

    # -- data -----------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & _WRITES:
            raise FUSEError(errno.EROFS)
        handle = self._next_handle
        self._next_handle += 1
        self._readers[handle] = (self._nodes[inode], Reader())
        return FileInfo(fh=handle, keep_cache=True)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        node, reader = self._readers[fh]
        if node.database is None:
            raise FUSEError(errno.EISDIR)
        return await node.database.read(reader, off, size)

    async def flush(self, fh: int) -> None:
        """Nothing is written."""

    async def release(self, fh: int) -> None:
        self._readers.pop(fh, None)
