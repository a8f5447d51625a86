"""Files that follow an archive while others read them."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from litefs.backup import following
from litefs.backup.following import Follower
from litefs.errors import ArchiveCorrupt, LiteFSError
from litefs.store import fileops
from tests.support.handmade import Archived

OWN = (slice(18, 20), slice(24, 32), slice(92, 96))


def shows(out: Path, expected: bytes) -> bool:
    found, wanted = bytearray(out.read_bytes()), bytearray(expected)
    for part in OWN:
        found[part] = wanted[part] = bytes(part.stop - part.start)
    return found == wanted


def follower(made: Archived, out: Path) -> Follower:
    return Follower(out, lambda: [made.archive])


@pytest.mark.parametrize("page_size", [512, 4096])
def test_it_shows_what_the_archive_has(tmp_path: Path, page_size: int) -> None:
    made = Archived(tmp_path / "archive", tmp_path / "work", page_size=page_size, wal=True)
    made.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    made.bundle()
    out = tmp_path / "out.db"
    one = follower(made, out)
    one.begin()
    with closing(sqlite3.connect(f"file:{out}?mode=ro", uri=True)) as reader:
        for number in range(12):
            made.execute(f"INSERT INTO t VALUES ({number}, randomblob({number * 2000}))")
            if number == 8:
                made.execute("DELETE FROM t WHERE n < 8", "VACUUM")
            if number % 3 == 0:
                continue
            made.bundle(raw=number < 8)
            if number == 7:
                made.merge(1)
            assert one.step()
            assert not one.step()
            assert shows(out, made.copies[made.txid])
            want = made.db.execute("SELECT count(*), sum(n), sum(length(pad)) FROM t").fetchone()
            assert reader.execute("SELECT count(*), sum(n), sum(length(pad)) FROM t").fetchone() == want
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    one.close()
    made.execute("INSERT INTO t VALUES (100, NULL)")
    made.bundle()
    with closing(follower(made, out)) as again:
        assert again.begin().txid == made.txid
        assert shows(out, made.copies[made.txid])
        with pytest.raises(LiteFSError, match="another process follows"):
            follower(made, out).begin()
    made.close()


def test_the_page_size_changes(tmp_path: Path) -> None:
    made = Archived(tmp_path / "archive", tmp_path / "work")
    made.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    made.bundle()
    with closing(follower(made, tmp_path / "out.db")) as one:
        one.begin()
        made.execute("PRAGMA page_size = 1024", "VACUUM")
        made.bundle(raw=False)
        made.snapshot()
        made.execute("INSERT INTO t VALUES (1, NULL)")
        made.bundle()
        assert one.step()
        assert shows(tmp_path / "out.db", made.copies[made.txid])
    made.close()


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("operation", ["pwrite_all", "fsync", "unlink", "write_file_atomic", "truncate"])
def test_a_follower_that_is_killed_leaves_one_of_both_states(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every write, sync and removal of a step; readers see the old state or the new one."""
    made = Archived(tmp_path / "archive", tmp_path / "work")
    made.execute("CREATE TABLE t (n INTEGER, pad BLOB)", "INSERT INTO t VALUES (0, randomblob(20000))")
    made.bundle()
    real, deaths = getattr(fileops, operation), 0
    for at in range(100):
        out = tmp_path / f"out{at}.db"
        with closing(follower(made, out)) as one:
            before = one.begin().txid
            made.execute(f"INSERT INTO t VALUES ({at}, randomblob(9000))", "UPDATE t SET n = n + 1")
            made.bundle()
            calls = 0

            def counted(*of: object, at: int = at) -> object:
                nonlocal calls
                calls += 1
                if calls > at:
                    raise Killed
                return real(*of)

            with monkeypatch.context() as patch:
                patch.setattr(fileops, operation, counted)
                patch.setattr(following.Follower, "_roll_back", lambda self: None)
                try:
                    one.step()
                except Killed:
                    deaths += 1
                else:
                    break
        with closing(sqlite3.connect(out)) as reader:
            (seen,) = reader.execute("SELECT max(n) FROM t").fetchone()
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert shows(out, made.copies[before]) or shows(out, made.copies[made.txid]), seen
        with closing(follower(made, out)) as again:
            assert again.begin().txid == made.txid
            assert shows(out, made.copies[made.txid])
    assert deaths
    made.close()


def test_damage_is_not_shown(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    made = Archived(tmp_path / "archive", tmp_path / "work")
    made.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    made.bundle()
    out = tmp_path / "out.db"
    with closing(follower(made, out)) as one:
        one.begin()
        before = made.txid
        made.execute("INSERT INTO t VALUES (1, zeroblob(50000))")
        made.bundle()
        path = tmp_path / "archive" / made.archive.files(0)[-1].key
        data = bytearray(path.read_bytes())
        data[random.Random(seed).randrange(200, 400)] ^= 1
        path.write_bytes(data)
        with pytest.raises(ArchiveCorrupt):
            one.step()
        assert shows(out, made.copies[before])
    made.close()


READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT * FROM t").fetchall()
print("reading", flush=True)
sys.stdin.read()
"""
"""In a process of its own: POSIX locks are of the process."""


def test_readers_keep_what_they_are_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Archived(tmp_path / "archive", tmp_path / "work")
    made.execute("CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (1), (2)")
    made.bundle()
    out = tmp_path / "out.db"
    monkeypatch.setattr(following, "LOCK_SECONDS", 0.3)
    with closing(follower(made, out)) as one:
        one.begin()
        made.execute("DELETE FROM t")
        made.bundle()
        failed: list[BaseException] = []

        def step() -> None:
            try:
                one.step()
            except TimeoutError as error:
                failed.append(error)

        other = subprocess.Popen(
            [sys.executable, "-c", READER, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "reading\n"
            thread = threading.Thread(target=step)
            thread.start()
            thread.join(10)
            assert failed
        finally:
            other.communicate(timeout=10)
        assert one.step()
        assert shows(out, made.copies[made.txid])
    made.close()
