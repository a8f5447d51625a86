"""The end of a log that one node copies and another appends."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.errors import FormatError, LiteFSError, PositionMismatch
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import STREAM_BYTES, LogReader
from litefs.store.recovery import recover
from litefs.store.segments import segment_path
from litefs.store.tails import append_tail, check_tail, copy_tail
from litefs.types import Position
from tests.store.support import Writer, check_integrity, new_dir

MakeWriter = Callable[..., Writer]


def copied(writer: Writer, after: Position, tmp_path: Path) -> Path:
    path = segment_path(tmp_path / "tail", after.txid + 1)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        assert copy_tail(writer.directory.log, after, writer.db.position.txid, file)
    return path


def at(directory: DatabaseDir, txid: int) -> Position:
    with LogReader(directory.log) as reader:
        found = reader.position_at(txid)
    assert found is not None
    return found


@pytest.fixture
def filled(make_writer: MakeWriter, directory: DatabaseDir) -> Writer:
    """Six transactions of small records."""
    writer = make_writer(directory)
    writer.fill()
    return writer


@pytest.mark.parametrize("kept", [0, 3, 5])
def test_a_log_that_lost_its_tail_leads_where_it_did(
    make_writer: MakeWriter, tmp_path: Path, kept: int
) -> None:
    """Also through a record that is not held in memory, and one that changes the page size."""
    whole = make_writer(new_dir(tmp_path / "whole"))
    whole.fill(4)
    whole.run(f"INSERT INTO t (v) VALUES (randomblob({STREAM_BYTES + (1 << 20)}))")
    whole.vacuum(8192)
    whole.run("INSERT INTO t (v) VALUES (randomblob(100))")
    after = at(whole.directory, kept) if kept else Position()
    path = copied(whole, after, tmp_path)
    assert check_tail(path, after) == whole.db.position

    lacking = new_dir(tmp_path / "lacking")
    log = Log.create(lacking.log, Position(), 4096)
    if kept:
        start = tmp_path / "start" / "0000000000000001.seg"
        start.parent.mkdir()
        with start.open("wb") as file:
            copy_tail(whole.directory.log, Position(), kept, file)
        append_tail(log, start, after)
    append_tail(log, path, whole.db.position)
    log.close()
    report = recover(lacking)
    assert (report.position, report.damaged) == (whole.db.position, False)
    assert lacking.database.read_bytes() == whole.images[-1]
    check_integrity(lacking.database)


def test_a_log_with_another_history_or_too_short_gives_nothing(filled: Writer, tmp_path: Path) -> None:
    log, tip = filled.directory.log, filled.db.position
    here = at(filled.directory, 3)
    with (tmp_path / "tail").open("wb") as file:
        for other in (Position(3, here.checksum ^ 1), Position(tip.txid + 1, tip.checksum)):
            assert not copy_tail(log, other, tip.txid + 2, file)
    assert not (tmp_path / "tail").read_bytes()


def test_any_change_on_the_way_is_noticed(filled: Writer, tmp_path: Path, rng: random.Random) -> None:
    after = at(filled.directory, 2)
    path = copied(filled, after, tmp_path)
    content = path.read_bytes()
    padding = len(content) - len(content.rstrip(b"\0"))
    for _ in range(50):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content) - padding)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            tip = check_tail(path, after)
        except LiteFSError:
            continue
        assert tip == filled.db.position, "something else was taken"
    for wrong in (content[:-1], content + b"\0", content[:64], b""):
        path.write_bytes(wrong)
        with pytest.raises(FormatError):
            check_tail(path, after)
    path.write_bytes(content)
    with pytest.raises(PositionMismatch):
        check_tail(path, Position(2, after.checksum ^ 1))
    assert check_tail(path, after) == filled.db.position
