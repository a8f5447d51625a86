"""What clients may do to the files of the mount besides SQLite's own calls, and what becomes of the mount then."""

from __future__ import annotations

import errno
import inspect
import struct
from pathlib import Path

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FUSEError

from litefs.fs.namespace import Namespace, answered
from litefs.fs.operations import Operations
from tests.fs.harness import Fs, python, serving

TRY = """
import errno, os, sqlite3, sys
os.chdir(sys.argv[1])
def attempt(action):
    try:
        return action()
    except OSError as e:
        return errno.errorcode[e.errno]
"""


def client(fs: Fs, script: str) -> list[str]:
    """The lines that a client prints whose current directory is the mount."""
    return python(TRY + script + "\nos.chdir('/')\n", fs.mount).splitlines()


def test_opening_with_truncation_truncates_or_fails(tmp_path: Path) -> None:
    """The kernel hands O_TRUNC to us and believes it was done."""
    with serving(tmp_path) as fs:
        lines = client(
            fs,
            """
db = sqlite3.connect("a.db"); db.execute("CREATE TABLE t(a)"); db.close()
open("a.db-journal", "wb").write(b"x" * 5000)
print(open("a.db-journal", "wb").close(), len(open("a.db-journal", "rb").read()))
print(sqlite3.connect("a.db").execute("SELECT name FROM sqlite_master").fetchall())
print(attempt(lambda: os.close(os.open("a.db", os.O_RDWR | os.O_TRUNC))), os.stat("a.db").st_size > 0)
""",
        )
    assert lines == ["None 0", "[('t',)]", "None False"]


def test_a_removed_database_can_be_made_anew(tmp_path: Path) -> None:
    """Its companions go with it, also in the kernel's memory."""
    with serving(tmp_path) as fs:
        lines = client(
            fs,
            """
for name in ("a.db", "a.db-wal", "a.db-journal"):
    open(name, "w").close()
os.unlink("a.db")
print(os.listdir())
for mode in ("WAL", "DELETE"):
    db = sqlite3.connect("a.db")
    print(db.execute("PRAGMA journal_mode=" + mode).fetchone()[0])
    db.execute("CREATE TABLE t%s(a)" % mode); db.close()
""",
        )
    assert lines == ["['.lag']", "wal", "delete"]


def test_odd_requests_get_an_errno(tmp_path: Path) -> None:
    with serving(tmp_path) as fs:
        lines = client(
            fs,
            """
os.open("a.db", os.O_CREAT | os.O_RDWR)
for action in (
    lambda: os.open(b"\\xff.db", os.O_CREAT | os.O_RDWR), lambda: os.mkdir(b"\\xff"), lambda: os.mkdir("y" * 255),
    lambda: os.mkdir("d-wal"), lambda: os.mkdir("a.db"), lambda: os.mkdir("a.db/x"), lambda: os.rmdir("none"),
    lambda: os.truncate(".lag", 0), lambda: os.open(".lag", os.O_RDWR), lambda: os.unlink(".lag"),
    lambda: os.symlink("a", "b"), lambda: os.link("a.db", "b"), lambda: os.chmod("a.db", 0o600),
):
    print(attempt(action))
print(sorted(os.listdir()), oct(os.stat("a.db").st_mode))
""",
        )
    assert lines[:-1] == [
        "EINVAL",
        "EINVAL",
        "EINVAL",
        "EINVAL",
        "EEXIST",
        "ENOTDIR",
        "ENOENT",
        "EPERM",
        "EACCES",
        "EPERM",
        "ENOSYS",
        "EPERM",
        "None",
    ]
    assert lines[-1] == "['.lag', 'a.db', 'a.db-pos'] 0o100600"


UNEXPECTED = [ValueError("a"), KeyError(7), struct.error("b"), TimeoutError("c"), AssertionError("d")]


@pytest.mark.parametrize("error", UNEXPECTED, ids=repr)
def test_an_unexpected_exception_is_answered(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """It must not end the request loop, and with it the mount for everybody."""

    class Broken(Namespace):
        @answered
        async def getattr(self, inode: int, ctx: object) -> EntryAttributes:
            raise error

    broken = Broken.__new__(Broken)
    broken.dead, broken._refusals = False, {}
    with pytest.raises(FUSEError) as caught:
        trio.run(broken.getattr, 1, None)
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert isinstance(error, OSError) or record.exc_info is not None


def test_every_handler_that_can_fail_answers_errors() -> None:
    """These cannot: they take numbers out of dictionaries, which may lack them."""
    harmless = {"forget", "release", "releasedir", "fsyncdir"}
    ours = vars(Operations).keys() | vars(Namespace).keys()
    handlers = {
        name for name in ours if name in vars(pyfuse3.Operations) and callable(getattr(Operations, name))
    }
    handlers = {name for name in handlers if inspect.iscoroutinefunction(getattr(Operations, name))}
    unguarded = {name for name in handlers if not hasattr(getattr(Operations, name), "__wrapped__")}
    assert "write" in handlers
    assert unguarded == harmless


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
def test_the_first_transaction_can_be_rolled_back(tmp_path: Path, mode: str) -> None:
    """By its client after pages were spilled, or by the next one after a kill: the file is empty then."""
    script = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=5")
db.execute("PRAGMA journal_mode=" + sys.argv[2])
db.execute("BEGIN")
db.execute("CREATE TABLE t(a, b)")
db.execute("INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 200) SELECT i, randomblob(1000) FROM n")
if sys.argv[3] == "kill":
    print(os.path.getsize(sys.argv[1]) > 0, flush=True)
    os.kill(os.getpid(), 9)
db.execute("ROLLBACK")
db.execute("CREATE TABLE u(a)")
print(db.execute("SELECT name FROM sqlite_master").fetchall())
"""
    with serving(tmp_path) as fs:
        assert python(script, fs.mount / "a.db", mode, "roll back") == "[('u',)]\n"
        with pytest.raises(AssertionError):
            python(script, fs.mount / "b.db", mode, "kill")
        assert python(script, fs.mount / "b.db", mode, "roll back") == "[('u',)]\n"
