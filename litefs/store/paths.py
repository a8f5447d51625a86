"""The data directory: names of databases, where their files are, and the lock of the running node.

The layout is in ARCHITECTURE.md, "Data directory".
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from litefs.errors import ClusterMismatch, DataDirInUse, InvalidName
from litefs.store import fileops

MAX_ENCODED = 200
"""Bytes of an encoded name: leaves room for suffixes within the 255 bytes of a path component."""

RESERVED_SUFFIXES = ("-journal", "-wal", "-shm", "-pos", "-lock")
CONTROL_FILES = (".primary", ".lag")

_SUPER_JOURNAL = re.compile(r"-mj[0-9A-Fa-f]{6,}\Z")
_CLUSTER_ID = re.compile(r"LFSC[0-9A-F]{16}\Z")


def encode_name(name: str) -> str:
    """One path component for a database name: ``%`` becomes ``%25``, ``/`` becomes ``%2F``."""
    return name.replace("%", "%25").replace("/", "%2F")


def decode_name(component: str) -> str:
    """The database name of a path component. Raises InvalidName unless ``encode_name`` could have made it."""
    name = component.replace("%2F", "/").replace("%25", "%")
    if encode_name(name) != component:
        raise InvalidName(f"not an encoded database name: {component!r}")
    return name


def super_journal_stem(name: str) -> str | None:
    """The database whose super-journal would have this name: ``DIR/app.db`` for ``DIR/app.db-mj0A1B2C9D3``.

    SQLite appends ``-mj`` and nine hexadecimal digits, the seventh of them a 9 (sqlite.org/tempfiles.html).
    """
    match = _SUPER_JOURNAL.search(name)
    return name[: match.start()] if match and not name.startswith("-mj") else None


def validate_name(name: str) -> str:
    """Return ``name`` if a database can have it; raises InvalidName with the reason.

    Names come from clients of the mount and from the network: none may lead out of the data directory, or be
    taken for a control file or for a companion that SQLite puts beside a database.
    """
    problem = _name_problem(name)
    if problem:
        raise InvalidName(f"invalid database name {name!r}: {problem}")
    return name


def _name_problem(name: str) -> str | None:
    if not name:
        return "it is empty"
    if "\0" in name:
        return "it contains a NUL byte"
    if name.startswith("/") or name.endswith("/"):
        return "it begins or ends with a slash"
    parts = name.split("/")
    if "" in parts:
        return "it contains an empty path component"
    if "." in parts or ".." in parts:
        return "it contains '.' or '..'"
    try:
        encoded = encode_name(name).encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if len(encoded) > MAX_ENCODED:
        return f"it is longer than {MAX_ENCODED} bytes"
    if name in CONTROL_FILES:
        return "it is the name of a control file"
    if name.endswith(RESERVED_SUFFIXES) or _SUPER_JOURNAL.search(name):
        return "SQLite or LiteFS uses such names for files beside a database"
    return None


@dataclass(frozen=True, slots=True)
class DatabaseDir:
    """Where the files of one database are; creates nothing by itself."""

    name: str
    path: Path

    @property
    def database(self) -> Path:
        return self.path / "database"

    @property
    def wal(self) -> Path:
        return self.path / "database-wal"

    @property
    def shm(self) -> Path:
        return self.path / "database-shm"

    @property
    def staged(self) -> Path:
        """A transaction of a replica with the HALT lock, on its way to the primary."""
        return self.path / "staged"

    @property
    def accepted(self) -> Path:
        """What the primary logged of it, as the primary answers."""
        return self.path / "accepted"

    @property
    def echoed(self) -> Path:
        """The same, as the stream brought it, while the primary's answer waits for this replica."""
        return self.path / "echoed"

    @property
    def journal(self) -> Path:
        return self.path / "database-journal"

    @property
    def sums(self) -> Path:
        return self.path / "sums"

    @property
    def log(self) -> Path:
        """The directory of log segments."""
        return self.path / "log"

    @property
    def incoming(self) -> Path:
        """A snapshot while it is being received."""
        return self.path / "database.tmp"

    @property
    def incoming_sums(self) -> Path:
        return self.path / "sums.tmp"

    @property
    def install(self) -> Path:
        """Present from the moment a received snapshot is complete until it has replaced what was there."""
        return self.path / "install"

    def create(self) -> None:
        """Make the directory, durably."""
        fileops.make_dir(self.path)

    def lost(self, reason: str) -> Path:
        """Make a new directory ``DATA/lost/NAME-TIME-REASON`` for what must be set aside, durably."""
        fileops.make_dir(self.path.parent.parent / "lost")
        for target in self.lost_names(reason):
            try:
                fileops.new_dir(target)
            except FileExistsError:
                continue
            return target
        raise FileExistsError(f"too many lost directories for {self.name} at this second")

    def lost_names(self, reason: str) -> Iterator[Path]:
        """The paths that ``lost`` tries, one after the other."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        first = self.path.parent.parent / "lost" / f"{self.path.name}-{stamp}-{reason}"
        yield first
        for attempt in range(1, 1000):
            yield first.with_name(f"{first.name}-{attempt}")


class DataDir:
    """The data directory of a node.

    Creates the directory itself, and its parts when they are first needed.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises OSError if the directory cannot be made."""
        self.path = Path(path)
        self._parts: set[str] = set()
        self.part("dbs")

    def lock(self) -> int:
        """Take the lock of this directory; returns the descriptor that holds it.

        The lock lasts until every copy of the descriptor is closed, so the fs process that inherits it keeps
        the directory locked when the node process dies. Raises DataDirInUse naming the process that wrote its
        id there.
        """
        path = self.path / "lock"
        fd = fileops.open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            if not fileops.try_lock(fd):
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                raise DataDirInUse(
                    f"data directory {self.path} is in use by process {holder} or a child of it: stop that "
                    "node, or give this one a data.dir of its own"
                )
            fileops.truncate(fd, 0)
            fileops.pwrite_all(fd, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def part(self, name: str) -> Path:
        """The directory of that name directly in this one, there and durable on return. Raises OSError.

        It is synced once for each of these objects: who made it may have been killed before that.
        """
        path = self.path / name
        if name not in self._parts:
            fileops.make_dir(path)
            self._parts.add(name)
        return path

    def database_dir(self, name: str) -> DatabaseDir:
        """Where database ``name`` is kept, whether it exists or not. Raises InvalidName."""
        validate_name(name)
        return DatabaseDir(name, self.path / "dbs" / encode_name(name))

    def names(self) -> list[str]:
        """The databases that have a directory here, sorted; anything else in ``dbs/`` is passed over."""
        return sorted(self._names())

    def _names(self) -> Iterator[str]:
        for entry in os.scandir(self.path / "dbs"):
            if entry.is_dir(follow_symlinks=False):
                try:
                    yield validate_name(decode_name(entry.name))
                except InvalidName:
                    continue

    def cluster_id(self) -> str | None:
        """``LFSC`` and 16 hex digits, or None before the node joined a cluster.

        Raises ClusterMismatch if damaged.
        """
        path = self.path / "clusterid"
        try:
            text = path.read_text("ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        if not _CLUSTER_ID.match(text):
            raise ClusterMismatch(f"{path} does not hold a cluster id: {text[:40]!r}")
        return text

    def set_cluster_id(self, cluster_id: str) -> None:
        """Join a cluster, once.

        Raises ClusterMismatch if this directory belongs to another or the id is malformed.
        """
        if not _CLUSTER_ID.match(cluster_id):
            raise ClusterMismatch(f"not a cluster id: {cluster_id!r}")
        present = self.cluster_id()
        if present is None:
            fileops.write_file_atomic(self.path / "clusterid", cluster_id.encode() + b"\n")
        elif present != cluster_id:
            raise ClusterMismatch(f"{self.path} belongs to cluster {present}, not {cluster_id}")

    def lost(self, name: str, reason: str) -> Path:
        """Make a new directory under ``lost/`` for what database ``name`` must set aside."""
        return self.database_dir(name).lost(reason)
