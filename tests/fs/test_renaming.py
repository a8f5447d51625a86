"""``mv`` of databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from litefs.store import fileops
from litefs.store.dropped import replace, tombstone
from litefs.store.paths import DataDir
from litefs.types import Position, Role
from tests.fs.harness import python, serving
from tests.fs.test_drop import MAKE, READ

EMPTY = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute('DELETE FROM t')"
RENAME = """
import errno, os, sys
try:
    os.rename(sys.argv[1], sys.argv[2])
    print(sorted(name for name in os.listdir(os.path.dirname(sys.argv[1])) if name[0] != "."))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "PERSIST"])
@pytest.mark.parametrize("over", [False, True], ids=["free name", "taken name"])
def test_a_database_takes_another_name(tmp_path: Path, mode: str, over: bool) -> None:
    data = DataDir(tmp_path / "data")
    with serving(tmp_path) as fs:
        a, b = fs.mount / "a.db", fs.mount / "b.db"
        python(MAKE, a, mode, "of a")
        if over:
            python(MAKE, b, mode, "of b")
        assert python(RENAME, a, b) == "['b.db', 'b.db-pos']\n"
        assert python(READ, b) == "[('of a',)]\n"
        python(EMPTY, b)
        python(MAKE, a, mode, "another a")
        assert python(READ, a) == "[('another a',)]\n"
        assert tombstone(data, "a.db") is not None
        fs.process.kill()
        fs.process.wait(5)
    with serving(tmp_path) as fs:
        assert python(READ, fs.mount / "a.db") == "[('another a',)]\n"
        assert python(READ, fs.mount / "b.db") == "[]\n"


def test_what_cannot_be_renamed(tmp_path: Path) -> None:
    hold = """
import errno, os, sqlite3, sys
os.chdir(sys.argv[1])
db = sqlite3.connect("a.db", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL"); db.execute("CREATE TABLE t(a)")
os.mkdir("dir")
for old, new in (
    ("a.db", "b.db"), ("a.db-wal", "b.db-wal"), ("a.db", "a.db-wal"), ("a.db", "dir"), ("dir", "other"),
    ("none", "b.db"), ("a.db", ".lag"), ("a.db", "c.db-journal"),
):
    try:
        os.rename(old, new)
        print("done", old, new)
    except OSError as error:
        print(errno.errorcode[error.errno])
print(db.execute("SELECT * FROM t").fetchall())
os.chdir("/")
"""
    with serving(tmp_path) as fs:
        lines = python(hold, fs.mount).splitlines()
        assert lines[0] == "EBUSY"
        assert lines[-1] == "[]"
        assert not any("done" in line for line in lines), lines
        fs.become(Role.REPLICA)
        assert python(RENAME, fs.mount / "a.db", fs.mount / "b.db") == "EROFS\n"


def test_a_database_in_use_is_not_renamed_and_holds_up_nobody(tmp_path: Path) -> None:
    """The kernel locks the directory as long as a renaming waits: SQLite could make no journal in it."""
    script = """
import errno, os, sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
print(db.execute("SELECT a FROM t").fetchall())
begin = time.monotonic()
for _ in range(10):
    try:
        os.rename(sys.argv[1], sys.argv[2])
    except OSError as error:
        assert error.errno == errno.EBUSY, error
assert time.monotonic() - begin < 10
db.execute("INSERT INTO t VALUES('on')")
db.close()
os.rename(sys.argv[1], sys.argv[2])
"""
    with serving(tmp_path) as fs:
        python(MAKE, fs.mount / "a.db", "DELETE", "goes")
        python(script, fs.mount / "a.db", fs.mount / "b.db")
        assert python(READ, fs.mount / "b.db") == "[('goes',), ('on',)]\n"


def test_a_kill_between_the_two_renames_of_a_replacement(tmp_path: Path) -> None:
    """The next start makes the second: nobody who asks for the name finds neither database."""
    data = DataDir(tmp_path / "data")
    with serving(tmp_path) as fs:
        python(MAKE, fs.mount / "a.db", "WAL", "of a")
        python(MAKE, fs.mount / "b.db", "WAL", "of b")
        fs.process.kill()
        fs.process.wait(5)
    real = fileops.rename

    def die(source: Path, target: Path) -> None:
        if target == data.database_dir("b.db").path:
            raise KeyboardInterrupt
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fileops, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            replace(data, "a.db", Position(2, 1 << 63), "b.db", Position(2, 1 << 63))
    assert data.names() == ["a.db"]
    with serving(tmp_path) as fs:
        assert data.names() == ["b.db"]
        assert python(READ, fs.mount / "b.db") == "[('of a',)]\n"
