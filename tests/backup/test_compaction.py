"""Levels: what is merged when, and that nothing is lost or merged across what must stay apart."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from litefs.backup.archive import Archive, LtxFile
from litefs.backup.compaction import boundary, chain, compact_level
from litefs.backup.directory import DirectoryTarget
from litefs.backup.merge import MAX_OPEN, merge
from litefs.errors import ArchiveCorrupt, FormatError
from litefs.ltx import decode
from tests.support import slow_archive
from tests.support.archived import Archived
from tests.support.histories import FIRST_TIME, History

FAR = 1 << 50
ROUNDS = int(os.environ.get("LITEFS_SOAK", "8"))


def file(first: int, last: int, modified: int = 0) -> LtxFile:
    return LtxFile(1, first, last, 1, modified, f"{first}-{last}")


def spans(archive: Archive, level: int) -> list[tuple[int, int]]:
    return [(f.min_txid, f.max_txid) for f in archive.files(level)]


def make(tmp_path: Path, history: History, start: int = 0) -> Archived:
    return Archived(DirectoryTarget(tmp_path / "archive"), "db", history, tmp_path, start)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_all_states_stay_restorable_whatever_is_compacted(tmp_path: Path, seed: int) -> None:
    history, rng = History(seed), random.Random(seed)
    for _ in range(4):
        history.add(20, 600)
        if rng.random() < 0.3:
            history.resize(rng.choice([512, 1024]))
    made = make(tmp_path, history, rng.choice([0, 5]))
    start = made.done
    made.run(lambda: rng.choice(["store", "store", "1", "2", "3", "snapshot"]))
    root = tmp_path / "archive" / "db"
    for step in history.steps[max(0, start - 1) :]:
        assert slow_archive.restore_with_bundles(root, step.point.txid) == step.image
    for level in (1, 2, 3):
        at = start
        for first, last in spans(made.archive, level):
            assert first == at + 1
            at = last
            sizes = {step.page_size for step in history.steps[first - 1 : last]}
            assert len(sizes) == 1
    snapshots = {0, *(f.max_txid for f in made.archive.files(9))}
    for txid in {f.max_txid for f in slow_archive.scan(root)}:
        base = max(n for n in snapshots if n <= txid)
        # Litestream goes over no change of the page size, only on from the snapshot behind it.
        if len({step.page_size for step in history.steps[max(0, base - 1) : txid]}) == 1:
            assert slow_archive.restore(root, txid=txid) == history.steps[txid - 1].image


def test_one_file_of_what_came_before_the_boundary(tmp_path: Path) -> None:
    history = History(1)
    history.add(30, 0)
    for number, step in enumerate(history.steps):
        step.time = FIRST_TIME + 100 * number
    made = make(tmp_path, history)
    for _ in range(30):
        made.store(1)
    assert compact_level(made.archive, 1, FIRST_TIME, tmp_path) == []
    (one,) = compact_level(made.archive, 1, FIRST_TIME + 1000, tmp_path)
    assert (one.min_txid, one.max_txid, one.modified) == (1, 10, FIRST_TIME + 900)
    assert made.archive.files(1) == [one]
    (two,) = compact_level(made.archive, 1, FIRST_TIME + 2000, tmp_path, after=10)
    assert (two.min_txid, two.max_txid) == (11, 20)
    assert compact_level(made.archive, 1, FIRST_TIME + 2000, tmp_path) == []
    (both,) = compact_level(made.archive, 2, FAR, tmp_path)
    assert (both.min_txid, both.max_txid, both.level, both.modified) == (1, 20, 2, two.modified)
    (skipping,) = compact_level(made.archive, 4, FAR, tmp_path, source=2)
    assert made.archive.open(skipping).read(1 << 20) == made.archive.open(both).read(1 << 20)


def test_boundaries_are_those_of_go() -> None:
    # time.UnixMilli(1700000000123).UTC().Truncate(d).UnixMilli()
    now = 1_700_000_000_123
    assert boundary(now, 30_000) == 1_699_999_980_000
    assert boundary(now, 3_600_000) == 1_699_999_200_000
    assert boundary(now, 86_400_000) == 1_699_920_000_000
    week = boundary(now, 7 * 86_400_000)
    assert week == 1_699_833_600_000  # a Monday: year 1 began with one, 1970 with a Thursday
    assert boundary(week, 7 * 86_400_000) == week


def test_a_gap_is_never_merged_over(tmp_path: Path) -> None:
    history = History(2)
    history.add(12)
    made = make(tmp_path, history)
    for _ in range(6):
        made.store(1)
    lost = made.archive.files(0)[3]
    made.archive.target.delete([lost.key])
    (one,) = compact_level(made.archive, 1, FAR, tmp_path)
    assert (one.min_txid, one.max_txid) == (1, 3)
    with pytest.raises(
        ArchiveCorrupt, match="level 0 lacks transactions 0000000000000004 to 0000000000000004"
    ):
        compact_level(made.archive, 1, FAR, tmp_path)
    assert spans(made.archive, 1) == [(1, 3)]
    made.snapshot()
    (two,) = compact_level(made.archive, 1, FAR, tmp_path)
    assert (two.min_txid, two.max_txid) == (5, 6)
    root = tmp_path / "archive" / "db"
    assert slow_archive.restore(root) == history.steps[5].image


def test_files_of_two_archivers_may_overlap(tmp_path: Path) -> None:
    history = History(3)
    history.add(12)
    made, other = make(tmp_path, history), tmp_path / "elsewhere"
    again = Archived(DirectoryTarget(other), "db", history, tmp_path)
    for each, cuts in ((made, (4, 4, 4)), (again, (6, 2, 4))):
        for cut in cuts:
            for _ in range(cut):
                each.store(1)
            each.compact(1, FAR)
    for found in again.archive.files(1):
        made.archive.write(
            1, found.min_txid, found.max_txid, found.modified, (other / found.key).read_bytes()
        )
    assert spans(made.archive, 1) == [(1, 4), (1, 6), (5, 8), (7, 8), (9, 12)]
    (one,) = compact_level(made.archive, 2, FAR, tmp_path)
    assert (one.min_txid, one.max_txid) == (1, 12)
    compact_level(made.archive, 3, FAR, tmp_path, source=1, after=6)
    assert spans(made.archive, 3) == [(7, 12)]
    assert slow_archive.restore(tmp_path / "archive" / "db") == history.steps[-1].image


def test_the_fewest_files_that_follow_each_other() -> None:
    files = [file(1, 4), file(1, 6), file(5, 8), file(7, 8), file(10, 12)]
    assert [f.key for f in chain(files, 0)] == ["1-6", "5-8"]
    assert [f.key for f in chain(files, 9)] == ["10-12"]
    assert chain(files, 8) == []
    assert chain([], 0) == []


def test_damage_stores_nothing(tmp_path: Path) -> None:
    history = History(4)
    history.add(3)
    made = make(tmp_path, history)
    for _ in range(3):
        made.store(1)
    path = tmp_path / "archive" / made.archive.files(0)[1].key
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError):
        compact_level(made.archive, 1, FAR, tmp_path)
    level = tmp_path / "archive" / "db" / "ltx" / "1"
    assert not level.exists() or os.listdir(level) == []
    assert not list(tmp_path.glob("merge-*"))


def test_the_number_of_open_files_is_bounded(tmp_path: Path) -> None:
    history = History(5, max_pages=6)
    steps = history.add(MAX_OPEN * 40)
    is_open = most = 0

    class Counted:
        def __init__(self, data: bytes) -> None:
            nonlocal is_open, most
            self._data, self._at = data, 0
            is_open += 1
            most = max(most, is_open + len(list(Path("/proc/self/fd").iterdir())) - before)

        def read(self, n: int) -> bytes:
            piece = self._data[self._at : self._at + n]
            self._at += len(piece)
            return piece

        def close(self) -> None:
            nonlocal is_open
            is_open -= 1

    before = len(list(Path("/proc/self/fd").iterdir()))
    out = b"".join(merge([lambda d=step.record: Counted(d) for step in steps], tmp_path, 5))
    assert decode(out).header.timestamp == 5
    assert bytes(decode(out).images) == steps[-1].image
    assert is_open == 0
    assert most <= MAX_OPEN + 16  # what looks at descriptors has some too
    assert not list(tmp_path.iterdir())
