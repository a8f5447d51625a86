"""Writes to the database file that no journal tells of. No sweep comes here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from tests.crash.schedule import check_replay
from tests.crash.vfs import Primary, finish
from tests.crash.workload import SCHEMA, execute, intact
from tests.fs.replay import replay
from tests.store.support import new_dir


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    primary = Primary(new_dir(tmp_path), random.Random(1), split=True, psow=True)
    yield primary
    primary.close()


@pytest.mark.parametrize("then", ["delete", "truncate", "persist", "wal"])
@pytest.mark.parametrize("first", ["memory", "off"])
def test_each_commit_is_a_record_in_its_order(primary: Primary, first: str, then: str) -> None:
    with closing(primary.connect()) as connection:
        execute(connection, list(SCHEMA))
        for statement in (f"journal_mode={first}", "synchronous=OFF"):
            connection.execute(f"PRAGMA {statement}").fetchall()
        connection.execute("INSERT INTO t (k, v) VALUES (1, zeroblob(9000))")
        assert primary.capture.raw.pending
        before = intact(connection)
        position = primary.db.position
        assert connection.execute(f"PRAGMA journal_mode={then}").get == then
        connection.execute("BEGIN; INSERT INTO t (k, v) VALUES (2, zeroblob(50))")
        connection.cache_flush()
        assert not primary.capture.raw.pending
        assert primary.db.position.txid > position.txid
        check_replay(primary.dir, before)
        connection.execute("COMMIT")
        check_replay(primary.dir, intact(connection))


def test_a_transaction_takes_over_what_looked_like_no_whole_copy(tmp_path: Path) -> None:
    """SQLite takes a file for a database whatever lies behind its end, and so it is one from then on."""
    directory = new_dir(tmp_path)
    with closing(apsw.Connection(str(directory.database))) as connection:
        execute(connection, list(SCHEMA))
    with directory.database.open("ab") as file:
        file.write(b"behind its end" * 99)
    primary = Primary(directory, random.Random(1), split=True, psow=True)
    try:
        primary.capture.raw.found()
        assert primary.capture.sweep() is None
        assert primary.capture.raw.local
        with closing(primary.connect()) as connection:
            for number in range(2):
                connection.execute("INSERT INTO t (k, v) VALUES (1, zeroblob(9000))")
                assert primary.db.position.txid == number + 1
            assert not primary.capture.raw.pending
            check_replay(directory, intact(connection))
    finally:
        primary.close()


def test_a_copy_with_holes_is_logged_as_it_is(primary: Primary) -> None:
    """``cp --sparse`` writes no zeros: it cuts the file and gives it its size back."""
    with closing(primary.connect()) as connection:
        execute(connection, list(SCHEMA))
        connection.execute("INSERT INTO t (k, v) VALUES (1, randomblob(20000))")
    image = bytearray(primary.dir.database.read_bytes())
    size = primary.db.page_size
    hole = 3 * size
    image[hole : hole + size] = bytes(size)
    capture = primary.capture
    capture.database_truncate(primary.fd, 0, 1)
    capture.database_truncate(primary.fd, len(image), 1)
    for start, end in (0, hole), (hole + size, len(image)):
        capture.database_write(primary.fd, start, bytes(image[start:end]), 1)
    finish(capture.database_flush(1))
    assert not capture.raw.pending
    assert primary.dir.database.read_bytes() == image
    _, pages, _ = replay(primary.dir.log)
    assert b"".join(pages[pgno] for pgno in sorted(pages)) == image
