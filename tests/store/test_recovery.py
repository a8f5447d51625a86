"""Recovery: whatever a crash left, the database becomes what its log says, or is reported."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs._core.pagesums import page_checksums
from litefs.errors import LogCorrupt, LogSyncFailed
from litefs.store import fileops, rebuild, recovery
from litefs.store.database import Database
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.store.recovery import Report, mark_clean, recover, settle
from litefs.store.segments import list_segments
from litefs.store.sums import SumsFile
from litefs.types import START, ZERO, Position
from tests.store.support import Writer, check_integrity

MakeWriter = Callable[..., Writer]


def assert_recovered(directory: DatabaseDir, image: bytes, report: Report) -> None:
    """The file is ``image``, and checksums, log and flags agree with it."""
    assert not report.damaged
    assert directory.database.read_bytes() == image
    check_integrity(directory.database)
    for path in (directory.wal, directory.shm, directory.journal, directory.incoming):
        assert not path.exists()
    db = Database.open(directory)
    sums = db.sums
    assert db.position == db.log.tip.position == report.position
    assert sums.array(1, sums.page_count) == page_checksums(1, image, sums.page_size)
    assert sums.recompute_total() == report.position.checksum
    assert (sums.durable_txid, sums.synced_txid) == (report.position.txid, report.position.txid)
    assert not sums.clean
    assert not sums.damaged
    db.close()


@pytest.fixture(params=[512, 4096, 65536])
def writer(request: pytest.FixtureRequest, directory: DatabaseDir, make_writer: MakeWriter) -> Writer:
    writer = make_writer(directory, request.param)
    writer.fill(6)
    return writer


def test_lost_wal_is_rebuilt_from_the_log(writer: Writer, directory: DatabaseDir) -> None:
    writer.checkpoint()
    writer.run("INSERT INTO t (v) VALUES (randomblob(9000))")
    writer.run("DELETE FROM t WHERE id < 3")
    writer.db.close()
    directory.wal.write_bytes(os.urandom(10_000))
    directory.shm.write_bytes(os.urandom(32768))
    report = recover(directory)
    assert report.restored > 0
    assert report.lines()[0].startswith(f"restored {report.restored} pages from the log")
    assert_recovered(directory, writer.images[-1], report)


def test_file_that_vanished_is_rebuilt(writer: Writer, directory: DatabaseDir) -> None:
    writer.db.close()
    directory.database.unlink()
    report = recover(directory)
    assert report.restored == len(writer.pages)
    assert_recovered(directory, writer.images[-1], report)


def test_file_that_is_too_long_is_cut(writer: Writer, directory: DatabaseDir) -> None:
    writer.sql.execute("PRAGMA auto_vacuum=FULL")
    writer.run("DELETE FROM t WHERE id > 4")
    writer.sql.execute("VACUUM")
    writer.log()
    before = max(writer.images, key=len)
    writer.db.close()
    directory.database.write_bytes(before + os.urandom(writer.page_size * 2 + 100))
    report = recover(directory)
    assert_recovered(directory, writer.images[-1], report)


def test_random_mixture_of_old_and_new_pages(
    writer: Writer, directory: DatabaseDir, rng: random.Random
) -> None:
    """Any page may be of any past state, as after a power failure without a sync; the checksums may be lost
    too.
    """
    writer.db.close()
    size = writer.page_size
    for round_ in range(8):
        image = bytearray(writer.images[-1])
        for start in range(0, len(image), size):
            past = rng.choice(writer.images)
            image[start : start + size] = past[start : start + size].ljust(size, b"\0")
        directory.database.write_bytes(image[: rng.randrange(len(image) + 1)])
        if round_ % 2:
            directory.sums.unlink()
        assert_recovered(directory, writer.images[-1], recover(directory))


def test_stale_durable_mark_is_not_believed(writer: Writer, directory: DatabaseDir) -> None:
    """The mark says that the file is durable, but the disk lost a page: the log has it still."""
    writer.checkpoint()
    writer.db.close()
    data = bytearray(directory.database.read_bytes())
    data[-writer.page_size :] = bytes(writer.page_size)
    directory.database.write_bytes(data)
    report = recover(directory)
    assert report.restored == 1
    assert_recovered(directory, writer.images[-1], report)


def test_torn_tail_leads_to_the_transaction_before(writer: Writer, directory: DatabaseDir) -> None:
    writer.db.close()
    segment = list_segments(directory.log)[-1][1]
    os.truncate(segment, segment.stat().st_size - 9)
    report = recover(directory)
    assert report.position.txid == len(writer.images) - 1
    assert report.cut is not None
    assert any("torn log tail" in line for line in report.lines())
    assert_recovered(directory, writer.images[-2], report)


def test_damage_inside_the_log_changes_nothing(writer: Writer, directory: DatabaseDir) -> None:
    writer.checkpoint()
    writer.db.close()
    segment = list_segments(directory.log)[-1][1]
    data = bytearray(segment.read_bytes())
    data[300] ^= 4
    segment.write_bytes(data)
    before = directory.database.read_bytes()
    with pytest.raises(LogCorrupt, match="offset 64"):
        recover(directory)
    assert directory.database.read_bytes() == before
    assert segment.read_bytes() == bytes(data)


def rebase(directory: DatabaseDir, writer: Writer) -> Position:
    """Forget the log's history, so that it has no images."""
    point = writer.db.point
    writer.db.close()
    fileops.remove_tree(directory.log)
    Log.create(directory.log, point, writer.page_size).close()
    return point.position


def test_differing_file_without_images_is_set_aside_once(writer: Writer, directory: DatabaseDir) -> None:
    writer.checkpoint()
    rebase(directory, writer)
    data = bytearray(directory.database.read_bytes())
    data[writer.page_size + 7] ^= 1
    directory.database.write_bytes(data)
    report = recover(directory)
    assert report.damaged
    assert report.damaged_pages == (2,)
    assert report.lost is not None
    assert (report.lost / "database").read_bytes() == bytes(data)
    assert "damaged" in report.lines()[-1]
    assert str(report.lost) in report.lines()[-1]
    file = SumsFile(directory.sums)
    assert file.sums.damaged
    file.close()
    again = recover(directory)
    assert again.damaged
    assert again.lost is None
    data[writer.page_size + 7] ^= 1
    directory.database.write_bytes(data)
    assert_recovered(directory, writer.images[-1], recover(directory))


def test_log_without_records_and_lost_checksums(writer: Writer, directory: DatabaseDir) -> None:
    writer.checkpoint()
    position = rebase(directory, writer)
    directory.sums.unlink()
    report = recover(directory)
    assert report.position == position
    assert_recovered(directory, writer.images[-1], report)


def test_garbage_in_place_of_checksums(writer: Writer, directory: DatabaseDir) -> None:
    writer.db.close()
    directory.sums.write_bytes(os.urandom(512 * 1024))
    assert_recovered(directory, writer.images[-1], recover(directory))


def test_a_writer_killed_inside_a_publication_does_not_block_readers(
    writer: Writer, directory: DatabaseDir
) -> None:
    writer.db.close()
    with directory.sums.open("r+b") as file:
        file.seek(16)
        seq = int.from_bytes(file.read(8), "little")
        assert seq % 2 == 0
        file.seek(16)
        file.write((seq + 1).to_bytes(8, "little"))
    report = recover(directory)
    sums = SumsFile(directory.sums)
    assert sums.sums.snapshot()[:2] == (report.position.txid, report.position.checksum)
    sums.close()
    assert_recovered(directory, writer.images[-1], report)


CRASH = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=DELETE")
db.execute("PRAGMA cache_size=1")
db.execute("PRAGMA cache_spill=1")
db.execute("BEGIN")
for statement in sys.argv[2:]:
    db.execute(statement)
os.kill(os.getpid(), 9)
"""


def crash(path: Path, *statements: str) -> None:
    """Let a SQLite client die inside a transaction whose pages have reached the file."""
    result = subprocess.run([sys.executable, "-c", CRASH, str(path), *statements], timeout=30, check=False)
    assert result.returncode == -9


def test_hot_journal_is_rolled_back(writer: Writer, directory: DatabaseDir) -> None:
    writer.checkpoint()
    writer.db.close()
    crash(
        directory.database,
        "UPDATE t SET v = randomblob(20000)",
        "INSERT INTO t (v) VALUES (randomblob(400000))",
    )
    assert directory.journal.stat().st_size > 0
    assert directory.database.read_bytes() != writer.images[-1]
    report = recover(directory)
    assert report.rolled_back
    assert_recovered(directory, writer.images[-1], report)


def test_logged_commit_wins_over_its_hot_journal(writer: Writer, directory: DatabaseDir) -> None:
    """The crash fell between the append and the end of the journal: the transaction exists."""
    writer.checkpoint()
    writer.run("UPDATE t SET v = randomblob(5000)")
    writer.db.close()
    crash(
        directory.database,
        "UPDATE t SET v = randomblob(20000)",
        "INSERT INTO t (v) VALUES (randomblob(400000))",
    )
    report = recover(directory)
    assert report.rolled_back
    assert_recovered(directory, writer.images[-1], report)


def test_first_transaction_that_died_leaves_an_empty_database(directory: DatabaseDir) -> None:
    crash(directory.database, "CREATE TABLE t (v)", "INSERT INTO t VALUES (randomblob(400000))")
    assert directory.database.stat().st_size > 0
    report = recover(directory)
    assert report.rolled_back
    assert report.ignored == "the file is empty"
    assert report.position == ZERO
    assert directory.database.stat().st_size == 0
    assert not directory.journal.exists()


def test_refused_first_transaction_leaves_no_trace(directory: DatabaseDir) -> None:
    directory.database.touch()
    db = Database.open(directory)
    db.prepare(b"\1\0\0\0", bytes(4096), 1, 1)
    db.close()
    assert recover(directory).ignored == "the file is empty"


@pytest.mark.parametrize("wal", [False, True])
def test_offline_database_is_adopted(directory: DatabaseDir, wal: bool) -> None:
    connection = sqlite3.connect(directory.database, isolation_level=None)
    connection.execute("CREATE TABLE t (v)")
    connection.execute("INSERT INTO t VALUES (randomblob(300000))")
    if wal:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("INSERT INTO t VALUES ('in the WAL')")
        backup = directory.path.parent / "copy"
        shutil.copytree(directory.path, backup)
        connection.close()
        shutil.rmtree(directory.path)
        backup.rename(directory.path)
    else:
        connection.close()
    report = recover(directory, node_id=5)
    assert report.adopted
    assert report.position.txid == 1
    assert_recovered(directory, directory.database.read_bytes(), report)
    rows = sqlite3.connect(f"file:{directory.database}?immutable=1", uri=True).execute(
        "SELECT count(*) FROM t"
    )
    assert rows.fetchone() == (1 + wal,)
    with LogReader(directory.log) as reader:
        assert reader.seek(START)
        assert reader.read(1)[0].point.position == report.position
    directory.database.unlink()
    again = recover(directory)
    assert again.restored > 70
    assert not again.damaged


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_what_is_no_database_is_left_alone(directory: DatabaseDir, content: bytes) -> None:
    directory.database.write_bytes(content)
    report = recover(directory)
    assert report.ignored
    assert report.lines() == [f"not served: {report.ignored}"]
    assert directory.database.read_bytes() == content
    assert not directory.log.exists()


def test_a_database_cut_short_offline_is_left_alone(directory: DatabaseDir) -> None:
    connection = sqlite3.connect(directory.database)
    connection.execute("CREATE TABLE t (v)")
    connection.execute("INSERT INTO t VALUES (randomblob(100000))")
    connection.commit()
    connection.close()
    os.truncate(directory.database, 8192)
    assert "in a file of 8192 bytes" in (recover(directory).ignored or "")
    assert directory.database.stat().st_size == 8192


def test_nothing_there(directory: DatabaseDir) -> None:
    assert recover(directory).ignored == "no database file"


def test_clean_start_reads_no_page(
    writer: Writer, directory: DatabaseDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.checkpoint()
    writer.run("INSERT INTO t (v) VALUES (1)")
    writer.close()
    settled = settle(directory)
    assert settled.restored > 0
    assert directory.database.read_bytes() == writer.images[-1]

    def never(*args: object) -> bytes:
        raise AssertionError("the file was read")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "file_checksums", never)
        report = recover(directory)
        assert report.clean
        assert report.lines() == []
        assert_recovered(directory, writer.images[-1], report)
        # The start took the mark away: without a clean stop the next one reads everything.
        with pytest.raises(AssertionError, match="was read"):
            recover(directory)


def test_clean_mark_does_not_hide_a_changed_file(writer: Writer, directory: DatabaseDir) -> None:
    writer.checkpoint()
    writer.db.close()
    mark_clean(directory)
    time.sleep(0.02)
    with directory.database.open("r+b") as file:
        file.seek(writer.page_size)
        file.write(b"\xff" * 10)
    report = recover(directory)
    assert not report.clean
    assert report.restored == 1
    assert_recovered(directory, writer.images[-1], report)


def test_clean_mark_is_refused_while_the_file_lags(writer: Writer, directory: DatabaseDir) -> None:
    writer.db.close()
    mark_clean(directory)
    assert not recover(directory).clean


def test_clean_allowed_can_be_denied(writer: Writer, directory: DatabaseDir) -> None:
    writer.checkpoint()
    writer.db.close()
    mark_clean(directory)
    assert not recover(directory, clean_allowed=False).clean


def test_settle_rolls_back_and_finishes_what_was_not_published(
    writer: Writer, directory: DatabaseDir
) -> None:
    writer.checkpoint()
    writer.db.close()
    crash(
        directory.database,
        "UPDATE t SET v = randomblob(20000)",
        "INSERT INTO t (v) VALUES (randomblob(400000))",
    )
    report = settle(directory)
    assert report.rolled_back
    assert recover(directory).clean
    assert directory.database.read_bytes() == writer.images[-1]
    db = Database.open(directory)
    db.append(db.prepare(b"\2\0\0\0", os.urandom(writer.page_size), len(writer.pages), 99), publish=False)
    db.close()
    assert settle(directory).position.txid == report.position.txid + 1


def test_recovery_is_interruptible_everywhere(
    writer: Writer, directory: DatabaseDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dying at any durable operation of a recovery, and recovering again, leads to the same database."""
    writer.checkpoint()
    writer.run("UPDATE t SET v = randomblob(5000)")
    writer.db.close()
    crash(
        directory.database,
        "UPDATE t SET v = randomblob(20000)",
        "INSERT INTO t (v) VALUES (randomblob(400000))",
    )
    saved = tmp_path / "saved"
    shutil.copytree(directory.path, saved)
    operations = ("pwrite_all", "fsync", "fdatasync", "truncate", "unlink", "sync_dir", "rename", "fallocate")
    for stop in range(1000):
        shutil.rmtree(directory.path)
        shutil.copytree(saved, directory.path)
        left = stop

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(5, "died here")
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            for name in operations:
                patch.setattr(fileops, name, dying(getattr(fileops, name)))
            try:
                recover(directory)
            except (OSError, LogSyncFailed) as error:
                if "died here" not in str(error):
                    raise
            else:
                break
        if stop % 5 == 0 or stop < 10:
            assert_recovered(directory, writer.images[-1], recover(directory))
    assert 5 < stop < 999
    assert_recovered(directory, writer.images[-1], recover(directory))


def test_parallel_checksums_equal_sequential_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "CHUNK_BYTES", 8192)
    data = os.urandom(512 * 101)
    path = tmp_path / "file"
    path.write_bytes(data + b"half a page")
    found = rebuild.file_checksums(path, 512, 110)
    assert found == page_checksums(1, data, 512) + bytes(8 * 9)
    assert rebuild.file_checksums(tmp_path / "none", 512, 3) == bytes(24)
