"""Restoring files: the bytes of every moment, or an error that says what there is instead."""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litefs.backup.directory import DirectoryTarget
from litefs.backup.finding import Goal, find, moment_text
from litefs.backup.histories import histories
from litefs.backup.restore import SUFFIX, Check, Restored, restore
from litefs.errors import ArchiveCorrupt, ArchiveMissing, FormatError, LiteFSError, NotRestorable
from tests.support.handmade import STEP, Archived


def fill(made: Archived) -> None:
    """Merged and single files, bundles without files, snapshots, growth and shrinking."""
    made.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, pad BLOB)")
    for number in range(12):
        made.execute(f"INSERT INTO t VALUES ({number}, randomblob({500 + 3000 * (number % 3)}))")
        if number % 2:
            made.bundle(raw=number < 9)
        if number == 7:
            made.merge(1)
        if number in (3, 9):
            made.snapshot(made.txid - 1)
    made.execute("DELETE FROM t WHERE n < 8", "VACUUM")
    made.execute("INSERT INTO t VALUES (100, randomblob(90000))")
    made.bundle()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Archived]:
    archived = Archived(tmp_path / "archive", tmp_path / "work")
    fill(archived)
    yield archived
    archived.close()


def restored(made: Archived, out: Path, goal: Goal, **options: object) -> Restored:
    found = find([made.archive], goal)
    if found is None:
        raise NotRestorable("it did not exist then")
    return restore(*found, out, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_every_transaction_and_the_moments_between(tmp_path: Path, page_size: int) -> None:
    made = Archived(tmp_path / "archive", tmp_path / "work", page_size=page_size)
    fill(made)
    for txid in range(1, made.txid + 1):
        for goal in (Goal(txid=txid), Goal(time=made.time(txid) + 1), Goal(time=made.time(txid + 1))):
            if goal.time is not None and txid == made.txid and goal.time > made.time(txid) + STEP // 2:
                continue
            out = tmp_path / "out.db"
            one = restored(made, out, goal, check=Check.FULL, parallelism=3)
            assert out.read_bytes() == made.copies[txid], goal
            assert (one.txid, one.time, one.size) == (txid, made.time(txid), len(made.copies[txid]))
            assert one.proved
            assert one.checksum == made.points[txid].checksum
            out.unlink()
    newest = restored(made, tmp_path / "newest.db", Goal())
    assert newest.txid == made.txid
    made.close()


def test_a_file_that_is_there_stays(made: Archived, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    out.write_text("precious")
    with pytest.raises(FileExistsError, match="there is a file already"):
        restored(made, out, Goal())
    assert out.read_text() == "precious"
    restored(made, out, Goal(), replace=True)
    assert out.read_bytes() == made.copies[made.txid]
    for suffix in ("-wal", "-journal"):
        path = tmp_path / f"out.db{suffix}"
        path.write_text("of another database")
        with pytest.raises(FileExistsError, match="a part of the restored database"):
            restored(made, out, Goal(), replace=True)
        path.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out.db", "work"]


def test_what_a_killed_restore_left_is_taken_over(made: Archived, tmp_path: Path) -> None:
    left = tmp_path / f"out.db{SUFFIX}"
    left.write_bytes(b"x" * 10_000_000)
    with left.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LiteFSError, match="another restore writes there"):
            restored(made, tmp_path / "out.db", Goal())
    restored(made, tmp_path / "out.db", Goal())
    assert (tmp_path / "out.db").read_bytes() == made.copies[made.txid]
    assert not left.exists()


def test_moments_that_are_not_there_are_refused_by_name(made: Archived, tmp_path: Path) -> None:
    last = made.txid
    cases = [
        (Goal(txid=last + 1), f"the nearest before is TXID {last:016x} of {moment_text(made.time(last))}"),
        (Goal(time=made.time(last) + STEP), f"the nearest before is TXID {last:016x}"),
    ]
    for goal, text in cases:
        with pytest.raises(NotRestorable, match=text):
            find([made.archive], goal)
    # pruned: bundles and raw files are gone, what is left are the moments at which files end
    for path in [*(tmp_path / "archive/app.db/litefs/log").iterdir()]:
        path.unlink()
    ends = sorted({file.max_txid for level in (0, 1, 9) for file in made.archive.files(level)})
    missing = next(txid for txid in range(2, last) if txid not in ends and txid > ends[0])
    below, above = max(e for e in ends if e < missing), min(e for e in ends if e > missing)
    with pytest.raises(NotRestorable) as refused:
        find([made.archive], Goal(txid=missing))
    assert f"the nearest before is TXID {below:016x}" in str(refused.value)
    assert f"the nearest after is TXID {above:016x}" in str(refused.value)


def test_damage_is_never_restored(made: Archived, tmp_path: Path) -> None:
    """A byte of any object is changed, or the object is gone: the bytes are right, or there is an error."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    root = tmp_path / "archive"
    found = {"right": 0, "refused": 0}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        whole, stat = path.read_bytes(), path.stat()
        for damage in ("flip", "flip", "cut", "gone"):
            if damage == "flip":
                data = bytearray(whole)
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                path.write_bytes(data)
            elif damage == "cut":
                path.write_bytes(whole[: rng.randrange(len(whole))])
            else:
                path.unlink()
            for _ in range(3):
                txid = rng.randrange(1, made.txid + 1)
                out = tmp_path / "out.db"
                try:
                    restored(made, out, Goal(txid=txid))
                except (ArchiveCorrupt, NotRestorable, ArchiveMissing, FormatError):
                    found["refused"] += 1
                    assert not out.exists()
                else:
                    found["right"] += 1
                    assert out.read_bytes() == made.copies[txid], (path, damage, txid)
                    out.unlink()
            path.write_bytes(whole)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert min(found.values()) > 20, found


MANY = 1200
FEW_FILES = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from litefs.backup.finding import Goal, find
from litefs.backup.histories import histories
from litefs.backup.restore import restore
from litefs.backup.directory import DirectoryTarget
archives = histories(DirectoryTarget(Path(sys.argv[1])))["app.db"]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
archive, moment = find(archives, Goal())
assert len(moment.pieces) > 1000
restore(archive, moment, Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


def test_many_files_take_few_descriptors_and_little_memory(tmp_path: Path) -> None:
    made = Archived(tmp_path / "archive", tmp_path / "work")
    made.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, pad BLOB)")
    for number in range(MANY):
        made.execute(f"INSERT INTO t VALUES ({number}, randomblob(200))")
        made.bundle()
    out = tmp_path / "out.db"
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, tmp_path / "archive", out],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == made.copies[made.txid]
    assert int(done.stdout) < 64 << 20
    made.close()


def test_an_archive_without_checksums_is_restored_and_not_proved(made: Archived, tmp_path: Path) -> None:
    """As Litestream's own: files alone, and the target is the timeline itself."""
    made.merge(1)
    made.snapshot()
    (tmp_path / "archive/app.db/ltx").rename(tmp_path / "ltx")
    plain = tmp_path / "plain"
    plain.mkdir()
    (tmp_path / "ltx").rename(plain / "ltx")
    (archives,) = histories(DirectoryTarget(plain)).values()
    found = find(archives, Goal())
    assert found is not None
    one = restore(*found, tmp_path / "out.db", check=Check.QUICK)
    assert not one.proved
    assert (tmp_path / "out.db").read_bytes() == made.copies[made.txid]


def test_sqlite_is_asked(tmp_path: Path) -> None:
    """What was archived damaged comes out as it was, unless a check was asked for."""
    made = Archived(tmp_path / "archive", tmp_path / "work")
    made.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, pad TEXT)", "CREATE INDEX i ON t (pad)")
    made.execute("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three')")
    (root,) = made.db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'i'").fetchone()
    made.close()
    with (tmp_path / "work" / "work.db").open("r+b") as file:
        file.seek((root - 1) * 4096 + 4080)
        file.write(b"two")
    with closing(sqlite3.connect(tmp_path / "work" / "work.db")) as made.db:
        made._commit((tmp_path / "work" / "work.db").read_bytes())
    made.bundle()
    for check in (Check.NONE, Check.FULL):
        if check is Check.NONE:
            restored(made, tmp_path / "out.db", Goal(), check=check)
            continue
        with pytest.raises(ArchiveCorrupt, match="i"):
            restored(made, tmp_path / "checked.db", Goal(), check=check)
        assert not (tmp_path / "checked.db").exists()
