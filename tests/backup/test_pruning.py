"""Nothing that may be asked for within the retention is ever deleted, wherever the deleting stops."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from litefs.backup.archive import Archive, LtxFile, Start, timelines
from litefs.backup.directory import DirectoryTarget
from litefs.backup.pruning import (
    Policy,
    Timeline,
    base_of,
    bundles_done,
    prune,
    prune_raw,
    prune_timelines,
    raw_done,
    superseded,
    unneeded,
)
from litefs.errors import ArchiveUnavailable
from litefs.types import START
from tests.support import slow_archive
from tests.support.archived import Archived
from tests.support.histories import FIRST_TIME, History

HOUR = 3600_000
ROUNDS = int(os.environ.get("LITEFS_SOAK", "12"))


class Stopping(DirectoryTarget):
    """Deletes so many objects, one by one, then fails."""

    left = 1 << 30

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            if not self.left:
                raise ArchiveUnavailable("stopped by the test")
            self.left -= 1
            super().delete([key])


def before(history: History, time: int) -> int:
    """The last TXID strictly before a moment, 0 if there is none."""
    return max((step.point.txid for step in history.steps if step.time < time), default=0)


def check_retention(root: Path, history: History, done: int, since: int, start: int) -> None:
    """Every TXID of which the state was there at ``since`` or later, through our bundles; and nothing wrong
    from Litestream's files for any moment at all."""
    first = max(before(history, since), start)
    for txid in range(max(first, 1), done + 1):
        step = history.steps[txid - 1]
        assert slow_archive.restore_with_bundles(root, txid) == step.image, f"TXID {txid} of {first}-{done}"


def check_nothing_wrong(root: Path, history: History, done: int) -> None:
    """What Litestream restores from what is left is what was there, however long ago."""
    for time in sorted({step.time for step in history.steps[:done]}):
        try:
            files = slow_archive.plan(slow_archive.scan(root), before=time)
        except slow_archive.Unrestorable:
            continue
        last = files[-1].max_txid
        if len({step.page_size for step in history.steps[max(0, files[0].max_txid - 1) : last]}) == 1:
            assert slow_archive.restore(root, before=time) == history.steps[last - 1].image
            # Raw files go one by one, as with Litestream; the others leave no gap that it would not see.
            merged = [f.max_txid for f in slow_archive.scan(root) if f.level and f.created < time]
            assert last >= max(merged, default=0)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_moment_of_the_retention_stays(tmp_path: Path, seed: int) -> None:
    rng, history = random.Random(seed), History(seed, max_pages=10)
    target = Stopping(tmp_path / "archive")
    for _ in range(5):
        history.add(12, 2000)
        if rng.random() < 0.2:
            history.resize(rng.choice([512, 1024]))
    start = rng.choice([0, 0, 4])
    made = Archived(target, "db", history, tmp_path, start)
    root = tmp_path / "archive" / "db"
    since = 0
    while made.done < len(history.steps):
        made.store(rng.choice([1, 2, 12]))
        for level in (1, 2, 3):
            if rng.random() < 0.6:
                made.compact(level)
        if rng.random() < 0.3:
            made.snapshot()
        if rng.random() < 0.6:
            policy = Policy(rng.choice([5_000, 15_000, 60_000]), rng.choice([0, 3_000]))
            target.left = rng.choice([0, 1, 2, 5, 1 << 30])
            with suppress(ArchiveUnavailable):
                prune(made.archive, policy, made.now)
            since = max(since, made.now - policy.retention)  # what is gone does not come back
            target.left = 1 << 30
            check_retention(root, history, made.done, since, start)
            check_nothing_wrong(root, history, made.done)
    made.snapshot()
    history.add(1)
    made.store(1)
    prune(made.archive, Policy(0, 0), made.now + 2)
    check_retention(root, history, made.done, made.now + 1, start)
    left = {f.level: f for f in slow_archive.scan(root)}
    assert slow_archive.restore(root) == history.steps[-1].image
    assert left[0].max_txid == made.done
    assert len(list(root.glob("litefs/log/*"))) <= 2


def file(level: int, first: int, last: int, modified: int = 0) -> LtxFile:
    return LtxFile(level, first, last, 1, modified, f"{level}:{first}-{last}")


def keys(files: list[LtxFile]) -> list[str]:
    return [f.key for f in files]


def test_the_base_is_the_newest_snapshot_of_before_the_retention() -> None:
    snapshots = [file(9, 1, 5, 100), file(9, 1, 9, 200), file(9, 1, 20, 300)]
    assert [base_of(snapshots, since) for since in (100, 101, 200, 201, 301)] == [0, 5, 5, 9, 20]
    assert base_of([], 999) == 0


def test_what_is_unneeded_goes_by_where_it_begins() -> None:
    levels = {
        9: [file(9, 1, 5), file(9, 1, 9), file(9, 1, 20)],
        3: [file(3, 1, 9)],
        1: [file(1, 1, 6), file(1, 7, 9), file(1, 9, 10)],
        0: [file(0, 7, 7), file(0, 8, 8), file(0, 9, 9)],
    }
    assert keys(unneeded(levels, 9)) == ["9:1-5", "3:1-9", "1:1-6", "1:7-9", "0:7-7", "0:8-8"]
    assert keys(unneeded(levels, 5)) == []


def test_raw_files_go_up_to_the_first_too_young_or_not_compacted() -> None:
    raw = [file(0, 1, 1, 10), file(0, 2, 2, 20), file(0, 3, 3, 15), file(0, 4, 4, 11), file(0, 5, 5, 11)]
    assert keys(raw_done(raw, 9, 20)) == ["0:1-1"]
    assert keys(raw_done(raw, 2, 99)) == ["0:1-1", "0:2-2"]
    assert keys(raw_done(raw, 9, 99)) == keys(raw[:-1])
    assert raw_done([], 9, 99) == []


def test_a_bundle_goes_when_the_next_one_begins_by_the_base() -> None:
    bundles = [(1, 0, "1-3"), (4, 0, "4-8"), (9, 0, "9-12"), (13, 0, "13-")]
    looked_at = []

    def listed() -> Iterable[tuple[int, int, str]]:
        for bundle in bundles:
            looked_at.append(bundle[0])
            yield bundle

    assert list(bundles_done(listed(), 7)) == ["1-3"]
    assert looked_at == [1, 4, 9]
    assert list(bundles_done(bundles, 8)) == ["1-3", "4-8"]
    assert list(bundles_done(bundles, 99)) == ["1-3", "4-8", "9-12"]
    assert list(bundles_done(bundles, 2)) == []


def test_raw_files_alone(tmp_path: Path) -> None:
    history = History(1)
    history.add(6)
    made = Archived(DirectoryTarget(tmp_path / "archive"), "db", history, tmp_path)
    for _ in range(6):
        made.store(1)
    policy = Policy(HOUR, l0_age=1000)
    assert prune_raw(made.archive, policy, made.now + HOUR).objects == {}
    made.compact(1, 1 << 50)
    assert prune_raw(made.archive, policy, history.steps[0].time + 1000).objects == {}
    assert prune_raw(made.archive, policy, made.now + HOUR, compacted=2).objects == {"level-0": 2}
    assert prune(made.archive, policy, made.now + HOUR).objects == {"level-0": 3}


def test_a_snapshot_that_cannot_be_read_is_no_base(tmp_path: Path) -> None:
    history = History(2)
    history.add(9)
    made = Archived(DirectoryTarget(tmp_path / "archive"), "db", history, tmp_path)
    for _ in range(3):
        made.store(3)
        made.snapshot()
    last = made.archive.files(9)[-1]
    (tmp_path / "archive" / last.key).write_bytes(b"nothing")
    pruned = prune(made.archive, Policy(0), made.now + HOUR)
    assert pruned.objects == {"level-9": 1, "level-0": 6, "bundle": 2}
    root = tmp_path / "archive" / "db"
    assert slow_archive.restore_with_bundles(root, 6) == history.steps[5].image


def test_timelines_that_nobody_needs() -> None:
    policy = Policy(retention=100, dead_age=50)

    def gone(*lines: Timeline) -> list[int]:
        return superseded(lines, policy, now=1000)

    old, new = Timeline(1, 10, 10, 899), Timeline(2, 890, 899, 1000)
    assert gone(old) == []
    assert gone(old, new) == [1]
    assert gone(Timeline(1, 10, 10, 900), new) == []
    assert gone(old, Timeline(2, 890, 900, 1000)) == []
    assert gone(old, Timeline(2, 890, None, 899)) == []
    dead = Timeline(2, 890, None, 899)
    assert gone(old, dead, Timeline(3, 890, 899, 950)) == [1, 2]
    assert gone(old, Timeline(2, 960, None, 899), Timeline(3, 990, 990, 995)) == []
    assert gone(old, Timeline(2, 890, None, 960), Timeline(3, 990, 990, 995)) == []
    assert gone(Timeline(1, 10, None, None), new) == []


def test_a_timeline_goes_but_for_its_claim(tmp_path: Path) -> None:
    history = History(3)
    history.add(8)
    target = Stopping(tmp_path / "archive")
    first = Archived(target, "db", history, tmp_path)
    first.store(8)
    first.snapshot()
    dead = Archive(target, "db~t2", "db", 2)
    assert dead.claim("node", FIRST_TIME)
    dead.write(9, 1, 3, FIRST_TIME, b"half")
    third = Archive(target, "db~t3", "db", 3)
    assert third.claim("node", FIRST_TIME + HOUR)
    policy, now = Policy(HOUR, dead_age=HOUR), FIRST_TIME + 3 * HOUR
    assert prune_timelines(timelines(target, "db"), policy, now).objects == {}
    assert third.begin(Start(START, FIRST_TIME + HOUR, "diverged", "node"))
    for path in (tmp_path / "archive" / "db" / "litefs" / "log").iterdir():
        assert path.stat().st_mtime_ns // 1_000_000 > now  # stored just now, whatever the history says
    assert prune_timelines(timelines(target, "db"), policy, now).objects == {"timeline": 2 + 1}
    later = (tmp_path / "archive").stat().st_mtime_ns // 1_000_000 + 2 * HOUR
    target.left = 4
    with pytest.raises(ArchiveUnavailable):
        prune_timelines(timelines(target, "db"), policy, later)
    assert first.archive.start() is None
    target.left = 1 << 30
    prune_timelines(timelines(target, "db"), policy, later)
    left = sorted(str(p.relative_to(target.root)) for p in target.root.rglob("*") if p.is_file())
    assert left == ["db/litefs/claim", "db~t2/litefs/claim", "db~t3/litefs/claim", "db~t3/litefs/start"]
    assert [a.number for a in timelines(target, "db")] == [1, 2, 3]
    assert prune_timelines(timelines(target, "db"), policy, later).objects == {}
