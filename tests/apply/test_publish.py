"""A commit that is valid in the WAL and logged, but that its client never announced."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from litefs.apply import locks
from litefs.apply.publish import Publisher
from litefs.sqlite.locks import SHM_WRITE
from litefs.store.sums import SumsFile
from tests.apply.conftest import ClientMaker


@pytest.fixture
def sums(tmp_path: Path) -> Iterator[SumsFile]:
    file = SumsFile(tmp_path / "sums", create=True)
    yield file
    file.close()


def logged(sums: SumsFile, wal: Path) -> int:
    """Say that every frame of the WAL is logged, as the fs process does; returns their number."""
    data = wal.read_bytes()
    page_size, _, salt1, salt2 = struct.unpack_from(">4I", data, 8)
    frames = 0
    while 32 + frames * (24 + page_size) < len(data):
        if struct.unpack_from(">2I", data, 32 + frames * (24 + page_size) + 8) != (salt1, salt2):
            break
        frames += 1
    sums.sums.set_wal(salt1, salt2, frames)
    return frames


def put_back(shm: Path, before: bytes) -> None:
    """Undo the announcement of the last commit: both header copies as they were before it."""
    fd = os.open(shm, os.O_RDWR)
    os.pwrite(fd, before[:96], 0)
    os.close(fd)


def test_an_unannounced_commit_is_published(tmp_path: Path, sums: SumsFile, client: ClientMaker) -> None:
    path = tmp_path / "app.db"
    shm, wal = tmp_path / "app.db-shm", tmp_path / "app.db-wal"
    writer, reader = client(path, "ask", writable=True), client(path, "ask", writable=True)
    writer.ask("PRAGMA journal_mode=WAL")
    writer.ask("CREATE TABLE t(x)")
    publisher = Publisher(path, sums)
    assert not publisher.check(), "nothing is logged"
    logged(sums, wal)
    assert not publisher.check(), "everything is announced"
    assert reader.ask("SELECT count(*) FROM t") == [0]
    before = shm.read_bytes()
    writer.ask("INSERT INTO t VALUES(1)")
    logged(sums, wal)
    put_back(shm, before)
    assert reader.ask("SELECT count(*) FROM t") == [0]
    fd = os.open(shm, os.O_RDWR)
    assert locks.try_exclusive(fd, SHM_WRITE)
    assert not publisher.check(), "a client is in the middle of its commit"
    locks.close(fd)
    assert publisher.check()
    assert reader.ask("SELECT count(*) FROM t") == [1]
    assert reader.ask("PRAGMA integrity_check") == ["ok"]
    assert not publisher.check()
    assert writer.ask("INSERT INTO t VALUES(2)") is None
    assert reader.ask("SELECT count(*) FROM t") == [2]


def test_a_restarted_wal_is_left_alone(tmp_path: Path, sums: SumsFile, client: ClientMaker) -> None:
    path = tmp_path / "app.db"
    writer = client(path, "ask", writable=True)
    writer.ask("PRAGMA journal_mode=WAL")
    writer.ask("CREATE TABLE t(x)")
    logged(sums, tmp_path / "app.db-wal")
    writer.ask("PRAGMA wal_checkpoint(RESTART)")
    sums.sums.set_wal(*sums.sums.wal()[:2], 0)  # as the fs process says of a WAL that is backfilled
    publisher = Publisher(path, sums)
    assert not publisher.check()
    writer.ask("INSERT INTO t VALUES(1)")
    logged(sums, tmp_path / "app.db-wal")
    assert not publisher.check()


def test_the_first_commit_of_a_generation_is_published(
    tmp_path: Path, sums: SumsFile, client: ClientMaker
) -> None:
    """Its salts are in no wal-index: a client that did not restart the WAL itself draws them anew."""
    path = tmp_path / "app.db"
    shm, wal = tmp_path / "app.db-shm", tmp_path / "app.db-wal"
    first, second = client(path, "ask", writable=True), client(path, "ask", writable=True)
    first.ask("PRAGMA journal_mode=WAL")
    first.ask("CREATE TABLE t(x)")
    assert first.ask("PRAGMA wal_checkpoint(TRUNCATE)") == [0, 0, 0]
    before = shm.read_bytes()
    second.ask("INSERT INTO t VALUES(1)")
    logged(sums, wal)
    put_back(shm, before)
    assert first.ask("SELECT count(*) FROM t") == [0]
    publisher = Publisher(path, sums)
    assert publisher.check()
    assert first.ask("SELECT count(*) FROM t") == [1]
    assert not publisher.check()


def test_no_file_is_made(tmp_path: Path, sums: SumsFile) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t(x)")
    connection.close()
    sums.sums.set_wal(1, 2, 3)
    before = sorted(os.listdir(tmp_path))
    publisher = Publisher(path, sums)
    assert not publisher.check()
    assert sorted(os.listdir(tmp_path)) == before
    (tmp_path / "app.db-shm").write_bytes(b"")
    assert not publisher.check(), "an opening client is about to fill it"
