"""Imports as an ordinary client: what is answered is what happened."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litefs.apply.transfer import import_file
from litefs.errors import NotPrimary


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A database, and one that it is to replace."""
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    for path, value in ((source, "new"), (target, "old")):
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t(a)")
            db.execute("INSERT INTO t VALUES(?)", (value,))
            db.commit()
    return source, target


def content(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT a FROM t").fetchall()


def test_a_target_that_may_not_be_written_is_no_fault_of_the_file(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that ceased to be primary while the file came: another node can do it."""
    source, target = files
    connect = sqlite3.connect

    def readonly(path: object, **options: object) -> sqlite3.Connection:
        if path == target:
            return connect(f"file:{os.fspath(target)}?mode=ro", uri=True)
        return connect(path, **options)  # type: ignore[call-overload, no-any-return]

    with monkeypatch.context() as patched:
        patched.setattr("litefs.apply.transfer.sqlite3.connect", readonly)
        with pytest.raises(NotPrimary):
            import_file(source, target, True)
    assert content(target) == [("old",)]
