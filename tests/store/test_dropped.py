"""Tombstones, and how long the log of a removed database is kept."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.store import fileops, paths
from litefs.store.database import Database
from litefs.store.dropped import (
    complete_replacing,
    drop,
    reap_dropped,
    rename,
    replace,
    tombstone,
    was_removed,
)
from litefs.store.paths import DatabaseDir, DataDir
from litefs.types import CHECKSUM_FLAG, ZERO, Position

PGNO_1 = struct.pack("=I", 1)


def made(data: DataDir, name: str) -> DatabaseDir:
    directory = data.database_dir(name)
    directory.create()
    directory.log.mkdir()
    for path in (directory.database, directory.wal, directory.sums, directory.log / "1.seg"):
        path.write_bytes(b"content")
    return directory


def at(txid: int) -> Position:
    return Position(txid, CHECKSUM_FLAG | txid)


def test_a_removal_leaves_a_tombstone_and_the_log(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    made(data, "dir/a.db")
    assert tombstone(data, "dir/a.db") is None
    kept = drop(data, "dir/a.db", at(7), keep_file=False)
    assert data.names() == []
    assert tombstone(data, "dir/a.db") == at(7)
    assert tombstone(DataDir(tmp_path), "dir/a.db") == at(7)
    assert [path.name for path in kept.iterdir()] == ["log"]
    made(data, "dir/a.db")
    kept = drop(data, "dir/a.db", at(3), keep_file=True)
    assert (kept / "database").read_bytes() == b"content"
    assert tombstone(data, "dir/a.db") == at(7), "a replica that missed both removals must believe in one"


def test_what_was_removed_is_known_by_its_whole_history(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    at_each = {}
    for name in ("a.db", "a.db-x"):
        directory = data.database_dir(name)
        directory.create()
        db = Database.open(directory)
        at_each[name] = [db.commit(PGNO_1, os.urandom(512), 1, 0, page_size=512) for _ in range(3)]
        db.close()
    first, second, third = at_each["a.db"]
    assert not was_removed(data, "a.db", third)
    drop(data, "a.db", third, keep_file=True)
    assert all(was_removed(data, "a.db", position) for position in (first, second, third))
    assert not was_removed(data, "a.db", at(second.txid)), "another history"
    assert not was_removed(data, "a.db", at(4)), "it has the name now, or had it then"
    drop(data, "a.db-x", at_each["a.db-x"][-1], keep_file=True)
    assert not was_removed(data, "a.db", at_each["a.db-x"][0])


def test_a_damaged_tombstone_proves_nothing(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    made(data, "a.db")
    drop(data, "a.db", at(7), keep_file=False)
    (tmp_path / "dropped" / "a.db.pos").write_bytes(b"\xff" * 33)
    assert tombstone(data, "a.db") is None


def test_a_renaming_leaves_a_tombstone_unless_there_was_nothing(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    made(data, "a.db")
    rename(data, "a.db", at(7), "b.db")
    assert data.names() == ["b.db"]
    assert tombstone(data, "a.db") == at(7)
    rename(data, "b.db", ZERO, "c.db")
    assert data.names() == ["c.db"]
    assert tombstone(data, "b.db") is None


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt], ids=["an error", "a kill"])
def test_a_replacement_that_stops_anywhere_is_made_or_is_not(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """An error leaves both databases as they were, or the replacement as if it had been made; a kill the same
    after the next start."""
    outcomes = set()
    for step in range(1, 100):
        data = DataDir(tmp_path / str(step))
        for name in ("a.db", "b.db"):
            (made(data, name).path / "database").write_text(name)
        with pytest.MonkeyPatch.context() as patch:
            steps = _stop_at(step, error, patch)
            with contextlib.suppress(error):
                replace(data, "a.db", at(7), "b.db", at(9))
        if error is KeyboardInterrupt:
            complete_replacing(data)
        now = {name: data.database_dir(name).database.read_text() for name in data.names()}
        outcomes.add(str(now))
        assert now in ({"a.db": "a.db", "b.db": "b.db"}, {"b.db": "a.db"}), f"step {step}: {steps}"
        complete_replacing(data)
        assert not (data.path / "dropped" / "renaming").exists()
        assert {name: data.database_dir(name).database.read_text() for name in data.names()} == now
        if len(steps) < step:
            assert len(outcomes) == 2
            assert tombstone(data, "a.db") == at(7)
            assert tombstone(data, "b.db") == at(9)
            return
    raise AssertionError("it never ended")


def _stop_at(step: int, error: type[BaseException], patch: pytest.MonkeyPatch) -> list[str]:
    """Have the step-th operation on files fail, once; returns the list of operations that it fills."""
    steps: list[str] = []

    def stopping(name: str) -> Callable[..., object]:
        real = getattr(fileops, name)

        def call(*args: object) -> object:
            steps.append(name)
            if len(steps) == step:
                raise error(name)
            return real(*args)

        return call

    for name in ("make_dir", "new_dir", "rename", "sync_dir", "unlink", "write_file_atomic"):
        patch.setattr(fileops, name, stopping(name))
    return steps


def test_what_is_left_goes_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the removal: the directory itself may not have changed for long."""
    data = DataDir(tmp_path)
    for name, age in (("old", 100.0), ("young", 10.0)):
        directory = made(data, name)
        os.utime(directory.path, (0, 0))
        now = time.gmtime(time.time() - age)
        monkeypatch.setattr(paths.time, "gmtime", lambda now=now: now)
        drop(data, name, at(7), keep_file=True)
        data.lost(name, "diverged")
        monkeypatch.undo()
    (removed,) = reap_dropped(data, 50.0)
    assert removed.name.startswith("old-")
    assert len(list((tmp_path / "lost").iterdir())) == 3, "what was set aside for another reason stays"
    assert reap_dropped(data, 50.0) == []
    assert tombstone(data, "old") == at(7)
    assert reap_dropped(DataDir(tmp_path / "none"), 1.0) == []
