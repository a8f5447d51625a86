"""Snapshots: read beside a writer, received new or over what is there, and every crash between."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs._core.pagesums import page_checksums
from litefs.errors import ChecksumMismatch, DatabaseNotFound, FormatError, LiteFSError, PositionMismatch
from litefs.store import fileops, snapshot
from litefs.store.database import Database
from litefs.store.lost import keep_diverged, keep_file
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.store.recovery import recover
from litefs.store.segments import list_segments
from litefs.store.snapshot import SnapshotSource, SnapshotTarget
from litefs.store.sums import SumsFile
from litefs.types import START, ZERO, Point
from tests.store.support import Writer, check_integrity, new_dir, pack

MakeWriter = Callable[..., Writer]


@pytest.fixture
def writer(directory: DatabaseDir, make_writer: MakeWriter) -> Writer:
    writer = make_writer(directory)
    writer.fill(8)
    return writer


@pytest.fixture
def replica(tmp_path: Path) -> DatabaseDir:
    return new_dir(tmp_path / "replica")


def begin(replica: DatabaseDir, source: SnapshotSource) -> SnapshotTarget:
    return SnapshotTarget(replica, source.page_size, source.commit, source.at, source.timestamp)


def tail(directory: DatabaseDir, target: SnapshotTarget, upto: int) -> None:
    with LogReader(directory.log) as reader:
        assert reader.seek(target.point)
        while entries := reader.read(upto):
            for entry in entries:
                target.record(entry.body)


def received(replica: DatabaseDir, writer: Writer) -> SnapshotTarget:
    """A whole, verified snapshot of the writer's database."""
    source = SnapshotSource(writer.directory)
    target = begin(replica, source)
    for pgnos, images in source:
        target.pages(pgnos, images)
    source.close()
    target.verify(writer.db.point)
    return target


def assert_is(replica: DatabaseDir, image: bytes, point: Point) -> None:
    assert replica.database.read_bytes() == image
    check_integrity(replica.database)
    db = Database.open(replica)
    assert db.point == point
    assert db.sums.array(1, db.sums.page_count) == page_checksums(1, image, db.page_size)
    db.close()
    assert not any(path.exists() for path in (replica.incoming, replica.incoming_sums, replica.install))


def test_pages_come_from_the_log_where_the_file_is_older(writer: Writer, replica: DatabaseDir) -> None:
    writer.checkpoint()
    writer.run("UPDATE t SET v = randomblob(3000)")
    target = received(replica, writer)
    target.install()
    assert_is(replica, writer.images[-1], writer.db.point)
    again = Database.open(replica)
    assert again.log.first_txid == writer.db.position.txid + 1
    again.close()
    assert recover(replica).lines() == []


def test_snapshot_beside_a_writer(
    writer: Writer, replica: DatabaseDir, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    """Commits, growth, shrinking and checkpoints between the batches; the end is exact."""
    monkeypatch.setattr(snapshot, "BATCH_BYTES", 8192)
    writer.run("INSERT INTO t (v) SELECT randomblob(3000) FROM t, t AS u")
    source = SnapshotSource(writer.directory)
    target = begin(replica, source)
    for pgnos, images in source:
        target.pages(pgnos, images)
        action = rng.randrange(5)
        if action == 0:
            writer.run(f"UPDATE t SET v = randomblob(2000) WHERE id % 10 = {rng.randrange(10)}")
        elif action == 1:
            writer.run("INSERT INTO t (v) VALUES (randomblob(30000))")
        elif action == 2:
            writer.run(f"DELETE FROM t WHERE id % 7 = {rng.randrange(7)}")
        elif action == 3:
            writer.sql.execute("VACUUM")
            writer.log()
        else:
            writer.checkpoint()
    source.close()
    assert writer.db.position.txid > source.at.txid
    tail(writer.directory, target, writer.db.position.txid)
    target.verify(writer.db.point)
    target.install()
    assert_is(replica, writer.images[-1], writer.db.point)


def test_a_page_in_flux_is_waited_for(
    writer: Writer, replica: DatabaseDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rollback mode a page changes in the file before its transaction is logged, or rolled back."""
    writer.checkpoint()
    writer.db.log.close()
    fileops.remove_tree(writer.directory.log)
    good = writer.directory.database.read_bytes()
    writer.directory.database.write_bytes(good[:4096] + os.urandom(4096) + good[8192:])
    timer = threading.Timer(0.2, lambda: writer.directory.database.write_bytes(good))
    timer.start()
    source = SnapshotSource(writer.directory)
    order = [pgno for pgnos, _ in source for pgno in memoryview(pgnos).cast("I")]
    timer.join(10)
    assert sorted(order) == list(range(1, len(writer.pages) + 1))
    assert order[-1] == 2
    writer.directory.database.write_bytes(bytes(4096) + good[4096:])
    monkeypatch.setattr(snapshot, "RETRY_SECONDS", 0.1)
    with pytest.raises(LiteFSError, match="page 1 does not become"):
        list(source)
    source.close()


def test_damaged_and_missing_databases_give_no_snapshot(writer: Writer, replica: DatabaseDir) -> None:
    with pytest.raises(DatabaseNotFound):
        SnapshotSource(replica)
    writer.checkpoint()
    writer.db.sums.damaged = True
    with pytest.raises(LiteFSError, match="damaged"):
        SnapshotSource(writer.directory)


def test_what_does_not_fit_is_refused(writer: Writer, replica: DatabaseDir) -> None:
    writer.checkpoint()
    commit = len(writer.pages)
    at = writer.db.point
    target = SnapshotTarget(replica, 4096, commit, at, 0)
    with pytest.raises(FormatError, match="bytes for 1 snapshot pages"):
        target.pages(pack(1), bytes(100))
    for pgno in (0, commit + 1):
        with pytest.raises(FormatError, match="snapshot page"):
            target.pages(pack(pgno), bytes(4096))
    with pytest.raises(PositionMismatch, match="not at"):
        target.verify(Point(at.txid + 1, at.checksum, at.hash))
    with pytest.raises(PositionMismatch, match="not at"):
        target.verify(Point(at.txid, at.checksum, at.hash ^ 1))
    with pytest.raises(ChecksumMismatch, match="the snapshot's checksum is"):
        target.verify(at)
    with LogReader(writer.directory.log) as reader:
        assert reader.seek(START)
        with pytest.raises(PositionMismatch, match="does not follow"):
            target.record(reader.read(1)[0].body)
    target.abort()
    target.abort()
    assert not replica.path.exists(), "a database that was removed before it was here leaves nothing"


def test_a_first_record_makes_a_database(writer: Writer, replica: DatabaseDir) -> None:
    target = SnapshotTarget(replica, 4096, 0, START, 0)
    tail(writer.directory, target, writer.db.position.txid)
    target.verify(writer.db.point)
    target.install()
    assert_is(replica, writer.images[-1], writer.db.point)


def diverged(replica: DatabaseDir, make_writer: MakeWriter) -> Writer:
    """Another history, checkpointed, and with a higher TXID than the primary's."""
    other = make_writer(replica)
    other.fill(15)
    other.run("INSERT INTO t (v) VALUES (randomblob(100000))")
    other.checkpoint()
    return other


def test_install_over_another_history(writer: Writer, replica: DatabaseDir, make_writer: MakeWriter) -> None:
    writer.checkpoint()
    diverged(replica, make_writer).close()
    received(replica, writer).install()
    assert_is(replica, writer.images[-1], writer.db.point)


def write_through(target: SnapshotTarget, replica: DatabaseDir, live: SumsFile) -> list[int]:
    """What the applier does with the differing pages, without the WAL between."""
    seen: list[int] = []
    with replica.database.open("r+b") as file:
        for pgnos, images in target.differing(live.sums):
            for at, pgno in enumerate(memoryview(pgnos).cast("I")):
                file.seek((pgno - 1) * 4096)
                file.write(images[at * 4096 : (at + 1) * 4096])
                seen.append(pgno)
        file.truncate(target.commit * 4096)
    return seen


def test_over_an_open_database_only_differing_pages_travel(
    writer: Writer, replica: DatabaseDir, make_writer: MakeWriter
) -> None:
    writer.checkpoint()
    received(replica, writer).install()
    other = Database.open(replica)
    other.commit(pack(2), os.urandom(4096), len(writer.pages), 1)
    other.sync()
    kept = keep_diverged(replica, writer.db.position.txid, "diverged")
    assert kept is not None
    assert [path.name for path in kept.iterdir()] == [list_segments(replica.log)[-1][1].name]
    writer.run("UPDATE t SET v = 'x' WHERE id = 3")
    target = received(replica, writer)
    target.seal()
    inode = replica.database.stat().st_ino
    changed = write_through(target, replica, other.sums_file)
    assert 2 in changed
    assert len(changed) < len(writer.pages)
    log = target.rebase_log(other.sums_file, other.log)
    assert other.point == log.tip == writer.db.point
    assert other.sums.durable_txid == 0
    other.sums.durable_txid = other.position.txid
    target.finish()
    log.close()
    other.close()
    assert replica.database.stat().st_ino == inode
    assert_is(replica, writer.images[-1], writer.db.point)


def test_crash_after_rebase_before_the_checkpoint_keeps_later_records(
    writer: Writer, replica: DatabaseDir, make_writer: MakeWriter
) -> None:
    """The pages are only in the replica's WAL, which recovery removes: the received file stands in."""
    writer.checkpoint()
    other = diverged(replica, make_writer)
    target = received(replica, writer)
    target.seal()
    log = target.rebase_log(other.db.sums_file, other.db.log)
    log.close()
    other.db.close()
    target.close()
    writer.run("UPDATE t SET v = 'later' WHERE id = 1")
    db = Database.open(replica)
    with LogReader(writer.directory.log) as reader:
        assert reader.seek(target.point)
        entry = reader.read(writer.db.position.txid)[0]
    db.log.append(entry.body, entry.txid_max, entry.point.checksum)
    db.close()
    report = recover(replica)
    assert report.installed
    assert not report.damaged
    assert_is(replica, writer.images[-1], writer.db.point)


@pytest.mark.parametrize(("existing", "online"), [(False, False), (True, False), (True, True)])
def test_dying_anywhere_leads_to_the_old_or_the_new_database(
    writer: Writer,
    replica: DatabaseDir,
    make_writer: MakeWriter,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    existing: bool,
    online: bool,
) -> None:
    writer.checkpoint()
    if existing:
        old = diverged(replica, make_writer)
        old_state = (old.images[-1], old.db.point)
        old.close()
    saved = tmp_path / "saved"
    shutil.copytree(replica.path, saved)
    operations = ("pwrite_all", "fsync", "unlink", "sync_dir", "rename", "remove_tree", "write_file_atomic")
    outcomes = set()
    for stop in range(200):
        shutil.rmtree(replica.path)
        shutil.copytree(saved, replica.path)
        target = received(replica, writer)
        left = stop

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(5, "died here")
                return real(*args)

            return call

        live = Database.open(replica) if online else None
        finished = False
        with monkeypatch.context() as patch:
            for name in operations:
                patch.setattr(fileops, name, dying(getattr(fileops, name)))
            try:
                if live is None:
                    target.install()
                else:
                    target.seal()
                    write_through(target, replica, live.sums_file)
                    target.rebase_log(live.sums_file, live.log).close()
                    live.sums.durable_txid = live.position.txid
                    target.finish()
                finished = True
            except OSError as error:
                if "died here" not in str(error):
                    raise
        if live is not None:
            live.close()
        target.close()
        report = recover(replica)
        assert not report.damaged
        new = report.position == writer.db.position
        outcomes.add(new)
        if new:
            assert_is(replica, writer.images[-1], writer.db.point)
        elif existing:
            assert_is(replica, *old_state)
        else:
            assert report.position == ZERO
            assert not replica.incoming.exists()
        if finished:
            break
    assert outcomes == {False, True}
    assert finished


def test_an_intent_that_cannot_be_read_is_reported(writer: Writer, replica: DatabaseDir) -> None:
    replica.install.write_text("{}")
    with pytest.raises(FormatError, match="not an install intent"):
        recover(replica)


def test_setting_aside(writer: Writer, directory: DatabaseDir) -> None:
    assert keep_file(directory.path / "nothing", directory, "x") is None
    writer.checkpoint()
    kept = keep_file(directory.database, directory, "damaged")
    assert kept is not None
    assert (kept / "database").read_bytes() == writer.images[-1]
