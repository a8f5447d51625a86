"""Stands in for ``os`` in ``litefs.store.fileops``: every change of a file or name is done for real, recorded
as an event, and fails if the schedule says so.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import os
import random
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litefs.store import fileops
from tests.crash.disk import PAGE, ROOT, Change, Directory, Disk, File, Image

MAPPED = ("sums", "sums.tmp")
"""Files that change by stores to a map: looked at before each event."""
MAPPED_PAGES = 3
"""So many pages of them: the header, and the checksums of 1,024 pages."""

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class Fault:
    """From operation ``first`` on (counted from 1) ``count`` of those that ``operations`` names fail."""

    first: int
    count: int
    code: int
    operations: frozenset[str]
    overwrites: bool = True
    """Also writes to space that a file has already; a full disk need not fail those."""
    short: bool = False
    """The first write that fails writes a part, as write(2) may, and fails when it is continued."""


WRITES = frozenset({"write", "truncate", "fallocate", "create", "mkdir"})
SYNCS = frozenset({"sync"})
EVERY = WRITES | SYNCS | {"rename", "unlink"}


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to node ``node`` (for names: of the directory)."""

    kind: str
    node: int
    offset: int = 0
    end: int = 0
    data: bytes = b""
    name: str = ""
    target: int | None = None
    source: str | None = None


def apply(disk: Disk, at: int, event: Event, rng: random.Random) -> None:
    """Make the event happen on a model disk; ``at``: its number."""
    match event.kind:
        case "write":
            disk.files[event.node].write(at, event.offset, event.data)
        case "direct":
            disk.files[event.node].write_direct(at, event.offset, event.data)
        case "map":
            disk.files[event.node].put(at, event.offset, event.data)
        case "size":
            disk.files[event.node].resize(at, event.offset)
        case "sync":
            disk.files[event.node].sync()
        case "sync failed":
            disk.files[event.node].fail_sync(rng)
        case "reread":
            end = -(-event.end // PAGE) if event.end else None
            disk.files[event.node].reread(event.offset // PAGE, end)
        case "sync names":
            disk.directories[event.node].sync()
        case "name":
            if event.target is not None and event.target not in disk.files:
                disk.files[event.target] = File()
            disk.directories[event.node].change(Change(at, event.name, event.target, event.source))
        case "mkdir":
            assert event.target is not None
            disk.directories[event.target] = Directory()
            disk.directories[event.node].change(Change(at, event.name, event.target))
        case _:
            raise ValueError(event.kind)


class Recorder:
    """The stand-in. Everything else of ``os`` is passed through."""

    def __init__(self, root: Path, disk: Disk, seed: str) -> None:
        """``disk``: the state that ``root`` was made from, in which nothing is renamed any more. ``seed``: of
        what failed syncs leave on the disk, for all who apply the events.
        """
        self._seed = seed
        self.disk = disk
        """The state at the first event; recording does not change it."""
        self.events: list[Event] = []
        self.fault: Fault | None = None
        self.operations = 0
        self.failed: list[str] = []
        """The operations that were made to fail."""
        self._nodes: dict[int, int] = {}
        self._next = max([ROOT, *disk.files, *disk.directories]) + 1
        self._mapped: dict[int, list[bytes]] = {}
        self._maps: dict[int, int] = {}
        self._short_done = False
        self._adopt(root, ROOT)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _adopt(self, path: Path, node: int) -> None:
        self._nodes[os.stat(path).st_ino] = node
        if node in self.disk.directories:
            for name, child in self.disk.directories[node].cache.items():
                self._adopt(path / name, child)
        elif path.name in MAPPED:
            self._watch(path, node)

    def _watch(self, path: Path, node: int) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._maps[node] = fd
        self._mapped[node] = self._read_map(fd)

    @staticmethod
    def _read_map(fd: int) -> list[bytes]:
        data = os.pread(fd, MAPPED_PAGES * PAGE, 0).ljust(MAPPED_PAGES * PAGE, b"\0")
        return [data[at : at + PAGE] for at in range(0, len(data), PAGE)]

    def finish(self) -> None:
        """Record what the maps hold at the end, and let go of them."""
        self._look_at_maps()
        for fd in self._maps.values():
            os.close(fd)
        self._maps = {}

    def _look_at_maps(self) -> None:
        for node, fd in self._maps.items():
            now = self._read_map(fd)
            before = self._mapped[node]
            if now != before:
                self._mapped[node] = now
                for number, page in enumerate(now):
                    if page != before[number]:
                        self.events.append(Event("map", node, number, data=page))

    # -- faults ------------------------------------------------------------------------------------

    def _begin(self, operation: str, *, grows: bool = True) -> bool:
        """Note what the maps hold, then fail if it is time to. True: write a part only."""
        self._look_at_maps()
        self.operations += 1
        fault = self.fault
        if (
            fault is None
            or self.operations < fault.first
            or fault.count <= 0
            or operation not in fault.operations
            or not (grows or fault.overwrites)
        ):
            return False
        if fault.short and operation == "write" and not self._short_done:
            self._short_done = True
            return True
        fault.count -= 1
        self.failed.append(operation)
        raise OSError(fault.code, os.strerror(fault.code))

    def _node(self, fd: int) -> int:
        return self._nodes[os.fstat(fd).st_ino]

    # -- data --------------------------------------------------------------------------------------

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        node, size = self._node(fd), os.fstat(fd).st_size
        if self._begin("write", grows=offset + len(data) > size) and len(data) > 1:
            data = memoryview(data)[: len(data) // 2]
        written = os.pwrite(fd, data, offset)
        kind = "direct" if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT else "write"
        self.events.append(Event(kind, node, offset, data=bytes(data[:written])))
        return written

    def pwritev(self, fd: int, parts: Sequence[Buffer], offset: int) -> int:
        return self.pwrite(fd, b"".join(parts), offset)

    def copy_file_range(self, source: int, fd: int, count: int, offset: int, target: int) -> int:
        return self.pwrite(fd, os.pread(source, count, offset), target)

    def ftruncate(self, fd: int, size: int) -> None:
        self._begin("truncate", grows=size > os.fstat(fd).st_size)
        os.ftruncate(fd, size)
        self.events.append(Event("size", self._node(fd), size))

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        size = os.fstat(fd).st_size
        self._begin("fallocate", grows=offset + length > size)
        if offset + length > size:
            os.ftruncate(fd, offset + length)
            self.events.append(Event("size", self._node(fd), offset + length))

    def fsync(self, fd: int) -> None:
        node = self._node(fd)
        names = stat.S_ISDIR(os.fstat(fd).st_mode)
        try:
            self._begin("sync")
        except OSError:
            if not names:
                self.events.append(Event("sync failed", node))
            raise
        self.events.append(Event("sync names" if names else "sync", node))

    fdatasync = fsync

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        """The file shows what the model's disk has, where that is not what was in the cache."""
        assert advice == os.POSIX_FADV_DONTNEED
        node = self._node(fd)
        end = offset + length if length else 0
        self.events.append(Event("reread", node, offset, end))
        disk = copy.deepcopy(self.disk)
        rng = random.Random(self._seed)
        for at, event in enumerate(self.events):
            apply(disk, at, event, rng)
        file = disk.files[node]
        for number, page in file.cache.items():
            if number * PAGE < offset or (end and number * PAGE >= end):
                continue
            os.pwrite(fd, page[: max(0, file.cache_size - number * PAGE)], number * PAGE)

    # -- names -------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        there = os.path.exists(path)
        if flags & os.O_CREAT and not there:
            self._begin("create")
        elif flags & os.O_TRUNC:
            self._begin("truncate", grows=False)
        fd = os.open(path, flags, mode)
        if not there:
            node = self._nodes[os.fstat(fd).st_ino] = self._new_node()
            self.events.append(Event("name", self._parent(path), name=Path(path).name, target=node))
            if Path(path).name in MAPPED:
                self._watch(path, node)
        elif flags & os.O_TRUNC:
            self.events.append(Event("size", self._node(fd), 0))
        return fd

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._begin("mkdir")
        os.mkdir(path, mode)
        node = self._nodes[os.stat(path).st_ino] = self._new_node()
        self.events.append(Event("mkdir", self._parent(path), name=Path(path).name, target=node))

    def rename(self, source: Path, target: Path) -> None:
        parent = self._parent(source)
        if self._parent(target) != parent:
            raise OSError(errno.EXDEV, "the model knows renames within a directory only")
        self._begin("rename")
        os.rename(source, target)
        self.events.append(Event("name", parent, name=Path(target).name, source=Path(source).name))

    def unlink(self, path: Path | str) -> None:
        self._begin("unlink")
        os.unlink(path)
        self.events.append(Event("name", self._parent(path), name=Path(path).name))

    def rmdir(self, path: Path) -> None:
        self._begin("unlink")
        os.rmdir(path)
        self.events.append(Event("name", self._parent(path), name=Path(path).name))

    def _new_node(self) -> int:
        self._next += 1
        return self._next - 1

    def _parent(self, path: Path | str) -> int:
        return self._nodes[os.stat(Path(path).parent).st_ino]


@contextlib.contextmanager
def recording(root: Path, disk: Disk, seed: str = "") -> Iterator[Recorder]:
    """Record what ``fileops`` does below ``root`` until the context ends. ``seed``: as of ``Recorder``."""
    recorder = Recorder(root, disk, seed)
    fileops.os = recorder  # type: ignore[assignment,attr-defined]
    try:
        yield recorder
    finally:
        fileops.os = os  # type: ignore[attr-defined]
        recorder.finish()


def disk_of(image: Image) -> Disk:
    """A disk that durably holds what was found after a power failure."""
    disk = Disk()
    _fill(disk, ROOT, image)
    return disk


def _fill(disk: Disk, node: int, image: Image) -> None:
    if image.names is None:
        disk.files[node] = File(image.size, dict(image.pages), image.size, dict(image.pages))
        return
    directory = disk.directories[node] = Directory()
    for name, child in image.names.items():
        number = max([ROOT, *disk.files, *disk.directories]) + 1
        _fill(disk, number, child)
        directory.cache[name] = number
    directory.sync()
