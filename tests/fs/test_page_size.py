"""A change of page size by clients of the mount: in every journal mode, by copies, and around kills."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from litefs.clock import boottime_ns
from litefs.types import Role
from tests.fs.harness import Fs, python, serving, wait_for
from tests.fs.replay import replay
from tests.fs.test_raw import COPY, ROWS, agree, log_of, logged, sample, txid

SIZES = (512, 1024, 4096, 65536)
WORKLOAD = """
import random, sqlite3, sys
path, mode, sync, seed, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
rng = random.Random(seed)
db = sqlite3.connect(path, isolation_level=None, timeout=20)
other = sqlite3.connect(path, isolation_level=None, timeout=20)
db.execute("PRAGMA cache_size=10")
db.execute(f"PRAGMA synchronous={sync}")
db.execute(f"PRAGMA journal_mode={mode}")
db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b BLOB)")
for _ in range(count):
    other.execute("SELECT count(*) FROM t").fetchall()
    if mode == "WAL":
        other.close()
        assert db.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete"
        other = sqlite3.connect(path, isolation_level=None, timeout=20)
        other.execute("SELECT count(*) FROM t").fetchall()
    size = rng.choice((512, 1024, 4096, 65536))
    db.execute(f"PRAGMA page_size={size}")
    db.execute("VACUUM")
    if mode == "WAL":
        db.execute("PRAGMA journal_mode=WAL")
    assert db.execute("PRAGMA page_size").fetchone()[0] == size
    assert other.execute("SELECT count(*), sum(a) FROM t").fetchall() == db.execute(
        "SELECT count(*), sum(a) FROM t").fetchall()
    for client in (other, db):
        if mode in ("MEMORY", "OFF", "TRUNCATE", "PERSIST"):
            client.execute(f"PRAGMA journal_mode={mode}")
        row = (rng.random(), rng.randbytes(rng.randrange(9000)))
        client.execute("INSERT INTO t(a, b) VALUES (?, ?)", row)
        client.execute("DELETE FROM t WHERE id % 9 = ?", (rng.randrange(9),))
        client.execute("BEGIN")
        client.execute("UPDATE t SET b = randomblob(3000)")
        client.execute("ROLLBACK" if mode != "OFF" else "COMMIT")
    print(size, flush=True)
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
"""


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"])
def test_vacuum_to_another_page_size(tmp_path: Path, mode: str) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    with serving(tmp_path) as fs:
        for number, sync in enumerate(("OFF", "NORMAL", "FULL")):
            size = int(python(WORKLOAD, fs.mount / "a.db", mode, sync, seed + number, 5).split()[-1])
            seen = agree(fs, tmp_path)
            assert replay(log_of(fs))[2] == size
        fs.stop()
    with serving(tmp_path) as fs:
        assert fs.mounted.reports == []
        assert python(ROWS, fs.mount / "a.db") == seen
        python(WORKLOAD, fs.mount / "a.db", mode, "NORMAL", seed, 2)
        agree(fs, tmp_path)


@pytest.mark.parametrize("mode", ["DELETE", "PERSIST", "MEMORY", "WAL"])
def test_kills_around_it(tmp_path: Path, mode: str) -> None:
    """The fs process dies at any moment; what its log says is what the next one serves."""
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(6):
        with serving(tmp_path) as fs:
            if log_of(fs).exists():
                assert agree(fs, tmp_path) == python(ROWS, fs.mount / "a.db")
            arguments = (fs.mount / "a.db", mode, rng.choice(["OFF", "FULL"]), rng.randrange(1 << 30), 100)
            command = [sys.executable, "-c", WORKLOAD, *map(str, arguments)]
            client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            try:
                assert client.stdout is not None
                client.stdout.readline()
                time.sleep(rng.random() * 0.3)
                if mode != "MEMORY" and rng.random() < 0.5:  # nobody rolls back what that one leaves
                    client.kill()
                    client.wait(5)
                    python(ROWS, fs.mount / "a.db")  # who comes next rolls back
                    agree(fs, tmp_path)
                fs.process.kill()
                fs.process.wait(5)
            finally:
                client.kill()
                client.communicate(timeout=10)
    assert "damaged" not in (tmp_path / "fs.log").read_text()


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "MEMORY"])
def test_a_refused_change_leaves_the_page_size(tmp_path: Path, mode: str) -> None:
    rows = sample(tmp_path / "first.db", "DELETE", 30)
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("PRAGMA page_size=8192")
try:
    db.execute("VACUUM")
except sqlite3.OperationalError as error:
    print(error)
print(db.execute("PRAGMA page_size").fetchone()[0], db.execute("PRAGMA integrity_check").fetchone()[0])
"""
    with serving(tmp_path) as fs:
        python(COPY, tmp_path / "first.db", fs.mount / "a.db")
        before = txid(fs)
        fs.become(Role.PRIMARY, boottime_ns() - 1)
        assert python(script, fs.mount / "a.db", mode).splitlines()[0] == "disk I/O error"
        fs.become(Role.PRIMARY)
        assert agree(fs, tmp_path) == rows
        assert (txid(fs), replay(log_of(fs))[2]) == (before, 1024)
        assert python(script, fs.mount / "a.db", mode).splitlines() == ["8192 ok"]
        assert agree(fs, tmp_path) == rows
        assert (txid(fs), replay(log_of(fs))[2]) == (before + 1, 8192)


def sampled(fs: Fs, path: Path, rows: int, page_size: int) -> str:
    """A database outside the mount, with that page size; its rows."""
    sample(path, "DELETE", rows, seed=page_size)
    python(
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
        "db.execute('PRAGMA page_size=' + sys.argv[2]); db.execute('VACUUM')",
        path,
        page_size,
    )
    return python(ROWS, path)


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_over_a_database_of_another_page_size(tmp_path: Path, size: int) -> None:
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        for number, page_size in enumerate((size, *(other for other in SIZES if other != size)), 1):
            rows = sampled(fs, tmp_path / f"{page_size}.db", 50 * number, page_size)
            python(COPY, tmp_path / f"{page_size}.db", path)
            assert txid(fs) == number
            assert logged(fs, tmp_path) == python(ROWS, path) == rows
            assert replay(log_of(fs))[2] == page_size
        fs.stop()


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"])
def test_the_backup_api_over_a_database_of_another_page_size(tmp_path: Path, mode: str) -> None:
    script = """
import sqlite3, sys
source, target = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2], isolation_level=None)
target.execute("PRAGMA journal_mode=" + sys.argv[3])
source.backup(target)
"""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        sample(tmp_path / "first.db", "DELETE", 40)
        python(COPY, tmp_path / "first.db", path)
        for page_size in (65536, 512, 4096, 1024):
            rows = sampled(fs, tmp_path / f"{page_size}.db", 60, page_size)
            python(script, tmp_path / f"{page_size}.db", path, mode)
            assert agree(fs, tmp_path) == rows
            assert replay(log_of(fs))[2] == page_size


def test_two_changes_before_either_is_logged(tmp_path: Path) -> None:
    """With synchronous=OFF nothing tells of a commit without a journal; here a journal's comes first."""
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA synchronous=OFF")
for mode, size in (("MEMORY", 4096), ("DELETE", int(sys.argv[2])), ("OFF", 512), ("DELETE", 1024)):
    db.execute("PRAGMA journal_mode=" + mode)
    db.execute(f"PRAGMA page_size={size}")
    db.execute("VACUUM")
    db.execute("UPDATE t SET a = a + 1 WHERE id % 2")
"""
    for size in SIZES:
        (tmp_path / str(size)).mkdir()
        with serving(tmp_path / str(size)) as fs:
            sample(tmp_path / f"{size}.db", "DELETE", 40)
            python(COPY, tmp_path / f"{size}.db", fs.mount / "a.db")
            python(script, fs.mount / "a.db", size)
            agree(fs, tmp_path)
            assert replay(log_of(fs))[2] == 1024


def test_a_wal_of_another_page_size_is_no_commit(tmp_path: Path) -> None:
    """SQLite writes none; one that somebody puts there is refused and named."""
    script = """
import os, sqlite3, struct, sys
from litefs._core.walcursor import build_frames
from litefs.sqlite.wal import WalHeader
wal = WalHeader(4096, 1, 2)
frames, _, _ = build_frames(struct.pack("=I", 1), bytes(4096), 4096, 1, 2, *wal.checksum, 1, bool(wal.big_endian))
fd = os.open(sys.argv[1] + "-wal", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, wal.pack(), 0)
done = 0
try:
    while done < len(frames):
        done += os.pwrite(fd, frames[done:], 32 + done)
except OSError as error:
    print(error.strerror)
"""
    with serving(tmp_path) as fs:
        rows = sample(tmp_path / "first.db", "DELETE", 5)
        python(COPY, tmp_path / "first.db", fs.mount / "a.db")
        assert python(script, fs.mount / "a.db") == "Input/output error\n"
        wait_for(lambda: "page size changes from 1024" in (tmp_path / "fs.log").read_text(), 5, "a log line")
        assert logged(fs, tmp_path) == rows
