"""What a power failure or a failing disk may leave, as the crash simulator (tests/crash) found it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.errors import LogCorrupt
from litefs.store import fileops, log
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.store.recovery import recover
from litefs.store.retention import reap
from litefs.store.segments import extents, list_segments, segment_path
from litefs.types import START, ZERO, Position
from tests.store.support import Writer
from tests.store.test_log import PAGE, append, checksum
from tests.store.test_recovery import assert_recovered, crash

MakeWriter = Callable[..., Writer]


OPEN_TRANSACTION = ("UPDATE t SET v = randomblob(9)", "INSERT INTO t (v) VALUES (randomblob(60000))")


@pytest.fixture
def writer_of_log(tmp_path: Path) -> Log:
    return Log.create(tmp_path / "log", START, PAGE)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def failing(code: int) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("operation", ["fdatasync", "rename", "write_zeros", "open_file"])
def test_a_rotation_that_fails_hides_no_later_record(
    writer_of_log: Log, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The records after it may fit into the old segment: a new one of that TXID must not be there then."""
    append(writer_of_log, 3)
    writer_of_log.sync()
    with monkeypatch.context() as patch:
        patch.setattr(log, "SEGMENT_BYTES", 1)
        patch.setattr(fileops, operation, failing(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            append(writer_of_log, 1)
    assert writer_of_log.tip.position == Position(3, checksum(3))
    append(writer_of_log, 2)
    writer_of_log.close()
    opened = Log.open(writer_of_log.directory)
    assert opened.tip.position == Position(5, checksum(5))
    opened.close()
    assert not list(writer_of_log.directory.glob("*.tmp"))


def test_the_header_of_a_new_segment_is_synced_before_the_segment_is_there(
    writer_of_log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noting(name: str) -> Callable[..., None]:
        real = getattr(fileops, name)

        def call(*args: object) -> None:
            done.append(name)
            real(*args)

        return call

    for name in ("fdatasync", "rename"):
        monkeypatch.setattr(fileops, name, noting(name))
    append(writer_of_log, 3)
    monkeypatch.setattr(log, "SEGMENT_BYTES", 1)
    append(writer_of_log, 1)
    assert done[-2:] == ["fdatasync", "rename"]
    writer_of_log.close()


@pytest.mark.parametrize("first", [0, 100])
def test_a_sector_that_missed_the_disk_is_no_damage(writer_of_log: Log, first: int) -> None:
    """``first``: byte of the record's body from which on its sector was not written."""
    append(writer_of_log, 4, pages=4)
    writer_of_log.close()
    lost = list(extents(writer_of_log.directory, 0))[1]
    start = lost.body_offset + first
    end = (start // 512 + 1) * 512
    overwrite(lost.path, start, bytes(end - start))
    opened = Log.open(writer_of_log.directory)
    assert opened.tip.position == Position(1, checksum(1))
    opened.close()


def test_a_head_that_missed_the_disk_is_no_damage_but_a_changed_length_is(writer_of_log: Log) -> None:
    append(writer_of_log, 4, pages=4)
    writer_of_log.close()
    lost = list(extents(writer_of_log.directory, 0))[1]
    overwrite(lost.path, lost.offset + 1, b"\x7f")
    with pytest.raises(LogCorrupt, match=f"offset {lost.offset}"):
        Log.open(writer_of_log.directory)
    overwrite(lost.path, lost.offset, bytes(16))
    opened = Log.open(writer_of_log.directory)
    assert opened.tip.txid == 1
    opened.close()


def test_a_reader_passes_over_what_a_superseded_segment_lost(writer_of_log: Log) -> None:
    append(writer_of_log, 3)
    writer_of_log.sync()
    append(writer_of_log, 3)
    writer_of_log._sync_failed = True
    writer_of_log.sync()
    assert [first for first, _ in list_segments(writer_of_log.directory)] == [1, 4]
    # The machine died: the old file never got what the new one holds.
    old = segment_path(writer_of_log.directory, 1)
    last = [extent for extent in extents(writer_of_log.directory, 0) if extent.path == old][-1]
    overwrite(old, last.end + 40, b"\xff" * 100)
    with LogReader(writer_of_log.directory) as source:
        assert source.seek(START)
        assert [entry.txid_max for entry in source.read(6)] == [1, 2, 3, 4, 5, 6]
    writer_of_log.close()


def test_checksums_that_outlived_the_first_record_are_forgotten(
    directory: DatabaseDir, make_writer: MakeWriter
) -> None:
    writer = make_writer(directory)
    writer.run("CREATE TABLE t (v)")
    writer.db.close()
    segment = list_segments(directory.log)[0][1]
    os.truncate(segment, 64)
    report = recover(directory)
    assert report.position == ZERO
    assert report.ignored == "the file is empty"
    again = make_writer(directory)
    again.run("CREATE TABLE t (v)")
    assert again.db.position.txid == 1


def reaped(writer: Writer, directory: DatabaseDir) -> None:
    """Rows deleted, all of it durable, and no image of any page left in the log."""
    writer.fill(30)
    writer.run("CREATE TABLE kept (v)", f"INSERT INTO kept VALUES ('{'kept' * 500}')")
    writer.run("DELETE FROM t WHERE id % 2")
    writer.run("UPDATE t SET v = randomblob(10) WHERE id > 50")
    writer.checkpoint()
    writer.db.log._expires = 0.0
    writer.run("UPDATE t SET v = randomblob(10) WHERE id = 60")
    writer.checkpoint()
    assert len(reap(directory.log, writer.db.sums, -1, 0)) == 1
    writer.db.close()


def test_unused_pages_that_a_journal_lacks_are_logged_as_they_are(
    directory: DatabaseDir, make_writer: MakeWriter
) -> None:
    """SQLite does not journal the content of an unused page before it takes it into use again."""
    writer = make_writer(directory)
    reaped(writer, directory)
    crash(directory.database, *OPEN_TRANSACTION)
    report = recover(directory)
    assert report.rolled_back
    assert report.relogged > 5
    assert f"logged {report.relogged} unused pages" in "".join(report.lines())
    assert report.position.txid == len(writer.images) + 1
    image = directory.database.read_bytes()
    assert image != writer.images[-1]
    assert_recovered(directory, image, report)
    assert recover(directory).position == report.position


def test_another_difference_is_still_damage(directory: DatabaseDir, make_writer: MakeWriter) -> None:
    writer = make_writer(directory)
    reaped(writer, directory)
    crash(directory.database, *OPEN_TRANSACTION)
    data = bytearray(directory.database.read_bytes())
    data[data.rindex(b"keptkept")] ^= 1
    directory.database.write_bytes(data)
    report = recover(directory)
    assert report.rolled_back
    assert report.damaged
    assert report.relogged == 0
    assert report.position.txid == len(writer.images)
