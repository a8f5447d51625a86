"""``rm`` of a database on the primary's mount."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from litefs.link.messages import Dropped, Forget, Forgotten
from litefs.store import dropped
from litefs.store.dropped import tombstone
from litefs.store.paths import DataDir
from litefs.store.segments import list_segments
from litefs.types import Position, Role
from tests.fs.harness import python, serving

MAKE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("CREATE TABLE t(a)")
db.execute("INSERT INTO t VALUES(?)", (sys.argv[3],))
db.commit()
db.close()
"""
READ = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT a FROM t').fetchall())"


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_removed_database_is_gone_and_its_name_is_free(tmp_path: Path, mode: str) -> None:
    """Also after a restart; open connections read on, as of any removed file, but change nothing."""
    hold = """
import os, sqlite3, sys
path = sys.argv[1]
db = sqlite3.connect(path, isolation_level=None)
print(db.execute("SELECT a FROM t").fetchall())
os.unlink(path)
print(sorted(os.listdir(os.path.dirname(path))))
print(db.execute("SELECT a FROM t").fetchall())
try:
    db.execute("INSERT INTO t VALUES('late')")
except sqlite3.OperationalError as error:
    print(error)
"""
    data = DataDir(tmp_path / "data")
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python(MAKE, path, mode, "old")
        lines = python(hold, path).splitlines()
        assert lines[:3] == ["[('old',)]", "['.lag']", "[('old',)]"]
        assert lines[3] in ("disk I/O error", "attempt to write a readonly database")
        fs.expect(Dropped)
        removed = tombstone(data, "a.db")
        assert removed is not None
        assert removed.txid >= 2
        fs.stop()
    assert data.names() == []
    (kept,) = (tmp_path / "data" / "lost").iterdir()
    assert [entry.name for entry in kept.iterdir()] == ["log"], "its space is free"
    with serving(tmp_path) as fs:
        assert python("import os, sys; print(os.listdir(sys.argv[1]))", fs.mount) == "['.lag']\n"
        python(MAKE, path, mode, "new")
        assert python(READ, path) == "[('new',)]\n"
        assert [first for first, _ in list_segments(data.database_dir("a.db").log)] == [1]


@pytest.mark.parametrize("step", ["tombstone", "rename"])
def test_a_kill_during_the_removal_leaves_all_or_nothing(tmp_path: Path, step: str) -> None:
    """``step``: the last one that was done."""
    data = DataDir(tmp_path / "data")
    with serving(tmp_path) as fs:
        python(MAKE, fs.mount / "a.db", "WAL", "old")
        fs.process.kill()
        fs.process.wait(5)
    with pytest.MonkeyPatch.context() as patch:
        _die_after(step, data, patch)
    with serving(tmp_path) as fs:
        if step == "tombstone":
            assert python(READ, fs.mount / "a.db") == "[('old',)]\n"
        else:
            assert data.names() == []
            python(MAKE, fs.mount / "a.db", "WAL", "new")
            assert python(READ, fs.mount / "a.db") == "[('new',)]\n"


def _die_after(step: str, data: DataDir, patch: pytest.MonkeyPatch) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(dropped.fileops, "rename" if step == "tombstone" else "unlink", die)
    if step == "tombstone":  # the tombstone itself is renamed into place
        patch.setattr(dropped.fileops, "write_file_atomic", lambda path, content: path.write_bytes(content))
    with pytest.raises(KeyboardInterrupt):
        dropped.drop(data, "a.db", Position(3, 1 << 63), keep_file=False)


def test_no_removal_without_the_right_to_commit(tmp_path: Path) -> None:
    remove = """
import errno, os, sys
try:
    os.unlink(sys.argv[1])
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    with serving(tmp_path) as fs:
        python(MAKE, fs.mount / "a.db", "WAL", "kept")
        fs.become(Role.PRIMARY, deadline_ns=1)
        assert python(remove, fs.mount / "a.db") == "EIO\n"
        fs.become(Role.REPLICA)
        assert python(remove, fs.mount / "a.db") == "EROFS\n"
        assert not (tmp_path / "data" / "dropped").exists()


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_forgotten_database_does_not_answer_from_memory(tmp_path: Path, mode: str) -> None:
    """On a replica what was open must fail: the application there does not know of the removal."""
    hold = """
import os, sqlite3, sys, time
db = sqlite3.connect("file:" + sys.argv[1] + "?mode=ro", uri=True)
print(db.execute("SELECT a FROM t").fetchall(), flush=True)
sys.stdin.readline()
try:
    print(db.execute("SELECT a FROM t").fetchall())
except sqlite3.DatabaseError as error:
    print("failed:", error)
for _ in range(500):  # the kernel is told of it by a thread
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.01)
print(os.path.exists(sys.argv[1]))
"""
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python(MAKE, path, mode, "old")
        (fs.data / "dbs" / "a.db" / "database-wal").touch()
        fs.become(Role.REPLICA)
        reader = subprocess.Popen(
            [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "[('old',)]\n"
            fs.send(Forget("a.db"))
            fs.expect(Forgotten)
            output, _ = reader.communicate("\n", timeout=10)
        finally:
            reader.kill()
            reader.wait(5)
        assert output.splitlines()[0].startswith("failed:"), output
        assert output.splitlines()[1] == "False"
