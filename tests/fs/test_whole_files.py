"""Whole databases that SQLite itself writes into the mount: VACUUM INTO, the backup API, .restore."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fs.harness import python, serving
from tests.fs.test_drop import MAKE, READ

VACUUM_INTO = """
import sqlite3, sys
sqlite3.connect(sys.argv[1]).execute("VACUUM INTO ?", (sys.argv[2],))
"""
BACKUP = """
import sqlite3, sys
source, target = (sqlite3.connect(path) for path in sys.argv[1:])
source.backup(target, pages=1)
target.close()
"""
RESTORE = """
import subprocess, sys
subprocess.run(["sqlite3", sys.argv[2], ".restore " + sys.argv[1]], check=True)
"""
POSITION = "import sys; print(open(sys.argv[1] + '-pos').read()[:16])"


CASES = {
    "VACUUM INTO": (VACUUM_INTO, False),  # over another one SQLite itself refuses
    "backup": (BACKUP, False),
    "backup over another": (BACKUP, True),
    ".restore": (RESTORE, False),
    ".restore over another": (RESTORE, True),
}


@pytest.mark.parametrize(("way", "over"), CASES.values(), ids=CASES)
def test_a_database_written_by_sqlite_is_logged(tmp_path: Path, way: str, over: bool) -> None:
    """It is there after a kill, which leaves nothing but the log to be trusted."""
    with serving(tmp_path) as fs:
        target = fs.mount / "copy.db"
        plain = tmp_path / "plain.db"
        python(MAKE, plain, "DELETE", "copied")
        if over:
            python(MAKE, target, "DELETE", "old")
        python(way, plain, target)
        assert python(READ, target) == "[('copied',)]\n"
        assert int(python(POSITION, target), 16) > 0
        fs.process.kill()
        fs.process.wait(5)
    with serving(tmp_path) as fs:
        assert python(READ, target) == "[('copied',)]\n"
