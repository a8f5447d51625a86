"""The WAL writer at its edges: recovery of the wal-index, interrupted writes, restarts, both byte orders."""

from __future__ import annotations

import os
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from litefs._core.walcursor import build_frames
from litefs._core.walindex import REGION_SIZE
from litefs.apply import locks
from litefs.apply import wal as wal_module
from litefs.apply.checkpoint import Checkpointer, CheckpointPolicy
from litefs.apply.shm import SharedIndex
from litefs.apply.wal import WalWriter, scan_wal
from litefs.errors import FormatError
from litefs.sqlite.locks import SHM_DMS, SHM_WRITE
from litefs.sqlite.wal import WalHeader
from tests.apply.conftest import ClientMaker

PAGE = 4096


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t(x)")
    connection.execute("INSERT INTO t VALUES('first')")
    connection.close()
    return path


def changed(path: Path, sql: str) -> tuple[bytes, bytes, int]:
    """The pages that a statement changes, taken from a copy of the database with its WAL."""
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as origin, closing(sqlite3.connect(copy)) as target:
        origin.backup(target)
    before = copy.read_bytes()
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute(sql)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    after = copy.read_bytes()
    os.unlink(copy)
    pages = [after[at : at + PAGE] for at in range(0, len(after), PAGE)]
    pgnos = [n for n, page in enumerate(pages, 1) if before[(n - 1) * PAGE : n * PAGE] != page]
    return struct.pack(f"={len(pgnos)}I", *pgnos), b"".join(pages[n - 1] for n in pgnos), len(pages)


def rows(path: Path) -> list[str]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute("SELECT x FROM t")]
    finally:
        connection.close()


def insert(path: Path, value: str) -> tuple[bytes, bytes, int]:
    return changed(path, f"INSERT INTO t VALUES('{value}')")


def test_a_damaged_index_header_is_recovered_under_a_reader(database: Path, client: ClientMaker) -> None:
    writer = WalWriter(database)
    writer.apply([insert(database, "second")])
    reader = client(database, "ask")
    reader.ask("BEGIN")
    assert reader.ask("SELECT count(*) FROM t") == [2]
    third = insert(database, "third")
    writer.shm.index.invalidate()
    writer.apply([third])
    assert reader.ask("SELECT count(*) FROM t") == [2]
    reader.ask("COMMIT")
    assert reader.ask("SELECT count(*) FROM t") == [3]
    writer.close()
    assert rows(database) == ["first", "second", "third"]


def test_a_new_writer_finds_what_an_old_one_left(database: Path) -> None:
    writer = WalWriter(database)
    writer.apply([insert(database, "second")])
    frames = writer.frames
    writer.close()
    writer = WalWriter(database)
    assert writer.frames == frames
    writer.apply([insert(database, "third")])
    assert rows(database) == ["first", "second", "third"]
    assert writer.read_page(1)[:16] == b"SQLite format 3\0"
    with pytest.raises(FormatError, match="page 99"):
        writer.read_page(99)
    writer.close()


def half_written(writer: WalWriter, pgnos: bytes, images: bytes) -> None:
    with writer.writing() as append:
        append.add(pgnos, images, 0)
        writer.read_page(99)


def test_frames_without_a_commit_are_never_seen_and_written_over(database: Path) -> None:
    writer = WalWriter(database)
    pgnos, images, commit = insert(database, "second")
    with pytest.raises(FormatError):
        half_written(writer, pgnos, b"\xff" * len(images))
    assert rows(database) == ["first"]
    # As if the writer had died then: the next one must not trust the entries in the index either.
    writer.close()
    writer = WalWriter(database)
    writer.apply([(pgnos, images, commit)])
    assert rows(database) == ["first", "second"]
    writer.close()


def test_many_transactions_are_published_as_one(database: Path) -> None:
    writer = WalWriter(database)
    second = insert(database, "second")
    writer.apply([second])
    third = insert(database, "third")
    change = writer.shm.index.header()
    assert change is not None
    writer.apply([third, second, third])
    assert rows(database) == ["first", "second", "third"]
    writer.close()


def test_the_wal_starts_again_once_readers_have_left(database: Path, client: ClientMaker) -> None:
    writer = WalWriter(database)
    checkpointer = Checkpointer(writer, lambda: None, CheckpointPolicy())
    writer.apply([insert(database, "second")])
    reader = client(database, "ask")
    reader.ask("BEGIN")
    assert reader.ask("SELECT count(*) FROM t") == [2]
    assert checkpointer.run(), "a reader of the newest frames is in nobody's way"
    salt, frames = writer.salt, writer.frames
    assert not writer.can_restart()
    writer.apply([insert(database, "third")])
    assert writer.salt == salt
    assert writer.frames > frames
    assert not checkpointer.run()
    assert reader.ask("SELECT count(*) FROM t") == [2]
    reader.ask("COMMIT")
    assert checkpointer.run()
    assert writer.can_restart()
    writer.apply([insert(database, "fourth")])
    assert writer.salt == ((salt[0] + 1) & 0xFFFFFFFF, writer.salt[1])
    assert writer.frames < frames + frames
    assert reader.ask("SELECT count(*) FROM t") == [4]
    writer.close()


def test_a_wal_that_grew_is_cut_when_it_starts_again(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_module, "KEEP_BYTES", 40_000)
    writer = WalWriter(database)
    checkpointer = Checkpointer(writer, lambda: None)
    for number in range(20):
        writer.apply([insert(database, f"row {number}")])
    size = database.with_name("app.db-wal").stat().st_size
    assert size > 40_000
    assert checkpointer.run()
    writer.apply([insert(database, "last")])
    assert database.with_name("app.db-wal").stat().st_size < 40_000
    assert rows(database)[-1] == "last"
    writer.close()


def test_a_checkpoint_syncs_the_log_before_it_writes(database: Path) -> None:
    writer = WalWriter(database)
    before = database.read_bytes()
    seen: list[bytes] = []
    checkpointer = Checkpointer(writer, lambda: seen.append(database.read_bytes()))
    writer.apply([insert(database, "second")])
    assert checkpointer.run()
    assert seen == [before]
    assert database.read_bytes() != before
    assert checkpointer.run()
    assert len(seen) == 1, "nothing to do, nothing to sync"
    writer.close()


def test_a_shrunken_database_is_truncated(database: Path) -> None:
    writer = WalWriter(database)
    checkpointer = Checkpointer(writer, lambda: None)
    writer.apply([changed(database, "INSERT INTO t VALUES(zeroblob(200000))")])
    assert checkpointer.run()
    big = database.stat().st_size
    connection = sqlite3.connect(database)
    copy = database.with_name("small.db")
    with closing(sqlite3.connect(copy)) as target:
        connection.backup(target)
    connection.close()
    small = sqlite3.connect(copy, isolation_level=None)
    small.execute("DELETE FROM t WHERE typeof(x) = 'blob'")
    small.execute("VACUUM")
    small.close()
    data = copy.read_bytes()
    count = len(data) // PAGE
    writer.apply([(struct.pack(f"={count}I", *range(1, count + 1)), data, count)])
    assert checkpointer.run()
    assert database.stat().st_size == count * PAGE < big
    assert rows(database) == ["first"]
    writer.close()


@pytest.mark.parametrize("big_endian", [False, True])
def test_a_wal_is_read_in_either_byte_order(database: Path, big_endian: bool) -> None:
    pgnos, images, commit = insert(database, "second")
    header = WalHeader(PAGE, 7, 8, 3, big_endian)
    frames, *checksum = build_frames(pgnos, images, PAGE, 7, 8, *header.checksum, commit, big_endian)
    torn, *_ = build_frames(pgnos, images, PAGE, 7, 8, *checksum, 0, big_endian)
    wal = database.with_name("app.db-wal")
    wal.write_bytes(header.pack() + frames + torn)
    fd = os.open(wal, os.O_RDWR)
    index, numbers = scan_wal(fd)
    os.close(fd)
    assert (index.mx_frame, index.n_page, index.big_end_cksum) == (len(pgnos) // 4, commit, big_endian)
    assert numbers == pgnos
    writer = WalWriter(database)
    assert rows(database) == ["first", "second"]
    writer.apply([insert(database, "third")])
    writer.shm.index.invalidate()
    assert rows(database) == ["first", "second", "third"], "SQLite recovers what we appended"
    writer.close()


def test_the_wal_index_grows_when_nobody_recovers_it(database: Path) -> None:
    """A client that recovers holds WRITE while it makes the file longer and fills it."""
    path = database.with_name(f"{database.name}-shm")
    recovered = bytes(range(256)) * (REGION_SIZE // 256)
    with path.open("w+b", buffering=0) as client, ThreadPoolExecutor(1) as pool:
        assert locks.try_shared(client.fileno(), SHM_DMS)
        with locks.exclusive(client.fileno(), SHM_WRITE, timeout=1):
            client.write(bytes(3))
            attaching = pool.submit(SharedIndex, path, database.stat())
            with pytest.raises(TimeoutError):
                attaching.result(0.2)
            assert path.stat().st_size == 3
            client.write(recovered[3:])
        with closing(attaching.result(10)):
            assert path.read_bytes()[3:] == recovered[3:]


def test_what_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(FormatError):
        WalWriter(path)
    assert sorted(os.listdir(tmp_path)) == ["app.db"]
    fds = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert str(path) not in fds
