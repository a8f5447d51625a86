"""The archiver of one database: whatever fails or dies, its archive is one whole history."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from litefs.backup.archive import Archive, timelines
from litefs.backup.archiver import Archiver, Settings, end_removed
from litefs.backup.directory import DirectoryTarget
from litefs.backup.target import Target
from litefs.errors import ArchiveUnavailable, LiteFSError, NotPrimary
from litefs.store import dropped
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.segments import list_segments
from litefs.stream.catalog import StoreSource
from tests.backup.archives import by_bundles, check_whole, snapshot
from tests.store.support import Writer

NAME = "app.db"


class Crash(BaseException):
    """The process is gone."""


class Faulty(DirectoryTarget):
    """Fails at the ``at``-th change, before or after it, by ``error``."""

    def __init__(self, root: Path, at: int = -1, after: bool = False, error: type[BaseException] = Crash):
        super().__init__(root)
        self.at, self.after, self.error = at, after, error
        self.count = 0

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        self.count += 1
        if self.count - 1 != self.at:
            return super().write(key, data, timestamp, create=create)
        if self.after:
            super().write(key, data, timestamp, create=create)
        raise self.error("as planned")


class Place:
    """A node's database and what archives it."""

    def __init__(self, root: Path, make_writer: Callable[..., Writer]) -> None:
        self.root = root
        self.data = DataDir(root / "data")
        self.directory = self.data.database_dir(NAME)
        self.directory.create()
        self._make_writer = make_writer
        self.writer = make_writer(self.directory)
        self.primary = True
        self.news: list[tuple[str, dict[str, object]]] = []
        self.now = 1000

    def target(self) -> DirectoryTarget:
        return DirectoryTarget(self.root / "archive")

    def archiver(self, target: Target | None = None) -> Archiver:
        settings = Settings(
            "node",
            self.root / "scratch",
            lambda kind, data: self.news.append((kind, dict(data))),
            lambda: self.now,
        )
        source = StoreSource(self.directory)
        return Archiver(target or self.target(), self.data, source, lambda: self.primary, settings)

    def fork(self, name: str) -> Place:
        """Another node with the same log and the same archive."""
        other = object.__new__(Place)
        other.__dict__.update(self.__dict__)
        self.writer.checkpoint()
        shutil.copytree(self.data.path, self.root / name)
        other.data = DataDir(self.root / name)
        other.directory = other.data.database_dir(NAME)
        return other


@pytest.fixture
def place(tmp_path: Path, make_writer: Callable[..., Writer]) -> Place:
    return Place(tmp_path, make_writer)


def insert(place: Place, count: int = 1) -> None:
    for _ in range(count):
        place.writer.run("INSERT INTO t (v) VALUES (randomblob(1000))")


def newest(place: Place) -> Archive:
    return timelines(place.target(), NAME)[-1]


def test_a_timeline_from_the_first_transaction_on(place: Place) -> None:
    place.writer.fill(3)
    archiver = place.archiver()
    assert archiver.sync()
    assert archiver.note_head()
    insert(place, 12)
    assert archiver.sync()
    insert(place)
    assert archiver.sync()
    assert check_whole(place.target(), NAME, place.writer.images) == list(range(1, 18))
    assert not newest(place).files(9)
    assert place.news == [("timeline", {"timeline": 1, "reason": "new", "txID": "0" * 16})]
    start = newest(place).start()
    assert start is not None
    assert start.reason == "new"


def test_another_archiver_goes_on_in_the_same_timeline(place: Place) -> None:
    place.writer.fill(3)
    first = place.archiver()
    first.sync()
    insert(place, 2)
    second = place.archiver()
    second.sync()
    insert(place, 2)
    first.sync()
    insert(place, 1)
    second.sync()
    assert [archive.number for archive in timelines(place.target(), NAME)] == [1]
    assert len(check_whole(place.target(), NAME, place.writer.images)) == len(place.writer.images)


def test_a_log_that_begins_late_begins_with_a_snapshot(place: Place) -> None:
    place.writer.fill(3)
    place.writer.checkpoint()
    place.writer.db.log.rotate(place.writer.db.page_size)
    insert(place)
    list_segments(place.directory.log)[0][1].unlink()
    archiver = place.archiver()
    archiver.sync()
    insert(place, 3)
    archiver.sync()
    assert check_whole(place.target(), NAME, place.writer.images) == [6, 7, 8]
    assert snapshot(newest(place), 5) == place.writer.images[4]
    assert not list((place.root / "scratch").iterdir())
