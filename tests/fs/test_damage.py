"""A database that cannot be written is still read, says why, and keeps no other from being served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fs.harness import python, serving

FILL = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("CREATE TABLE t(a)")
for i in range(5):
    db.execute("INSERT INTO t VALUES(?)", (i,))
print(db.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
if len(sys.argv) > 3:
    import os
    os.kill(os.getpid(), 9)
"""
USE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
print(db.execute("SELECT count(*) FROM t").fetchone()[0])
try:
    db.execute("INSERT INTO t VALUES(1)")
    print("inserted")
except sqlite3.OperationalError as error:
    print(error)
print(sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM t").fetchone()[0])
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_corrupt_log(tmp_path: Path, mode: str) -> None:
    """A flipped bit in the middle of the log; everything was killed, so the start wants to recover."""
    with serving(tmp_path) as fs:
        python(FILL, fs.mount / "good.db", mode)
        with pytest.raises(AssertionError):
            python(FILL, fs.mount / "bad.db", mode, "die")
        fs.process.kill()
        fs.process.wait(5)
    (segment,) = (tmp_path / "data/dbs/bad.db/log").glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(120)  # in the header of the first record
        byte = file.read(1)[0]
        file.seek(120)  # in the header of the first record
        file.write(bytes([byte ^ 1]))
    before = segment.read_bytes()
    with serving(tmp_path) as fs:
        assert any("bad.db: not recovered" in line for line in fs.mounted.reports), fs.mounted.reports
        assert python(USE, fs.mount / "bad.db").splitlines() == ["5", "disk I/O error", "5"]
        assert python(USE, fs.mount / "good.db").splitlines() == ["5", "inserted", "6"]
        fs.stop()
    assert segment.read_bytes() == before
    log = (tmp_path / "fs.log").read_text()
    assert "bad.db: served for reading only, its log cannot be written" in log
    assert segment.name in log


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_damaged_file(tmp_path: Path, mode: str) -> None:
    """Offline somebody changed the file; the log, which begins later, lacks that page."""
    with serving(tmp_path) as fs:
        python(FILL, fs.mount / "a.db", mode)
        fs.stop()
    data = tmp_path / "data/dbs/a.db"
    segments = sorted(data.glob("log/*.seg"))
    with (data / "database").open("r+b") as file:
        file.seek(4096 + 100)
        file.write(b"changed")
    with serving(tmp_path) as fs:
        damaged = any("damaged" in line for line in fs.mounted.reports)
        restored = any("restored" in line for line in fs.mounted.reports)
        assert damaged or restored, (fs.mounted.reports, segments)
        answers = python(USE, fs.mount / "a.db").splitlines()
        assert answers == (["5", "disk I/O error", "5"] if damaged else ["5", "inserted", "6"])
