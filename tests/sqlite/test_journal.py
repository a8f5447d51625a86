"""Rollback journals: what our plan does to a database must be what SQLite does, byte for byte.

A client is killed in the middle of a transaction that has spilled; of the files it left, one copy is rolled
back by SQLite and another by us, whole and after damage to the journal.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litefs.sqlite.journal import (
    MAGIC,
    NO_SYNC,
    JournalHeader,
    is_hot,
    page_checksum,
    rollback_plan,
    super_journal_name,
    zeroes_header,
)
from litefs.sqlite.locks import lock_pgno

DYING = """
import os, sqlite3, sys
path, page_size, sync, psow = sys.argv[1:]
db = sqlite3.connect(f"file:{path}?psow={psow}", uri=True, isolation_level=None)
db.execute(f"PRAGMA page_size={page_size}")
db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
db.executemany("INSERT INTO t VALUES(?, randomblob(300))", ((i,) for i in range(400)))
db.execute(f"PRAGMA synchronous={sync}")
db.execute("PRAGMA cache_size=5")
db.execute("BEGIN")
for low in range(0, 400, 80):
    db.execute("UPDATE t SET b=randomblob(300) WHERE a>=? AND a<?", (low, low + 80))
db.executemany("INSERT INTO t VALUES(?, randomblob(300))", ((i,) for i in range(400, 500)))
os._exit(0)
"""


def leave_hot_journal(directory: Path, page_size: int, sync: str, psow: int) -> Path:
    """A database with a hot journal, as a killed client leaves it."""
    path = directory / "dying.db"
    subprocess.run(
        [sys.executable, "-c", DYING, str(path), str(page_size), sync, str(psow)], check=True, timeout=30
    )
    assert path.with_name("dying.db-journal").stat().st_size > 0
    return path


def reader(data: bytes) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        return data[offset : offset + length]

    return read


def rolled_back_by_us(database: bytes, journal: bytes, super_exists: bool = False) -> bytes:
    plan = rollback_plan(reader(journal), len(journal))
    if not is_hot(journal[:1]) or plan is None or (plan.super_journal is not None and not super_exists):
        return database
    result = bytearray(database[: plan.initial_pages * plan.page_size])
    result.extend(bytes(plan.initial_pages * plan.page_size - len(result)))
    for pgno, image in plan.records:
        assert 1 <= pgno <= plan.initial_pages
        assert len(image) == plan.page_size
        result[(pgno - 1) * plan.page_size : pgno * plan.page_size] = image
    return bytes(result)


def rolled_back_by_sqlite(directory: Path, database: bytes, journal: bytes, psow: int) -> bytes:
    path = directory / "sqlite.db"
    path.write_bytes(database)
    journal_path = path.with_name("sqlite.db-journal")
    journal_path.write_bytes(journal)
    uri = f"file:{path}?psow={psow}"
    # A torn rollback may leave what cannot be read; the bytes are compared all the same.
    with closing(sqlite3.connect(uri, uri=True)) as db, contextlib.suppress(sqlite3.DatabaseError):
        db.execute("SELECT count(*) FROM t").fetchall()
    journal_path.unlink(missing_ok=True)
    return path.read_bytes()


CASES = [(512, "FULL", 1), (1024, "NORMAL", 0), (4096, "FULL", 0), (4096, "OFF", 1), (65536, "NORMAL", 1)]


@pytest.mark.parametrize(("page_size", "sync", "psow"), CASES)
def test_rolls_back_as_sqlite_does(tmp_path: Path, page_size: int, sync: str, psow: int) -> None:
    path = leave_hot_journal(tmp_path, page_size, sync, psow)
    database, journal = path.read_bytes(), path.with_name("dying.db-journal").read_bytes()
    header = JournalHeader.parse(journal)
    assert (header.record_count == NO_SYNC) == (sync == "OFF")
    assert header.sector_size == (512 if psow else 4096)
    by_sqlite = rolled_back_by_sqlite(tmp_path, database, journal, psow)
    assert by_sqlite != database
    assert rolled_back_by_us(database, journal) == by_sqlite


@pytest.mark.parametrize(("page_size", "sync", "psow"), CASES[:4])
def test_stops_where_sqlite_stops_in_a_damaged_journal(
    tmp_path: Path, page_size: int, sync: str, psow: int
) -> None:
    path = leave_hot_journal(tmp_path, page_size, sync, psow)
    database, whole = path.read_bytes(), path.with_name("dying.db-journal").read_bytes()
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(15):
        journal = bytearray(whole)
        kind = rng.randrange(7)
        if kind == 0:
            del journal[rng.randrange(len(journal)) :]
        elif kind == 1:
            journal[rng.randrange(len(journal))] ^= 1 << rng.randrange(8)
        elif kind == 2:  # the fields of the first header, page and sector size included
            journal[rng.randrange(28)] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del journal[rng.choice([28, 511, 512, 513, 600, 4095, 4096, 4100]) :]
        elif kind == 4:  # every later header is zeroed: its records do not count
            at = bytes(journal).find(MAGIC, 8)
            journal[at : at + 8] = bytes(8) if at > 0 else journal[at : at + 8]
        elif kind == 5:  # another size in a later header: the first one bounds the records of all
            at = bytes(journal).find(MAGIC, 8)
            if at > 0:
                struct.pack_into(">I", journal, at + 16, rng.choice([1, 100, 5000]))
        else:  # the page number of the first record
            sector = struct.unpack_from(">I", journal, 20)[0]
            pgno = rng.choice([0, lock_pgno(page_size), 1, 2**32 - 1])
            struct.pack_into(">I", journal, sector, pgno)
        if _is_beyond_comparison(bytes(journal), page_size, psow):
            continue
        expected = rolled_back_by_sqlite(tmp_path, database, bytes(journal), psow)
        assert rolled_back_by_us(database, bytes(journal)) == expected, f"kind {kind}, {len(journal)} bytes"


def _is_beyond_comparison(journal: bytes, page_size: int, psow: int) -> bool:
    """Another page size would change how SQLite reads the database, a huge one of pages fills the disk, and
    without powersafe overwrite SQLite looks for no header in less than 4096 bytes."""
    if not psow and 512 <= len(journal) < 4096:
        return True
    if len(journal) < 28:
        return False
    initial_pages, size = struct.unpack_from(">I4xI", journal, 16)
    return bool(size != page_size or initial_pages > 5000)


def test_several_headers_are_followed(tmp_path: Path) -> None:
    path = leave_hot_journal(tmp_path, 1024, "FULL", 0)
    journal = path.with_name("dying.db-journal").read_bytes()
    headers = [at for at in range(0, len(journal), 4096) if journal[at : at + 8] == MAGIC]
    assert len(headers) >= 2
    plan = rollback_plan(reader(journal), len(journal))
    assert plan is not None
    pages = [pgno for pgno, _ in plan.records]
    total = sum(JournalHeader.parse(journal[at:]).record_count for at in headers)
    assert len(pages) == len(set(pages)) == total


def test_records_that_are_not_synced_count_only_while_the_transaction_lives() -> None:
    header = JournalHeader(0, 77, 9, 512, 512).pack().ljust(512, b"\0")
    page = bytes(range(256)) * 2
    record = struct.pack(">I", 3) + page + struct.pack(">I", page_checksum(77, page))
    journal = header + record + record[:-1]
    hot = rollback_plan(reader(journal), len(journal))
    live = rollback_plan(reader(journal), len(journal), live=True)
    assert hot is not None
    assert live is not None
    assert list(hot.records) == []
    assert list(live.records) == [(3, page)]
    assert (live.initial_pages, live.page_size, live.super_journal) == (9, 512, None)


def test_checksum_takes_every_200th_byte_from_the_end() -> None:
    page = bytearray(512)
    assert page_checksum(0xFFFFFFFF, page) == 0xFFFFFFFF
    for at in range(512):
        page[:] = bytes(512)
        page[at] = 3
        assert page_checksum(0xFFFFFFFF, page) == (2 if at in (312, 112) else 0xFFFFFFFF), at


def trailer(name: bytes, page_size: int) -> bytes:
    """The end of a journal that names a super-journal."""
    signed = sum(byte - 256 if byte > 127 else byte for byte in name) & 0xFFFFFFFF
    return struct.pack(">I", lock_pgno(page_size)) + name + struct.pack(">II", len(name), signed) + MAGIC


@pytest.mark.parametrize("name", ["app.db-mj0123ABCD", "dät-mj00000000"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_super_journal_means_committed(tmp_path: Path, name: str, exists: bool) -> None:
    path = leave_hot_journal(tmp_path, 4096, "FULL", 1)
    database, journal = path.read_bytes(), path.with_name("dying.db-journal").read_bytes()
    super_path = tmp_path / name
    journal += trailer(str(super_path).encode(), 4096)
    if exists:
        super_path.write_bytes(str(tmp_path / "sqlite.db-journal").encode() + b"\0")
    assert super_journal_name(reader(journal), len(journal)) == str(super_path)
    by_sqlite = rolled_back_by_sqlite(tmp_path, database, journal, 1)
    assert (by_sqlite != database) == exists
    assert rolled_back_by_us(database, journal, exists) == by_sqlite


def test_a_damaged_super_journal_name_is_none() -> None:
    good = bytes(512) + trailer(b"/x/app.db-mj00000000", 512)
    assert super_journal_name(reader(good), len(good)) == "/x/app.db-mj00000000"
    for at in range(516, len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        assert super_journal_name(reader(bytes(bad)), len(bad)) is None, at
    for size in range(16 + 20 - 1):
        assert super_journal_name(reader(good[-size:] if size else b""), size) is None


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0), (20, 31), (20, 48), (20, 131072), (24, 256), (24, 131072), (24, 1000), (24, 0)]
)
def test_a_header_that_sqlite_would_not_follow_gives_no_plan(at: int, value: int) -> None:
    journal = bytearray(JournalHeader(0, 1, 1, 512, 512).pack().ljust(512, b"\0"))
    assert rollback_plan(reader(bytes(journal)), 512) is not None
    struct.pack_into(">I", journal, at, value)
    assert rollback_plan(reader(bytes(journal)), 512) is None
    if (at, value) == (24, 0):
        plan = rollback_plan(reader(bytes(journal)), 512, page_size=1024)
        assert plan is not None
        assert plan.page_size == 1024


def test_what_ends_a_transaction() -> None:
    assert is_hot(b"\xd9")
    assert not is_hot(b"\0")
    assert not is_hot(b"")
    assert zeroes_header(0, bytes(28))
    assert not zeroes_header(0, MAGIC)
    assert not zeroes_header(1, bytes(28))
    assert not zeroes_header(0, b"")
