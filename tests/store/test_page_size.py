"""A change of page size: one record with every page, and whatever a crash or a failure leaves of it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.errors import FormatError
from litefs.ltx.decoder import decode
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader, newest_images
from litefs.store.recovery import recover, settle
from litefs.store.retention import reap
from litefs.store.segments import SegmentMap, extents, list_segments
from litefs.store.snapshot import SnapshotSource
from litefs.types import START
from tests.fs.replay import replay
from tests.store.support import Writer, new_dir, pack
from tests.store.test_recovery import assert_recovered, crash
from tests.store.test_snapshot import assert_is, begin, received, tail

MakeWriter = Callable[..., Writer]
SIZES = [(512, 65536), (65536, 512), (4096, 1024), (1024, 4096)]


@pytest.fixture(params=SIZES, ids=lambda sizes: f"{sizes[0]}-{sizes[1]}")
def writer(request: pytest.FixtureRequest, directory: DatabaseDir, make_writer: MakeWriter) -> Writer:
    """A database of five transactions with the first page size; ``other`` is the second."""
    before, _ = request.param
    writer = make_writer(directory, before)
    writer.fill(4)
    writer.checkpoint()
    return writer


@pytest.fixture
def other(request: pytest.FixtureRequest, writer: Writer) -> int:
    return next(after for before, after in SIZES if before == writer.page_size)


def change_twice(writer: Writer, other: int) -> None:
    """To the other page size and back, with transactions around."""
    first = writer.page_size
    for size in (other, first, other):
        writer.vacuum(size)
        writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")


def test_the_log_tells_the_whole_history(writer: Writer, other: int, directory: DatabaseDir) -> None:
    change_twice(writer, other)
    position, pages, page_size = replay(directory.log)
    assert (position, page_size) == (writer.db.position, other)
    assert b"".join(pages[pgno] for pgno in sorted(pages)) == writer.images[-1]
    full = [extent for extent in extents(directory.log, 5) if extent.txid_min % 2 == 0]
    assert len(full) == 3
    for extent in full:
        with extent.path.open("rb") as file:
            file.seek(extent.body_offset)
            record = decode(file.read(extent.size))
        assert len(record.pgnos) == 4 * record.header.commit
        assert record.header.pre_apply == extent.pre_apply != 0
    for _, path in list_segments(directory.log):
        with SegmentMap(path) as segment:
            sizes = {extent.page_size for extent in segment.extents(verify=True)}
            assert sizes == {segment.header.page_size}


def test_every_page_has_to_be_there(writer: Writer, other: int, directory: DatabaseDir) -> None:
    before = writer.db.position
    for pgnos, commit in ((pack(1, 2), 3), (pack(2, 3), 3), (pack(), 1)):
        batches = [(pgnos, bytes(other * (len(pgnos) // 4)))]
        with pytest.raises(FormatError, match="not a transaction: only"):
            writer.db.commit_stream(pgnos, batches, commit, 1, other)
    assert writer.db.position == before == writer.db.log.tip.position
    assert not list(directory.log.glob("*.tmp"))
    writer.vacuum(other)


def test_readers_see_the_change_as_one(directory: DatabaseDir, make_writer: MakeWriter) -> None:
    writer = make_writer(directory, 512)
    writer.fill(4)
    states = {writer.db.sums.snapshot()}
    seen = set()
    stop = threading.Event()
    source = SnapshotSource(directory)

    def look() -> None:
        while not stop.is_set():
            seen.add(source._file.sums.snapshot())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for size in (65536, 1024, 4096, 512) * 10:
            writer.vacuum(size)
            states.add(writer.db.sums.snapshot())
    finally:
        stop.set()
        thread.join(10)
        source.close()
    assert len(seen) > 1
    assert seen <= states


@pytest.mark.parametrize("published", [False, True])
def test_recovery_after_a_crash_behind_the_append(
    writer: Writer, other: int, directory: DatabaseDir, published: bool, rng: random.Random
) -> None:
    """The record exists; checksums and file may be of either page size, the file in part of both."""
    writer.run("UPDATE t SET v = randomblob(3000) WHERE id % 2")
    sums = directory.sums.read_bytes()
    writer.vacuum(other)
    old, new = writer.images[-2:]
    for content in (old, new, _mixed(rng, old, new), _mixed(rng, new, old), new + old, b""):
        writer.db.close()
        if not published:
            directory.sums.write_bytes(sums)
        directory.database.write_bytes(content)
        assert_recovered(directory, new, recover(directory))
        writer.db = Database.open(directory)
    writer.run("INSERT INTO t (v) VALUES (randomblob(9000))")
    writer.db.close()
    directory.sums.unlink()
    assert_recovered(directory, writer.images[-1], recover(directory))


def _mixed(rng: random.Random, some: bytes, others: bytes) -> bytes:
    """512-byte pieces of either."""
    size = max(len(some), len(others))
    some, others = some.ljust(size, b"\0"), others.ljust(size, b"\0")
    return b"".join(rng.choice((some, others))[at : at + 512] for at in range(0, size, 512))


def test_a_hot_journal_of_the_old_page_size(writer: Writer, other: int, directory: DatabaseDir) -> None:
    """Killed between the record and the end of the journal: what is played back is overwritten."""
    big = "INSERT INTO t VALUES (99, randomblob(400000))"
    crash(directory.database, "UPDATE t SET v = randomblob(20000)", big)
    writer.vacuum(other)
    writer.db.close()
    report = recover(directory)
    assert report.rolled_back
    assert_recovered(directory, writer.images[-1], report)


@pytest.mark.parametrize("operation", ["open_file", "pwrite_all", "write_zeros", "fdatasync", "rename"])
def test_a_change_that_fails_leaves_what_was(
    writer: Writer, other: int, directory: DatabaseDir, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    before, image = writer.db.position, writer.source.read_bytes()
    real = getattr(fileops, operation)
    for allowed in range(100):
        left = allowed

        def fail(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "full")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(fileops, operation, fail)
            try:
                writer.vacuum(other)
            except OSError:
                assert writer.db.position == before == writer.db.log.tip.position
                writer.source.write_bytes(image)
                continue
            break
    else:
        raise AssertionError("it never succeeds")
    assert allowed > 0
    writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
    writer.db.close()
    assert_recovered(directory, writer.images[-1], recover(directory))


def test_the_record_after_a_failed_change_has_the_old_page_size(
    writer: Writer, other: int, directory: DatabaseDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, pages = writer.page_size, writer.pages
    with monkeypatch.context() as patch:
        patch.setattr(fileops, "rename", _failing)
        with pytest.raises(OSError, match="full"):
            writer.vacuum(other)
    image = os.urandom(before)
    position = writer.db.commit(pack(len(pages)), image, len(pages), 99)
    writer.db.close()
    report = recover(directory)
    assert report.position == position
    assert directory.database.read_bytes() == b"".join(pages[:-1]) + image


def _failing(*args: object) -> None:
    raise OSError(28, "full")


def test_a_sync_that_fails_behind_it(
    writer: Writer, other: int, directory: DatabaseDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be lost goes into a new segment, with the new page size."""
    writer.vacuum(other)
    writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
    failed = []

    def fail(fd: int) -> None:
        if not failed:
            failed.append(fd)
            raise OSError(5, "lost")
        os.fdatasync(fd)

    monkeypatch.setattr(fileops, "fdatasync", fail)
    writer.db.sync()
    assert failed
    writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
    writer.db.close()
    log = Log.open(directory.log)
    assert log.page_size == other
    log.close()
    assert_recovered(directory, writer.images[-1], recover(directory))


def test_settle_writes_what_the_file_lacks(writer: Writer, other: int, directory: DatabaseDir) -> None:
    change_twice(writer, other)
    writer.db.close()
    directory.database.write_bytes(writer.images[3])
    settle(directory)
    assert directory.database.read_bytes() == writer.images[-1]
    assert recover(directory).clean


def test_images_from_before_do_not_count(writer: Writer, other: int, directory: DatabaseDir) -> None:
    before = writer.page_size
    writer.vacuum(other)
    tip = writer.db.position.txid
    images = newest_images(directory.log, 0, tip, page_size=other)
    assert sorted(images) == list(range(1, len(writer.pages) + 1))
    assert {image.path for image in images.values()} == {list_segments(directory.log)[-1][1]}
    assert newest_images(directory.log, 0, tip, page_size=before) == {}


def test_retention_keeps_a_full_record_until_the_file_has_it(
    writer: Writer, other: int, directory: DatabaseDir
) -> None:
    writer.vacuum(other)
    writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
    writer.db.sync()
    assert len(reap(directory.log, writer.db.sums, -1, 0)) == 1, "what the file had durably before"
    writer.vacuum(1 << 13)
    writer.db.sync()
    assert reap(directory.log, writer.db.sums, -1, 0) == []
    with LogReader(directory.log) as reader:
        assert not reader.seek(START)
    writer.checkpoint()
    reap(directory.log, writer.db.sums, -1, 0)
    assert len(list_segments(directory.log)) == 1
    writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
    writer.db.close()
    assert_recovered(directory, writer.images[-1], recover(directory))


@pytest.mark.parametrize("back", [False, True])
def test_a_snapshot_beside_a_change(
    writer: Writer, other: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """Between any two batches: the pages stop, the records that follow hold them all."""
    monkeypatch.setattr("litefs.store.snapshot.BATCH_BYTES", 4096)
    monkeypatch.setattr("litefs.store.snapshot.RETRY_SECONDS", 0.2)
    first = writer.page_size
    for moment in range(5):
        replica = new_dir(tmp_path / f"replica{moment}{back}")
        writer.run("UPDATE t SET v = randomblob(3000)")
        source = SnapshotSource(writer.directory)
        target = begin(replica, source)
        for number, (pgnos, images) in enumerate(source):
            target.pages(pgnos, images)
            if number == moment:
                writer.vacuum(other if writer.page_size == first else first)
                if back:
                    writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
                    writer.vacuum(other if writer.page_size == first else first)
        source.close()
        tail(writer.directory, target, writer.db.position.txid)
        target.verify(writer.db.point)
        target.install()
        assert_is(replica, writer.images[-1], writer.db.point)


def test_a_snapshot_after_it(writer: Writer, other: int, tmp_path: Path) -> None:
    writer.vacuum(other)
    writer.run("INSERT INTO t (v) VALUES (randomblob(2000))")
    replica = new_dir(tmp_path / "replica")
    received(replica, writer).install()
    assert_is(replica, writer.images[-1], writer.db.point)
