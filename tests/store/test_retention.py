"""What retention deletes, and what it never does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from litefs.store import log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.store.recovery import recover
from litefs.store.retention import reap
from litefs.store.segments import list_segments
from litefs.types import START
from tests.store.support import Writer


@pytest.fixture
def writer(
    directory: DatabaseDir, make_writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> Writer:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 16 << 10)
    writer = make_writer(directory)
    writer.fill(30)
    writer.checkpoint()
    old = time.time() - 1000
    for _, path in list_segments(directory.log):
        os.utime(path, (old, old))
    return writer


def firsts(directory: DatabaseDir) -> list[int]:
    return [first for first, _ in list_segments(directory.log)]


def test_age_leaves_the_last_segment(writer: Writer, directory: DatabaseDir) -> None:
    before = firsts(directory)
    assert len(before) > 4
    assert reap(directory.log, writer.db.sums, 2000, 1 << 30) == []
    removed = reap(directory.log, writer.db.sums, 500, 1 << 30)
    assert len(removed) == len(before) - 1
    assert firsts(directory) == before[-1:]
    writer.run("INSERT INTO t (v) VALUES (1)")
    with LogReader(directory.log) as reader:
        assert not reader.seek(START)
        assert reader.point_at(writer.db.point.txid) == writer.db.point
    writer.close()
    assert not recover(directory).damaged


def test_bytes(writer: Writer, directory: DatabaseDir) -> None:
    size = sum(path.stat().st_size for _, path in list_segments(directory.log))
    limit = size // 2
    reap(directory.log, writer.db.sums, 1e9, limit)
    left = [path.stat().st_size for _, path in list_segments(directory.log)]
    assert sum(left) <= limit
    assert sum(left) + (16 << 10) > limit // 2


@pytest.mark.parametrize("pin", [False, True])
def test_records_that_are_needed_stay(writer: Writer, directory: DatabaseDir, pin: bool) -> None:
    before = firsts(directory)
    needed = before[3] + 1
    if not pin:
        writer.db.sums.durable_txid = needed
    reap(directory.log, writer.db.sums, 0, 0, needed if pin else None)
    assert firsts(directory) == before[3:]
