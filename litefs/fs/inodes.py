"""Inodes of the mount: which path is what, and which backing file stands behind it.

A path gets a new inode each time it is created, so that the kernel never shows cached pages of a journal
that was unlinked. Inodes live while the kernel knows them (lookup count), a handle is open or the path
exists.
"""

from __future__ import annotations

import enum
import os
import posixpath
from dataclasses import dataclass

from litefs.fs.databases import FsDatabase
from litefs.store.paths import super_journal_stem

ROOT_INO = 1


class Kind(enum.Enum):
    """What a path of the mount is."""

    DIRECTORY = "directory"
    DATABASE = "database"
    WAL = "wal"
    SHM = "shm"
    JOURNAL = "journal"
    SUPER = "super-journal"
    POS = "pos"
    PRIMARY = ".primary"
    LAG = ".lag"


SUFFIXES = {"-wal": Kind.WAL, "-shm": Kind.SHM, "-journal": Kind.JOURNAL, "-pos": Kind.POS}
CONTROL = {".primary": Kind.PRIMARY, ".lag": Kind.LAG}
CONTROL_KINDS = frozenset((Kind.POS, Kind.PRIMARY, Kind.LAG))


@dataclass(slots=True, eq=False)
class Inode:
    """One inode.

    ``backing`` is the file in the data directory ("" for control files); ``fd`` is open while handles
    are.
    """

    ino: int
    kind: Kind
    path: str
    db: FsDatabase | None = None
    backing: str = ""
    fd: int = -1
    handles: int = 0
    lookups: int = 0
    unlinked: bool = False

    @property
    def is_control(self) -> bool:
        return self.kind in CONTROL_KINDS

    def exists(self) -> bool:
        """Whether the backing file still has its name."""
        return os.path.lexists(self.backing)

    def open_backing(self) -> int:
        """The shared descriptor of the backing file, opened for the first handle. Raises OSError."""
        if self.fd < 0:
            self.fd = os.open(self.backing, os.O_RDWR | os.O_CLOEXEC)
        return self.fd

    def close_handle(self) -> None:
        self.handles -= 1
        if self.handles == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class InodeTable:
    """All inodes by number and, while they exist, by path."""

    def __init__(self) -> None:
        self._next = ROOT_INO + 1
        root = Inode(ROOT_INO, Kind.DIRECTORY, "", lookups=1)
        self._by_ino: dict[int, Inode] = {ROOT_INO: root}
        self._by_path: dict[str, Inode] = {"": root}

    def __getitem__(self, ino: int) -> Inode:
        return self._by_ino[ino]

    def __len__(self) -> int:
        return len(self._by_ino)

    def live(self) -> list[Inode]:
        """Every inode whose path exists."""
        return list(self._by_path.values())

    def at(self, path: str) -> Inode | None:
        return self._by_path.get(path)

    def get_or_make(self, path: str, kind: Kind, db: FsDatabase | None, backing: str) -> Inode:
        """The inode of an existing path, made at its first lookup."""
        inode = self._by_path.get(path)
        if inode is None:
            inode = Inode(self._next, kind, path, db, backing)
            self._next += 1
            self._by_ino[inode.ino] = inode
            self._by_path[path] = inode
        return inode

    def unlink(self, path: str) -> Inode | None:
        """The path is gone; what is open stays."""
        inode = self._by_path.pop(path, None)
        if inode is not None:
            inode.unlinked = True
            self._drop_if_unused(inode)
        return inode

    def rename(self, inode: Inode, path: str, db: FsDatabase, backing: str) -> None:
        """The inode has another path now, which is free."""
        del self._by_path[inode.path]
        inode.path, inode.db, inode.backing = path, db, backing
        self._by_path[path] = inode

    def of_database(self, db: FsDatabase) -> list[Inode]:
        """The inodes of a database's files whose paths exist."""
        return [inode for inode in self.live() if inode.db is db]

    def forget(self, ino: int, lookups: int) -> None:
        inode = self._by_ino.get(ino)
        if inode is not None:
            inode.lookups -= lookups
            self._drop_if_unused(inode)

    def closed(self, inode: Inode) -> None:
        inode.close_handle()
        self._drop_if_unused(inode)

    def _drop_if_unused(self, inode: Inode) -> None:
        if inode.lookups <= 0 and inode.handles == 0 and inode.ino != ROOT_INO:
            self._by_ino.pop(inode.ino, None)
            if self._by_path.get(inode.path) is inode:
                del self._by_path[inode.path]


def split_suffix(path: str) -> tuple[str, Kind]:
    """``("app.db", WAL)`` for ``"app.db-wal"``; a path with no known suffix is a database."""
    for suffix, kind in SUFFIXES.items():
        if path.endswith(suffix) and len(posixpath.basename(path)) > len(suffix):
            return path[: -len(suffix)], kind
    if (stem := super_journal_stem(path)) is not None:
        return stem, Kind.SUPER
    return path, Kind.DATABASE
