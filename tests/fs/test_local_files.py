"""Files on the mount that are no database, for good or until they are renamed."""

from __future__ import annotations

from pathlib import Path

from litefs.store.paths import DataDir
from tests.fs.harness import python, serving
from tests.fs.test_drop import MAKE, READ

LOCAL = """
import os, sys
os.chdir(sys.argv[1])
def content(name):
    with open(name) as file:
        return file.read()
with open("README.txt", "w") as file:
    file.write("one\\n")
with open("README.txt", "a") as file:
    file.write("two\\n")
print(repr(content("README.txt")))
os.truncate("README.txt", 4)
os.rename("README.txt", "NOTES")
with open("big.bin", "wb") as file:
    file.write(bytes(range(256)) * 10000)
with open("gone", "w") as file:
    file.write("x")
os.unlink("gone")
with open("empty", "w") as file:
    pass
print(repr(content("NOTES")))
os.chdir("/")
"""


def test_files_that_are_no_database_stay_on_their_node(tmp_path: Path) -> None:
    """They can be written, cut, renamed and removed, survive restarts, and have no history."""
    with serving(tmp_path) as fs:
        assert python(LOCAL, fs.mount).splitlines() == ["'one\\ntwo\\n'", "'one\\n'"]
        fs.process.kill()
        fs.process.wait(5)
    for _ in range(2):
        with serving(tmp_path) as fs:
            show = """
import os, sys
os.chdir(sys.argv[1])
print(sorted(name for name in os.listdir() if "-" not in name))
print(repr(open("NOTES").read()), open("NOTES-pos").read())
os.chdir("/")
"""
            lines = python(show, fs.mount).splitlines()
            assert lines[:2] == ["['.lag', 'NOTES', 'big.bin', 'empty']", f"'one\\n' {0:016x}/{0:016x}"]
            append = "import sys; open(sys.argv[1] + '/big.bin', 'ab').write(b'more')"
            python(append, fs.mount)
            fs.stop()


def test_rsync_replaces_a_database(tmp_path: Path) -> None:
    """It writes a file of another name in pieces, and renames it over the database."""
    replace = """
import os, sys
source, target = sys.argv[1:]
temporary = os.path.join(os.path.dirname(target), ".b.db.Xy12")
with open(source, "rb") as reader, open(temporary, "wb") as writer:
    while piece := reader.read(3000):
        writer.write(piece)
        writer.flush()
os.rename(temporary, target)
"""
    with serving(tmp_path) as fs:
        target = fs.mount / "b.db"
        python(MAKE, target, "WAL", "old")
        for text in ("new", "newer"):
            plain = tmp_path / f"{text}.db"
            python(MAKE, plain, "DELETE", text)
            python(replace, plain, target)
            assert python(READ, target) == f"[('{text}',)]\n"
            assert int(python("import sys; print(open(sys.argv[1] + '-pos').read())", target)[:16], 16) > 0
        fs.process.kill()
        fs.process.wait(5)
    with serving(tmp_path) as fs:
        assert python(READ, fs.mount / "b.db") == "[('newer',)]\n"


def test_a_directory_is_listed_when_it_is_read(tmp_path: Path) -> None:
    """Not when it is opened, as SQLite does to sync it, once for each commit with a journal."""
    script = """
import os, sys
directory = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
for name in ("one", "two"):
    with open(os.path.join(sys.argv[1], name), "w") as file:
        file.write("text")
    print(sorted(entry for entry in os.listdir(directory) if entry in ("one", "two")))
"""
    with serving(tmp_path) as fs:
        assert python(script, fs.mount).splitlines() == ["['one']", "['one', 'two']"]


def test_a_directory_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    """As ``rm -r`` and tempfile.TemporaryDirectory do it: each listed name is there to be removed."""
    script = """
import os, sqlite3, sys, tempfile
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as directory:
    os.mkdir(os.path.join(directory, "sub"))
    for name, mode in (("a.db", "WAL"), ("b.db", "DELETE"), ("sub/c.db", "PERSIST")):
        db = sqlite3.connect(os.path.join(directory, name))
        db.execute("PRAGMA journal_mode=" + mode)
        db.execute("CREATE TABLE t(a)")
        db.close()
    with open(os.path.join(directory, "note"), "w") as file:
        file.write("text")
    assert os.path.exists(os.path.join(directory, "a.db-pos"))
print(os.listdir(sys.argv[1]))
"""
    with serving(tmp_path) as fs:
        assert python(script, fs.mount) == "['.lag']\n"
        assert DataDir(fs.data).names() == []
