"""What we archive is restored by ``litestream restore``: the latest state, every file's end, and by time.

Where there is no litestream the reference reader does the same; the summary of the run says which did.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litefs.backup.directory import DirectoryTarget
from litefs.backup.pruning import Policy, prune
from tests.support import litestream, slow_archive
from tests.support.archived import Archived
from tests.support.histories import SqliteHistory, Steps

FAR = 1 << 50
TXIDS = 5
TIMES = 5


def make(tmp_path: Path, history: Steps, start: int = 0, prefix: str = "app.db") -> Archived:
    return Archived(DirectoryTarget(tmp_path / "archive"), prefix, history, tmp_path, start)


def check(
    tmp_path: Path, history: Steps, prefix: str = "app.db", first: int = 1, pruned: bool = False
) -> None:
    """Restore the latest state, some ends of files and some moments from transaction ``first`` on."""
    root, out, rng = tmp_path / "archive" / prefix, tmp_path / "restored.db", history.rng
    litestream.verify(root)
    files = slow_archive.scan(root)
    last = max(f.max_txid for f in files)
    steps = history.steps
    assert litestream.restore(root, out) == steps[last - 1].image
    ends = sorted({f.max_txid for f in files if f.max_txid >= first and (not pruned or _reached(files, f))})
    for txid in rng.sample(ends, min(TXIDS, len(ends))):
        assert litestream.restore(root, out, txid=txid) == steps[txid - 1].image
    inside = [txid for txid in range(first, last) if txid not in ends]
    if inside:
        with pytest.raises(slow_archive.Unrestorable):
            litestream.restore(root, out, txid=rng.choice(inside))
    # Litestream takes only moments between the first and the last file's.
    moments = [f.created + more for f in files for more in (0, 1) if f.max_txid > first]
    moments = [time for time in moments if time <= max(f.created for f in files)]
    for time in rng.sample(moments, min(TIMES, len(moments))):
        # It stops at a gap of raw files without a word; our own restore goes on with the bundles.
        wanted = slow_archive.plan(files, before=time)[-1].max_txid
        assert pruned or wanted == max(txid for txid in ends if steps[txid - 1].time < time)
        assert litestream.restore(root, out, before=time) == steps[wanted - 1].image


def _reached(files: list[slow_archive.File], end: slow_archive.File) -> bool:
    """Whether Litestream gets to the end of that file: of raw files the first ones go first."""
    try:
        return bool(slow_archive.plan(files, txid=end.max_txid))
    except slow_archive.Unrestorable:
        return False


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_growth_shrinking_levels_and_snapshots(tmp_path: Path, page_size: int) -> None:
    history = SqliteHistory(page_size, tmp_path / "real.db", page_size)
    made = make(tmp_path, history)
    for number in range(4):
        history.add(8, 900)
        if number == 2:
            history.shrink()
        while made.done < len(history.steps):
            made.store(history.rng.choice([1, 3, 12]))
        if number == 1:
            made.snapshot()
        if number < 3:
            for level in (1, 2)[: number + 1]:
                made.compact(level, FAR)
    assert {f.level for f in slow_archive.scan(made.root)} == {0, 1, 2, 9}
    check(tmp_path, history)


def test_after_pruning(tmp_path: Path) -> None:
    history = SqliteHistory(5, tmp_path / "real.db")
    made = make(tmp_path, history)
    for _ in range(6):
        history.add(6, 900)
        while made.done < len(history.steps):
            made.store(2)
        made.compact(1, FAR)
        made.compact(2)
        made.snapshot()
        history.add(1)
        made.store(1)
        prune(made.archive, Policy(retention=6_000, l0_age=1_000), made.now)
    snapshots = [f for f in slow_archive.scan(made.root) if f.level == 9]
    assert 1 < len(snapshots) < 6
    check(tmp_path, history, first=min(f.max_txid for f in snapshots), pruned=True)


def test_a_change_of_the_page_size(tmp_path: Path) -> None:
    history = SqliteHistory(6, tmp_path / "real.db", 4096)
    made = make(tmp_path, history)
    history.add(10, 500)
    changed = history.resize(1024)
    history.add(1)
    while made.done < len(history.steps):
        made.store(4)
        made.compact(1, FAR)
    snapshot = max(f.max_txid for f in slow_archive.scan(made.root) if f.level == 9)
    assert snapshot >= changed.point.txid
    history.add(8, 500)
    while made.done < len(history.steps):
        made.store(2)
    check(tmp_path, history, first=snapshot)
    before = changed.point.txid - 1
    root, out = made.root, tmp_path / "old.db"
    assert litestream.restore(root, out, txid=before) == history.steps[before - 1].image


def test_timelines_with_unusual_names(tmp_path: Path) -> None:
    first = SqliteHistory(7, tmp_path / "real.db")
    first.add(5, 500)
    old = make(tmp_path, first, prefix="a~20b.db")
    old.store(5)
    first.add(5, 500)
    new = make(tmp_path, first, start=4, prefix="a~20b.db~t2")
    new.store(30)
    check(tmp_path, first, prefix="a~20b.db")
    check(tmp_path, first, prefix="a~20b.db~t2", first=4)


def test_litestream_goes_on_behind_what_we_archived(tmp_path: Path) -> None:
    """A restored database is replicated into the same archive: nothing of it has to be stored again, or
    contradicts it; and we restore what Litestream added."""
    history = SqliteHistory(8, tmp_path / "real.db")
    history.add(12, 500)
    made = make(tmp_path, history)
    while made.done < len(history.steps):
        made.store(10)
    made.compact(1, FAR)
    root, copy = made.root, tmp_path / "restored.db"
    newest = max((f for f in slow_archive.scan(root) if not f.level), key=lambda f: f.max_txid)
    assert newest.min_txid == newest.max_txid
    header = slow_archive.read_ltx(newest.path.read_bytes())
    assert (header.wal_offset, header.wal_size, header.salts, header.node_id) == (32, 0, (0, 0), 0)
    if litestream.litestream_binary() is None:
        return
    copy.write_bytes(litestream.restore(root, tmp_path / "first.db"))
    with closing(sqlite3.connect(copy)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("INSERT INTO t (a) VALUES ('after')")
        db.commit()
    done = litestream.run("replicate", "-once", str(copy), f"file://{root}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = slow_archive.scan(root)
    last = max(f.max_txid for f in files)
    assert last > made.done
    after = tmp_path / "after.db"
    after.write_bytes(slow_archive.restore(root))
    again = litestream.run("restore", "-o", str(tmp_path / "b.db"), f"file://{root}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert after.read_bytes() == (tmp_path / "b.db").read_bytes()
    with closing(sqlite3.connect(after)) as db:
        assert db.execute("SELECT count(*) FROM t WHERE a = 'after'").fetchone() == (1,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    shutil.rmtree(tmp_path / f".{copy.name}-litestream", ignore_errors=True)
