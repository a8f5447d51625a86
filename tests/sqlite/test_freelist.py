"""The list of unused pages, as SQLite itself keeps it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litefs.sqlite.freelist import free_leaves


def reader(image: bytes, size: int) -> Callable[[int], bytes]:
    return lambda pgno: image[(pgno - 1) * size : pgno * size]


@pytest.mark.parametrize("size", [512, 4096])
def test_leaves_are_the_pages_that_sqlite_counts_without_the_trunks(tmp_path: Path, size: int) -> None:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={size}")
        db.execute("CREATE TABLE t (v)")
        db.execute("CREATE TABLE kept (v)")
        db.execute("INSERT INTO t VALUES (zeroblob(?))", (size * 700,))
        db.execute("INSERT INTO kept VALUES (zeroblob(?))", (size * 20,))
        db.execute("DROP TABLE t")
        (count,) = db.execute("PRAGMA freelist_count").fetchone()
    image = path.read_bytes()
    leaves = free_leaves(reader(image, size), len(image) // size)
    assert count > 690
    # SQLite leaves six slots of a trunk empty, for the sake of old versions.
    trunks = count - len(leaves)
    assert trunks == -(-count // (size // 4 - 7))
    # Their content is nobody's: SQLite finds the database as it was with all of them overwritten.
    broken = bytearray(image)
    for pgno in leaves:
        broken[(pgno - 1) * size : pgno * size] = b"\xff" * size
    path.write_bytes(broken)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_database_without_unused_pages() -> None:
    assert free_leaves(reader(bytes(1024), 512), 2) == set()


def test_garbage_ends_the_walk() -> None:
    rng = random.Random(7)
    for _ in range(300):
        image = rng.randbytes(512 * 8)
        image = image[:32] + rng.randrange(10).to_bytes(4, "big") + image[36:]
        assert all(1 < pgno <= 8 for pgno in free_leaves(reader(image, 512), 8))


def test_a_loop_of_trunks_ends() -> None:
    page1 = bytes(32) + (2).to_bytes(4, "big") + bytes(476)
    trunk = (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(500)
    assert free_leaves(reader(page1 + trunk + bytes(512), 512), 3) == {3}
