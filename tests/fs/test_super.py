"""Transactions over several attached databases in rollback modes: super-journals on a real mount."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from litefs.clock import boottime_ns
from litefs.types import Role
from tests.fs.attached import MAKE, MODES, OPEN, SUM, log_of, make, sums_in_logs, txid
from tests.fs.harness import python, serving
from tests.fs.replay import rebuilt

COMMIT = (
    OPEN
    + """
import os
paths = sys.argv[2:]
db, names = attached(paths, sys.argv[1])
for number in range(1, 4):
    db.execute("BEGIN")
    for name in names:
        db.execute("UPDATE %s.t SET v = v + ?" % name, (number,))
    db.execute("COMMIT")
db.execute("BEGIN")
for name in names:
    db.execute("DELETE FROM %s.t" % name)
db.execute("ROLLBACK")
for name in names:
    print(db.execute("SELECT sum(v), count(*) FROM %s.t" % name).fetchone())
    assert db.execute("PRAGMA %s.integrity_check" % name).fetchone()[0] == "ok"
db.close()
print([name for name in os.listdir(os.path.dirname(paths[0])) if "-mj" in name])
"""
)


@pytest.mark.parametrize(
    ("modes", "synchronous"),
    [
        (("DELETE", "DELETE"), "NORMAL"),
        (("TRUNCATE", "TRUNCATE"), "EXTRA"),
        (("PERSIST", "PERSIST"), "FULL"),
        (MODES, "FULL"),
        (("DELETE", "WAL", "PERSIST"), "EXTRA"),
        (("WAL", "TRUNCATE", "DELETE"), "NORMAL"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_every_member_has_its_record(tmp_path: Path, modes: tuple[str, ...], synchronous: str) -> None:
    """One record each per transaction, none for the rollback; the same after a kill and after a clean stop."""
    names = [f"{letter}.db" for letter, _ in zip("abc", modes, strict=False)]
    with serving(tmp_path) as fs:
        paths = make(fs, dict(zip(names, modes, strict=True)))
        before = [txid(fs, path) for path in paths]
        lines = python(COMMIT, synchronous, *paths).splitlines()
        assert lines == ["(1060, 10)"] * len(names) + ["[]"]
        assert [txid(fs, path) for path in paths] == [number + 3 for number in before]
        assert sums_in_logs(tmp_path, names) == [1060] * len(names)
        fs.process.kill()
        fs.process.wait(5)
    for _ in range(2):
        with serving(tmp_path) as fs:
            assert [python(SUM, path) for path in paths] == ["1060\n"] * len(names)
            assert [txid(fs, path) for path in paths] == [number + 3 for number in before]
            fs.stop()


def test_new_databases_in_a_directory(tmp_path: Path) -> None:
    """The first transaction of every member, and a super-journal in a directory."""
    script = (
        OPEN
        + """
import os
os.mkdir(sys.argv[1] + "/dir")
paths = [sys.argv[1] + "/dir/" + name for name in ("a.db", "b.db")]
db, names = attached(paths)
db.execute("BEGIN")
for name in names:
    db.execute("CREATE TABLE %s.t AS SELECT 7 AS v" % name)
db.execute("COMMIT")
"""
    )
    with serving(tmp_path) as fs:
        python(script, fs.mount)
        assert sums_in_logs(tmp_path, ["dir/a.db", "dir/b.db"]) == [7, 7]
        fs.process.kill()
        fs.process.wait(5)
    with serving(tmp_path) as fs:
        assert [python(SUM, fs.mount / f"dir/{name}") for name in ("a.db", "b.db")] == ["7\n"] * 2


def test_a_member_of_several_megabytes(tmp_path: Path) -> None:
    script = (
        OPEN
        + """
db, names = attached(sys.argv[1:])
db.execute("PRAGMA cache_size=20")
db.execute("BEGIN")
for name in names:
    db.execute("CREATE TABLE %s.big AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000)"
               " SELECT i, randomblob(3000) AS b FROM n" % name)
    db.execute("UPDATE %s.t SET v = v + 1" % name)
db.execute("COMMIT")
"""
    )
    with serving(tmp_path) as fs:
        paths = make(fs, {"a.db": "DELETE", "b.db": "PERSIST"})
        python(script, *paths, timeout=60)
        for name in ("a.db", "b.db"):
            db = rebuilt(log_of(tmp_path, name), tmp_path / "rebuilt.db")
            assert db.execute("SELECT count(*), sum(length(b)) FROM big").fetchone() == (3000, 9000000)
            db.close()


OUTSIDE = (
    OPEN
    + """
db, names = attached(sys.argv[1:])
db.execute("BEGIN")
for name in names:
    db.execute("UPDATE %s.t SET v = v + 1" % name)
try:
    db.execute("COMMIT")
    print("done")
except sqlite3.OperationalError as error:
    print(error.sqlite_errorname)
    if db.in_transaction:
        db.execute("ROLLBACK")
for name in names:
    print(db.execute("SELECT sum(v) FROM %s.t" % name).fetchone()[0])
"""
)


@pytest.mark.parametrize("mode", MODES)
def test_a_member_elsewhere_is_refused(tmp_path: Path, mode: str) -> None:
    """Whichever is the main database: all members roll back, and one line of the log says why."""
    with serving(tmp_path) as fs:
        inside = make(fs, {"a.db": mode, "b.db": mode})
        outside = tmp_path / "outside.db"
        python(MAKE, outside, mode)
        for paths in ((inside[0], outside), (outside, inside[0]), (*inside, outside), (outside, *inside)):
            lines = python(OUTSIDE, *paths).splitlines()
            assert lines == ["SQLITE_IOERR_WRITE"] + ["1000"] * len(paths)
        text = (tmp_path / "fs.log").read_text()
        assert (
            f"refused: a.db-journal: its transaction also changes {outside}, which is not on this mount"
            in text
        )
        assert f"its super-journal {outside}-mj" in text
        assert python(OUTSIDE, *inside).splitlines() == ["done", "1010", "1010"]


def test_the_mount_by_another_path(tmp_path: Path) -> None:
    """SQLite resolves links, but not bind mounts: what a client calls the mount is not what we call it."""
    other = tmp_path / "other"
    other.mkdir()
    with serving(tmp_path) as fs:
        make(fs, {"a.db": "DELETE", "b.db": "DELETE"})
        subprocess.run(["mount", "--bind", fs.mount, other], check=True, timeout=10)
        try:
            lines = python(OUTSIDE, other / "a.db", other / "b.db").splitlines()
        finally:
            subprocess.run(["umount", "-l", other], check=True, timeout=10)
        assert lines == ["done", "1010", "1010"]


def test_after_the_deadline_all_members_roll_back(tmp_path: Path) -> None:
    script = (
        OPEN
        + """
import time
db, names = attached(sys.argv[1:])
count, until = 0, time.monotonic() + 20
while time.monotonic() < until:
    try:
        db.execute("BEGIN")
        for name in names:
            db.execute("UPDATE %s.t SET v = v + 1 WHERE id = 1" % name)
        db.execute("COMMIT")
        count += 1
    except sqlite3.OperationalError as error:
        print(error)
        break
print(count, *(db.execute("SELECT sum(v) - 1000 FROM %s.t" % name).fetchone()[0] for name in names))
"""
    )
    with serving(tmp_path) as fs:
        paths = make(fs, {"a.db": "DELETE", "b.db": "TRUNCATE", "c.db": "PERSIST"})
        for _ in range(5):
            before = sums_in_logs(tmp_path, ["a.db"])[0] - 1000
            fs.become(Role.PRIMARY, boottime_ns() + 700_000_000)
            error, counts = python(script, *paths).splitlines()
            assert error == "disk I/O error"
            told, *found = map(int, counts.split())
            logged = [total - 1000 for total in sums_in_logs(tmp_path, ["a.db", "b.db", "c.db"])]
            assert found == logged == [logged[0]] * 3
            # after the records the outcome is unknown to the client, but the same in every member
            assert logged[0] - before - told in (0, 1)
            fs.become(Role.PRIMARY)
            assert python(OUTSIDE, *paths).splitlines()[0] == "done"
            python(OPEN + "for p in sys.argv[1:]: attached([p])[0].execute('UPDATE t SET v = v - 1')", *paths)


def test_exclusive_locking_mode(tmp_path: Path) -> None:
    """The journals stay, and are emptied, in every mode."""
    script = (
        OPEN
        + """
db, names = attached(sys.argv[1:])
db.execute("PRAGMA locking_mode=EXCLUSIVE")
for number in range(3):
    db.execute("BEGIN")
    for name in names:
        db.execute("UPDATE %s.t SET v = v + 1" % name)
    db.execute("COMMIT" if number else "ROLLBACK")
"""
    )
    with serving(tmp_path) as fs:
        paths = make(fs, dict(zip(("a.db", "b.db", "c.db"), MODES, strict=True)))
        before = [txid(fs, path) for path in paths]
        python(script, *paths)
        assert [python(SUM, path) for path in paths] == ["1020\n"] * 3
        assert [txid(fs, path) for path in paths] == [number + 2 for number in before]
        assert sums_in_logs(tmp_path, ["a.db", "b.db", "c.db"]) == [1020] * 3


NAMED = """
import errno, os, sys
os.chdir(sys.argv[1])
def attempt(action, *arguments):
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
name = "dir/a.db-mj0A1B2C9D3"
with open(name, "xb") as file:
    file.write(b"/elsewhere/a.db-journal")
print(os.listdir("dir"), os.stat(name).st_size, oct(os.stat(name).st_mode), open(name).read())
print(attempt(open, name, "x"), attempt(open, "none.db-mj0A1B2C9D3", "x"), attempt(open, "-mj0A1B2C9D3", "x"))
print(attempt(os.rename, name, "dir/b.db"), attempt(os.rename, "dir/a.db", "a.db-mj0A1B2C9D3"))
print(attempt(os.truncate, name, 0), attempt(os.rmdir, "dir"), attempt(os.mkdir, "d-mj0A1B2C9D3"))
os.unlink(name)
print(os.listdir("dir"), os.path.exists(name), attempt(os.unlink, name))
os.chdir("/")
"""


def test_names_and_attributes(tmp_path: Path) -> None:
    """A super-journal is a file as any, owned as its database, and is no database."""
    with serving(tmp_path) as fs:
        python("import os, sys; os.mkdir(sys.argv[1])", fs.mount / "dir")
        make(fs, {"dir/a.db": "DELETE"})
        python("import os, sys; os.chmod(sys.argv[1], 0o640)", fs.mount / "dir/a.db")
        lines = python(NAMED, fs.mount).splitlines()
        assert lines == [
            "['a.db', 'a.db-mj0A1B2C9D3'] 23 0o100640 /elsewhere/a.db-journal",
            "EEXIST EINVAL EINVAL",
            "EPERM EPERM",
            "EPERM ENOTEMPTY EINVAL",
            "['a.db'] False ENOENT",
        ]
        left = fs.mount / "dir/a.db-mj0A1B2C9D4"
        python("import sys; open(sys.argv[1], 'x')", left)
        fs.become(Role.REPLICA)
        refused = """
import errno, os, sys
for action in (lambda: os.unlink(sys.argv[1]), lambda: open(sys.argv[1] + "5", "x")):
    try:
        action()
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
        assert python(refused, left) == "EROFS\nEROFS\n"
        fs.stop()
    with serving(tmp_path) as fs:
        assert python("import os, sys; print(os.listdir(sys.argv[1]))", fs.mount / "dir") == "['a.db']\n"
