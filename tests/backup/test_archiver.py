"""The archiver of one database: whatever fails or dies, its archive is one whole history."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from litefs.backup.archive import Archive, timelines
from litefs.backup.archiver import Archiver, Settings
from litefs.backup.directory import DirectoryTarget
from litefs.backup.target import Target
from litefs.errors import ArchiveUnavailable, NotPrimary
from litefs.store.paths import DataDir
from litefs.store.segments import list_segments
from litefs.stream.catalog import StoreSource
from tests.backup.archives import by_bundles, check_whole, snapshot
from tests.store.conftest import make_writer as make_writer
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

    def rotate(self) -> None:
        """The next record begins a segment."""
        log = self.writer.db._log
        assert log is not None
        log._expires = 0.0


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
    place.rotate()
    insert(place)
    list_segments(place.directory.log)[0][1].unlink()
    archiver = place.archiver()
    archiver.sync()
    insert(place, 3)
    archiver.sync()
    whole = len(place.writer.images)
    assert check_whole(place.target(), NAME, place.writer.images) == [whole - 2, whole - 1, whole]
    assert snapshot(newest(place), whole - 3) == place.writer.images[whole - 4]
    assert not list((place.root / "scratch").iterdir())


def history(place: Place, go_on: Callable[[], object]) -> None:
    """Single transactions, many at once, another page size, a big record, nothing; ``go_on`` after each."""
    place.writer.fill(2)
    go_on()
    insert(place, 12)
    go_on()
    place.writer.vacuum(1024)
    insert(place)
    go_on()
    place.writer.run("INSERT INTO t (v) VALUES (randomblob(3000000))")
    insert(place)
    go_on()
    go_on()


def test_whatever_step_it_dies_at_the_next_one_goes_on(
    tmp_path: Path, make_writer: Callable[..., Writer]
) -> None:
    """Before and after each change of the archive, whether by a kill or an error of the store."""
    steps = Faulty(tmp_path / "count" / "archive")
    counted = Place(tmp_path / "count", make_writer)
    history(counted, Once(counted, steps).go_on)
    assert steps.count > 20
    for at in range(steps.count):
        for after, error in ((False, Crash), (True, Crash), (True, ArchiveUnavailable)):
            root = tmp_path / f"{at}-{after}-{error.__name__}"
            place = Place(root, make_writer)
            once = Once(place, Faulty(root / "archive", at, after, error))
            history(place, once.go_on)
            assert once.died == 1
            found = check_whole(place.target(), NAME, place.writer.images)
            assert found[-1] == len(place.writer.images), root.name
            assert len(newest(place).files(9)) == 1, "the page size changed once"
            place.writer.close()
            shutil.rmtree(root)


class Once:
    """An archiver that is begun anew when it died, or goes on when only the store failed."""

    def __init__(self, place: Place, target: Faulty) -> None:
        self.place = place
        self.target = target
        self.archiver = place.archiver(target)
        self.died = 0

    def go_on(self) -> None:
        for _ in range(3):
            try:
                while not self.archiver.sync():
                    pass
                self.archiver.note_head()
                return
            except Crash:
                self.died += 1
                self.archiver = self.place.archiver(self.target)
            except ArchiveUnavailable:
                self.died += 1
        raise AssertionError("it does not go on")


def test_two_archivers_at_the_same_time(place: Place) -> None:
    """A primary that does not know yet that it is none, and the next one: one history, whoever is first."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    place.writer.fill(3)
    archivers = [place.archiver(), place.archiver()]
    for _ in range(40):
        insert(place, rng.randrange(4))
        one = rng.choice(archivers)
        one.sync()
        if rng.random() < 0.2:
            one.note_head()
    for one in archivers:
        one.sync()
    assert [archive.number for archive in timelines(place.target(), NAME)] == [1]
    assert check_whole(place.target(), NAME, place.writer.images)[-1] == len(place.writer.images)


def test_another_history_gets_a_timeline_of_its_own(place: Place, make_writer: Callable[..., Writer]) -> None:
    """What an old primary archived and the next one does not have stays where it is."""
    place.writer.fill(4)
    place.archiver().sync()
    kept = list(place.writer.images)
    other = Place(place.root / "other", make_writer)
    other.writer.fill(3)
    insert(other, 3)
    other.root = place.root
    archiver = other.archiver()
    archiver.sync()
    insert(other, 2)
    archiver.sync()
    first, second = timelines(place.target(), NAME)
    start = second.start()
    assert start is not None
    assert start.reason == "diverged"
    begun = first.start()
    assert begun is not None
    assert [image for _, image in by_bundles(first, begun)] == kept
    assert check_whole(place.target(), NAME, other.writer.images)[-1] == len(other.writer.images)


def test_who_is_not_primary_writes_nothing(place: Place) -> None:
    place.writer.fill(2)
    archiver = place.archiver()
    archiver.sync()
    before = everything(place)
    place.primary = False
    insert(place)
    for attempt in (archiver.sync, place.archiver().sync):
        with pytest.raises(NotPrimary):
            attempt()
    assert everything(place) == before
    place.primary = True
    assert archiver.sync()
    assert check_whole(place.target(), NAME, place.writer.images)[-1] == len(place.writer.images)


def everything(place: Place) -> dict[str, bytes]:
    root = place.root / "archive"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_snapshot_waits_until_its_transactions_are_archived(place: Place) -> None:
    place.writer.fill(2)
    archiver = place.archiver()
    archiver.sync()
    insert(place)
    place.writer.checkpoint()
    with archiver.copy() as scratch:
        assert not archiver.send(scratch)
        archiver.sync()
        assert archiver.send(scratch)
    assert snapshot(newest(place), len(place.writer.images)) == place.writer.images[-1]


def test_a_directory_that_is_unmounted_and_comes_back(place: Place) -> None:
    """What is written meanwhile goes to where the directory would be; the archive gets no gap by it."""
    archive, elsewhere, other = (place.root / name for name in ("archive", "elsewhere", "other"))
    place.writer.fill(2)
    archiver = place.archiver()
    archiver.sync()
    archive.rename(elsewhere)
    insert(place, 2)
    with pytest.raises(ArchiveUnavailable, match="no longer mounted"):
        archiver.sync()
    archiver.sync()
    assert check_whole(place.target(), NAME, place.writer.images)[-1] == len(place.writer.images)
    archive.rename(other)
    elsewhere.rename(archive)
    insert(place, 2)
    with pytest.raises(ArchiveUnavailable, match="no longer mounted"):
        archiver.sync()
    archiver.sync()
    assert check_whole(place.target(), NAME, place.writer.images)[-1] == len(place.writer.images)
    assert [one.number for one in timelines(place.target(), NAME)] == [1]
