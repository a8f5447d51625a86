"""Histories of one position: what tells them apart, and that every way to a log keeps it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.cluster.lease import Beat, PrimaryInfo
from litefs.cluster.standing import weigh
from litefs.errors import LogSyncFailed
from litefs.store import fileops, log
from litefs.store.database import Database
from litefs.store.reader import LogReader
from litefs.store.recovery import recover
from litefs.store.retention import reap
from litefs.store.segments import list_segments
from litefs.types import Point
from tests.store.support import new_dir, pack

PAGE = 512
PAGES = 3


def database(root: Path, name: str, node_id: int) -> Database:
    """One with three pages, of which the last two are alike."""
    db = Database.open(new_dir(root, name), node_id=node_id)
    empty = bytes(PAGE)
    db.commit(pack(1, 2, 3), b"1" * PAGE + empty + empty, PAGES, 1000)
    return db


def points(db: Database) -> list[Point]:
    """Where the records in a log lead, its base first."""
    found = []
    with LogReader(db.dir.log) as reader:
        for txid in range(reader.first_txid - 1, db.position.txid + 1):
            point = reader.point_at(txid)
            assert point is not None
            found.append(point)
    return found


@pytest.mark.parametrize("node_ids", [(1, 1), (1, 2)])
def test_the_same_change_of_another_page(tmp_path: Path, node_ids: tuple[int, int]) -> None:
    one, other = (database(tmp_path, f"{n}.db", node_id) for n, node_id in enumerate(node_ids))
    row = b"a row".ljust(PAGE, b"\0")
    one.commit(pack(2), row, PAGES, 2000)
    other.commit(pack(3), row, PAGES, 2000)
    assert one.position == other.position, "CRCs are affine"
    assert one.sums.array(1, PAGES) != other.sums.array(1, PAGES)
    assert one.point != other.point
    for own, foreign in ((one, other), (other, one)):
        with LogReader(own.dir.log) as reader:
            assert reader.seek(own.point)
            assert not reader.seek(foreign.point)
        beat = Beat(1, 9, PrimaryInfo("p", "http://p"), {"db": foreign.point})
        standing = weigh(beat, 1, {"db": own.point}, lambda name, point: True, lambda name, point: False)
        assert standing.obstacle == "db: another history than the last primary's"
    one.close()
    other.close()


def fail_a_sync(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(5, "I/O error")

    db.sync()
    db.commit(pack(1), os.urandom(PAGE), PAGES, 1500)
    with monkeypatch.context() as patch:
        patch.setattr(fileops, "fdatasync", failing)
        with pytest.raises(LogSyncFailed):
            db.log.sync()
    db.log.sync()


def rotate(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 1)


def retain(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 1)
    db.commit(pack(1), os.urandom(PAGE), PAGES, 1500)
    db.sync()
    db.sums.durable_txid = db.position.txid
    assert reap(db.dir.log, db.sums, -1, 0)


@pytest.mark.parametrize("event", [fail_a_sync, rotate, retain])
def test_what_happens_to_a_log_keeps_its_points(
    event: Callable[[Database, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point is known at the beginning of each segment, and after a restart: clean, killed, recovered."""
    db = database(tmp_path, "a.db", 1)
    known = {db.point}
    for _ in range(2):
        db.commit(pack(2), os.urandom(PAGE), PAGES, 1000)
        known.add(db.point)
    event(db, monkeypatch)
    known.add(db.point)
    for _ in range(3):
        db.commit(pack(3), os.urandom(PAGE), PAGES, 2000)
        known.add(db.point)
    assert len(list_segments(db.dir.log)) > 1
    before, tip = points(db), db.point
    assert set(before) - {Point()} <= known
    db.close()
    again = Database.open(db.dir)
    assert (again.point, points(again)) == (tip, before)
    again.close()
    db.dir.database.write_bytes(bytes(PAGES * PAGE))
    db.dir.sums.unlink()
    assert recover(db.dir).position == tip.position
    again = Database.open(db.dir)
    assert (again.point, points(again)) == (tip, before)
    again.close()
