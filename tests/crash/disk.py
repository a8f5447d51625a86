"""A model of a disk behind a page cache: what may be found on it after the power failed.

A file has a cache (what reads see) and a disk. A page of the cache that was changed since the last sync
reaches the disk in any of its versions or not at all, independently of every other page; sizes likewise,
except that a truncation orders what is before and after it (file systems journal it with the freeing of
blocks). A name that was created, removed or renamed since the last sync of its directory may be in either
state, whatever was synced of the file itself (POSIX promises no more). After a failed fsync pages count as
clean, but reached the disk or not, as on Linux. A later write through the cache of one that did not is lost
again, without an error (ext4 with extents that count as unwritten), until the cache has let go of the page or
it was written past the cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

PAGE = 4096
SECTOR = 512
_ZERO = bytes(PAGE)


class Style(Enum):
    """How a power failure treats what was not synced."""

    NOTHING = auto()
    """None of it reached the disk."""
    PREFIX = auto()
    """What was written up to some moment did."""
    SUBSET = auto()
    """Each page and each name by itself."""
    TORN = auto()
    """As SUBSET, and one page is a mixture of sectors of two of its versions."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a page held from event ``at`` on, after ``epoch`` truncations of its file.

    ``cut``: the truncation itself made it.
    """

    at: int
    epoch: int
    data: bytes
    cut: bool


@dataclass(slots=True)
class File:
    """One inode. Pages that are not in a dictionary are zeros."""

    cache_size: int = 0
    cache: dict[int, bytes] = field(default_factory=dict)
    disk_size: int = 0
    disk: dict[int, bytes] = field(default_factory=dict)
    dirty: dict[int, list[Version]] = field(default_factory=dict)
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    """(event, epoch, size) since the last sync."""
    epoch: int = 0
    deaf: set[int] = field(default_factory=set)
    """Pages that a failed sync did not write: what is written to them through the cache stays there."""

    def write_direct(self, at: int, offset: int, data: bytes) -> None:
        """Lay ``data`` over cache and disk; durable with the next sync."""
        self.deaf -= set(range(offset // PAGE, -(-(offset + len(data)) // PAGE)))
        self.write(at, offset, data)

    def write(self, at: int, offset: int, data: bytes) -> None:
        """Lay ``data`` over the cache."""
        done = 0
        while done < len(data):
            number, within = divmod(offset + done, PAGE)
            step = min(PAGE - within, len(data) - done)
            if step == PAGE:
                page = data[done : done + PAGE]
            else:
                old = self.cache.get(number, _ZERO)
                page = old[:within] + data[done : done + step] + old[within + step :]
            self.put(at, number, page)
            done += step
        if offset + len(data) > self.cache_size:
            self.resize(at, offset + len(data))

    def put(self, at: int, number: int, page: bytes, *, cut: bool = False) -> None:
        """A page of the cache is ``page`` from now on."""
        self.cache[number] = page
        self.dirty.setdefault(number, []).append(Version(at, self.epoch, page, cut))

    def resize(self, at: int, size: int) -> None:
        """Truncation or growth."""
        if size < self.cache_size:
            self.epoch += 1
            self.deaf = {number for number in self.deaf if (number + 1) * PAGE <= size}
            for number in [number for number in {*self.cache, *self.disk} if (number + 1) * PAGE > size]:
                kept = max(0, size - number * PAGE)
                self.put(at, number, self.cache.get(number, _ZERO)[:kept].ljust(PAGE, b"\0"), cut=True)
        self.cache_size = size
        self.sizes.append((at, self.epoch, size))

    def sync(self) -> None:
        """All of the cache that is dirty is on the disk."""
        for number, versions in self.dirty.items():
            if number not in self.deaf:
                self.disk[number] = versions[-1].data
        self.disk_size = self.cache_size
        self._clean()

    def fail_sync(self, rng: random.Random) -> None:
        """Some of it is, and no page counts as dirty any more."""
        self.disk_size, self.disk = self.survivors(rng, Style.SUBSET, 0)
        self.deaf |= {n for n in self.dirty if self.disk.get(n, _ZERO) != self.cache.get(n, _ZERO)}
        self._clean()

    def reread(self, first: int = 0, end: int | None = None) -> None:
        """The cache drops what counts as clean of the pages from ``first`` to before ``end``, and reads it
        from the disk again."""
        for number in {*self.cache, *self.disk} - set(self.dirty):
            if first <= number and (end is None or number < end):
                self.cache[number] = self.disk.get(number, _ZERO)
                self.deaf.discard(number)

    def _clean(self) -> None:
        self.dirty = {}
        self.sizes = []
        self.epoch = 0

    def survivors(self, rng: random.Random, style: Style, until: int) -> tuple[int, dict[int, bytes]]:
        """(size, pages) of the disk after a power failure. ``until``: the moment of PREFIX."""
        if style is Style.NOTHING or not (self.dirty or self.sizes):
            return self.disk_size, self.disk
        pages = dict(self.disk)
        if style is Style.PREFIX:
            for number, versions in self.dirty.items():
                for version in versions:
                    if version.at <= until and number not in self.deaf:
                        pages[number] = version.data
            done = [size for at, _, size in self.sizes if at <= until]
            return done[-1] if done else self.disk_size, pages
        epoch = rng.randint(0, self.epoch)
        torn = rng.choice(sorted(self.dirty)) if style is Style.TORN and self.dirty else -1
        for number, versions in self.dirty.items():
            if number in self.deaf:
                continue
            choices = [pages.get(number, _ZERO)]
            for version in versions:
                if version.epoch <= epoch:
                    choices = [version.data] if version.cut else [*choices, version.data]
            pages[number] = _mixed(rng, choices) if number == torn else rng.choice(choices)
        sizes = [size for _, of, size in self.sizes if of == epoch]
        return rng.choice(sizes if epoch else [self.disk_size, *sizes]), pages


def _mixed(rng: random.Random, choices: list[bytes]) -> bytes:
    """Sectors of one version, then of another; or each from either."""
    old, new = rng.choice(choices), choices[-1]
    if rng.random() < 0.5:
        border = rng.randrange(0, PAGE + 1, SECTOR)
        return new[:border] + old[border:]
    return b"".join(rng.choice((old, new))[at : at + SECTOR] for at in range(0, PAGE, SECTOR))


@dataclass(slots=True)
class Directory:
    """The names in one directory, by node number."""

    cache: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        """Do it in the cache."""
        change.apply(self.cache)
        self.changes.append(change)

    def sync(self) -> None:
        """All names are as in the cache."""
        self.disk = dict(self.cache)
        self.changes = []

    def survivors(self, rng: random.Random, style: Style, until: int) -> dict[str, int]:
        """The names after a power failure."""
        names = dict(self.disk)
        for change in self.changes:
            if style is Style.NOTHING:
                continue
            if change.at <= until if style is Style.PREFIX else rng.random() < 0.5:
                change.apply(names)
        return names


@dataclass(frozen=True, slots=True)
class Change:
    """``name`` becomes ``node`` (None: it is removed), or what ``source`` names if that is given."""

    at: int
    name: str
    node: int | None
    source: str | None = None

    def apply(self, names: dict[str, int]) -> None:
        """To ``names``; what does not apply, because an earlier change was lost, changes nothing."""
        if self.source is not None:
            if (moved := names.pop(self.source, None)) is not None:
                names[self.name] = moved
        elif self.node is None:
            names.pop(self.name, None)
        else:
            names[self.name] = self.node


@dataclass(frozen=True, slots=True)
class Image:
    """What is found after a crash: a directory, or a file of ``size`` bytes with these pages."""

    names: dict[str, Image] | None = None
    size: int = 0
    pages: dict[int, bytes] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Make it real at ``path``, which does not exist."""
        if self.names is not None:
            path.mkdir()
            for name, image in self.names.items():
                image.write(path / name)
            return
        with path.open("xb") as file:
            for number in sorted(self.pages):
                page = self.pages[number][: max(0, self.size - number * PAGE)]
                if page:
                    file.seek(number * PAGE)
                    file.write(page)
            file.truncate(self.size)


ROOT = 0


class Disk:
    """All files and directories by node number; ``ROOT`` is the directory that everything is in."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.directories: dict[int, Directory] = {ROOT: Directory()}

    def killed(self) -> Image:
        """The process died: the cache goes on."""
        return self._image(
            ROOT,
            lambda directory: directory.cache,
            lambda file: (file.cache_size, file.cache),
        )

    def power_failed(self, rng: random.Random, style: Style, until: int) -> Image:
        """The machine died. ``until``: the event up to which all reached the disk, for PREFIX."""
        return self._image(
            ROOT,
            lambda directory: directory.survivors(rng, style, until),
            lambda file: file.survivors(rng, style, until),
        )

    def _image(
        self,
        node: int,
        names: Callable[[Directory], dict[str, int]],
        content: Callable[[File], tuple[int, dict[int, bytes]]],
    ) -> Image:
        if node in self.directories:
            found = names(self.directories[node])
            return Image({name: self._image(found[name], names, content) for name in sorted(found)})
        size, pages = content(self.files[node])
        return Image(None, size, dict(pages))
