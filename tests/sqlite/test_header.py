"""The database header, of databases that SQLite made and of damaged ones."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from litefs.errors import FormatError
from litefs.sqlite import header, locks
from litefs.sqlite.header import DatabaseHeader


def build(path: Path, page_size: int, mode: str) -> bytes:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={page_size}")
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE t(a)")
        db.execute("INSERT INTO t VALUES(zeroblob(100000))")
    return path.read_bytes()


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 32768, 65536])
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_parses_what_sqlite_wrote(tmp_path: Path, page_size: int, mode: str) -> None:
    data = build(tmp_path / "app.db", page_size, mode)
    parsed = DatabaseHeader.parse(data)
    assert parsed.page_size == page_size
    assert parsed.is_wal == (mode == "WAL")
    assert parsed.write_version == parsed.read_version
    assert parsed.page_count == parsed.trusted_page_count(0) == len(data) // page_size


def test_a_size_that_was_left_behind_is_not_believed(tmp_path: Path) -> None:
    data = bytearray(build(tmp_path / "app.db", 512, "DELETE"))
    counter = struct.unpack_from(">I", data, 24)[0]
    struct.pack_into(">I", data, 24, counter + 1)
    assert DatabaseHeader.parse(data).trusted_page_count(512 * 77 + 3) == 77
    struct.pack_into(">I", data, 24, counter)
    struct.pack_into(">I", data, 28, 0)
    assert DatabaseHeader.parse(data).trusted_page_count(512 * 77) == 77


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"s"), (15, b" "), (16, b"\x01\xff"), (16, b"\x00\x00"), (16, b"\x01\x00"), (19, b"\x03"),
     (20, b"\x21"), (21, b"\x41"), (22, b"\x21"), (23, b"\x21")],
)  # fmt: skip
def test_refuses_what_sqlite_refuses(tmp_path: Path, at: int, value: bytes) -> None:
    path = tmp_path / "app.db"
    data = bytearray(build(path, 512, "DELETE"))
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.DatabaseError):
        db.execute("SELECT * FROM t").fetchall()
    with pytest.raises(FormatError, match=r"offset \d+"):
        DatabaseHeader.parse(data)


def test_refuses_a_short_header() -> None:
    with pytest.raises(FormatError, match="99 bytes"):
        DatabaseHeader.parse(bytes(99))


def test_page_sizes_and_lock_page() -> None:
    sizes = [size for size in range(70000) if header.is_page_size(size)]
    assert sizes == [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
    assert locks.lock_pgno(4096) == 262145
    for size in sizes:
        first = (locks.lock_pgno(size) - 1) * size
        assert first <= locks.PENDING
        assert first + size >= locks.SHARED_FIRST + locks.SHARED_SIZE


def test_lock_bytes_of_the_shared_memory() -> None:
    assert [locks.read_lock(i) for i in range(5)] == [123, 124, 125, 126, 127]
    assert (locks.SHM_WRITE, locks.SHM_CKPT, locks.SHM_RECOVER, locks.SHM_DMS) == (120, 121, 122, 128)
    assert locks.SHM_READ_LAST == 127
    for mark in (-1, 5):
        with pytest.raises(ValueError, match="read mark"):
            locks.read_lock(mark)
