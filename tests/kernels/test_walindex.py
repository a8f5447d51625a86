"""The wal-index against a plain list of frames, and against SQLite in another process, both ways."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import sqlite3
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs._core.walcursor import wal_checksum
from litefs._core.walindex import (
    HEADER_SIZE,
    READ_MARK_UNUSED,
    REGION_SIZE,
    IndexHeader,
    WalIndex,
    regions_for,
)
from litefs.sqlite.locks import SHM_DMS
from litefs.sqlite.wal import FRAME_HEADER, FrameHeader, WalHeader, frame_offset

CLIENT = """
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=2)
for line in sys.stdin:
    try:
        answer = db.execute(json.loads(line)).fetchall()
    except sqlite3.Error as exc:
        answer = str(exc)
    print(json.dumps(answer), flush=True)
"""


class Client:
    """SQLite in another process."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, sql: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(sql) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()


@contextmanager
def client(path: Path) -> Iterator[Client]:
    result = Client(path)
    try:
        yield result
    finally:
        result.close()


@contextmanager
def mapped(shm: Path) -> Iterator[WalIndex]:
    with shm.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        index = WalIndex(view)
        try:
            yield index
        finally:
            index.release()


def frames_in(wal: Path) -> tuple[WalHeader, list[FrameHeader]]:
    """Header and frame headers of the WAL's generation."""
    data = wal.read_bytes()
    header = WalHeader.parse(data)
    frames = []
    offset = frame_offset(1, header.page_size)
    while offset + FRAME_HEADER + header.page_size <= len(data):
        frame = FrameHeader.parse(data[offset:])
        if (frame.salt1, frame.salt2) != (header.salt1, header.salt2):
            break
        frames.append(frame)
        offset += FRAME_HEADER + header.page_size
    return header, frames


def newest_of(frames: list[FrameHeader]) -> dict[int, int]:
    return {frame.pgno: number for number, frame in enumerate(frames, 1)}


def check_pages(index: WalIndex, frames: list[FrameHeader]) -> None:
    newest = newest_of(frames)
    assert {pgno: index.find(pgno, len(frames)) for pgno in range(1, max(newest) + 2)} == {
        pgno: newest.get(pgno, 0) for pgno in range(1, max(newest) + 2)
    }
    pgnos, numbers = index.newest(len(frames))
    assert array("I", pgnos).tolist() == sorted(newest)
    assert array("I", numbers).tolist() == [newest[pgno] for pgno in sorted(newest)]


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_reads_what_sqlite_wrote(tmp_path: Path, page_size: int) -> None:
    path = tmp_path / "app.db"
    with client(path) as sql:
        sql(f"PRAGMA page_size={page_size}")
        assert sql("PRAGMA journal_mode=WAL") == [["wal"]]
        sql("PRAGMA wal_autocheckpoint=0")
        sql("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        rows = 6000 if page_size == 512 else 30
        insert = f"""WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
                     INSERT INTO t SELECT i, randomblob(700) FROM n"""
        assert sql(insert) == []
        for _ in range(3):
            assert sql("UPDATE t SET b=randomblob(650) WHERE a%7=1") == []
        header, frames = frames_in(tmp_path / "app.db-wal")
        with mapped(tmp_path / "app.db-shm") as index:
            found = index.header()
            assert found is not None
            assert (found.page_size, found.mx_frame, found.n_page) == (
                page_size,
                len(frames),
                frames[-1].commit,
            )
            assert found.salt == (header.salt1, header.salt2)
            assert found.frame_cksum == (frames[-1].c1, frames[-1].c2)
            assert found.big_end_cksum == header.big_endian
            assert IndexHeader.parse((tmp_path / "app.db-shm").read_bytes()[:HEADER_SIZE]) == found
            check_pages(index, frames)
            assert index.backfill == 0
            assert sql("PRAGMA wal_checkpoint(PASSIVE)") == [[0, len(frames), len(frames)]]
            assert index.backfill == index.backfill_attempted == len(frames)
            assert index.read_mark(0) == 0
            assert any(index.read_mark(i) == len(frames) for i in range(1, 5))
        if page_size == 512:
            assert regions_for(len(frames)) > 2


def one_page_wal(path: Path) -> int:
    """A database whose WAL holds a few transactions, without an index. Returns the first commit frame."""
    build = path.with_name("build.db")
    db = sqlite3.connect(build, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("CREATE TABLE t(a)")
    for value in range(5):
        db.execute("INSERT INTO t VALUES(?)", (value,))
    path.write_bytes(build.read_bytes())
    path.with_name(path.name + "-wal").write_bytes(build.with_name("build.db-wal").read_bytes())
    db.close()
    _, frames = frames_in(path.with_name(path.name + "-wal"))
    return next(number for number, frame in enumerate(frames, 1) if frame.commit)


def test_sqlite_reads_what_we_wrote(tmp_path: Path) -> None:
    """It sees just the frames that the index publishes, though the WAL holds more, and writes on."""
    path = tmp_path / "app.db"
    first = one_page_wal(path)
    header, frames = frames_in(tmp_path / "app.db-wal")
    shm = tmp_path / "app.db-shm"
    shm.write_bytes(bytes(REGION_SIZE))
    with shm.open("r+b") as file:
        # With the dead man's switch held no client thinks it is alone, and rebuilds the index.
        fcntl.lockf(file, fcntl.LOCK_SH, 1, SHM_DMS)
        with mapped(shm) as index, client(path) as sql:
            index.set_read_mark(0, 0)
            for i in range(1, 5):
                index.set_read_mark(i, READ_MARK_UNUSED)
            index.append(1, array("I", [frame.pgno for frame in frames[:first]]))
            state = IndexHeader(
                change=1,
                page_size=header.page_size,
                mx_frame=first,
                n_page=frames[first - 1].commit,
                frame_cksum=(frames[first - 1].c1, frames[first - 1].c2),
                salt=(header.salt1, header.salt2),
            )
            index.publish(state)
            assert sql("SELECT count(*) FROM t") == [[0]]
            index.append(first + 1, array("I", [frame.pgno for frame in frames[first:]]))
            index.publish(
                state._replace(
                    change=2,
                    mx_frame=len(frames),
                    n_page=frames[-1].commit,
                    frame_cksum=(frames[-1].c1, frames[-1].c2),
                )
            )
            assert sql("SELECT count(*) FROM t") == [[5]]
            assert sql("INSERT INTO t VALUES(99)") == []
            now = index.header()
            assert now is not None
            assert now.salt == (header.salt1, header.salt2)
            assert now.mx_frame > len(frames), "SQLite wrote on behind our frames"
            check_pages(index, frames_in(tmp_path / "app.db-wal")[1])
            index.invalidate()
            assert index.header() is None
            assert sql("SELECT count(*) FROM t") == [[6]], "SQLite recovered from the WAL"
            assert index.header() is not None
            assert sql("PRAGMA integrity_check") == [["ok"]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pages=st.sampled_from([8, 1000, 2**32 - 1]),
    steps=st.lists(st.tuples(st.sampled_from("aaarrt"), st.integers(0, 2**16)), max_size=14),
)
def test_finds_as_a_list_of_frames_would(seed: int, pages: int, steps: list[tuple[str, int]]) -> None:
    """Appends, rewinds that leave old entries behind, rewinds with a trim: any of them across regions."""
    rng = random.Random(seed)
    index = WalIndex(bytearray(rng.randbytes(REGION_SIZE) * 4))
    frames: list[int] = []
    for kind, x in steps:
        if kind == "a":
            n = (
                x % 3000 if pages > 8 else x % 40
            )  # one page has at most so many frames: chains are long enough
            more = [rng.randint(1, pages) for _ in range(min(n, index.capacity - len(frames)))]
            if pages == 1000:
                more = [pgno % 1000 + 1 for pgno in range(x, x + len(more))]
            index.append(len(frames) + 1, array("I", more))
            frames += more
        else:
            del frames[x % (len(frames) + 1) :]
            if kind == "t":
                index.trim(len(frames))
        last = len(frames)
        first = rng.randint(1, last + 1)
        newest = {pgno: number for number, pgno in enumerate(frames[first - 1 :], first)}
        pgnos, numbers = index.newest(last, first)
        assert array("I", pgnos).tolist() == sorted(newest)
        assert array("I", numbers).tolist() == [newest[pgno] for pgno in sorted(newest)]
        for pgno in [*rng.sample(sorted(newest), min(20, len(newest))), rng.randint(1, pages)]:
            assert index.find(pgno, last, first) == newest.get(pgno, 0)


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE), st.sampled_from([512, 4096, 65536]))
def test_header_survives_the_round_trip(noise: bytes, page_size: int) -> None:
    change, mx_frame, n_page, c1, c2, s1, s2 = struct.unpack_from("7I", noise)
    header = IndexHeader(
        change=change,
        page_size=page_size,
        mx_frame=mx_frame,
        n_page=n_page,
        frame_cksum=(c1, c2),
        salt=(s1, s2),
        big_end_cksum=noise[-1] & 1,
    )
    packed = header.pack()
    parsed = IndexHeader.parse(packed)
    assert parsed._replace(cksum=(0, 0)) == header
    assert parsed.pack() == packed
    at = noise[-2] % HEADER_SIZE
    damaged = bytearray(packed)
    damaged[at] ^= noise[-3] or 1
    if 4 <= at < 8:  # the unused word is summed too
        with pytest.raises(ValueError, match="checksum"):
            IndexHeader.parse(damaged)
    else:
        with pytest.raises(ValueError, match="wal-index header"):
            IndexHeader.parse(damaged)


@pytest.mark.parametrize("size", [2, 256, 513, 0xFFFF])
def test_a_header_with_an_impossible_page_size_is_not_read(size: int) -> None:
    packed = bytearray(IndexHeader(page_size=512).pack())
    struct.pack_into("=H", packed, 14, size)
    struct.pack_into("=2I", packed, 40, *wal_checksum(packed[:40], 0, 0, False))
    with pytest.raises(ValueError, match=f"wal-index header: page size {size}"):
        IndexHeader.parse(packed)
    index = WalIndex(packed * 2 + bytearray(REGION_SIZE - 96))
    assert index.header() is None


def test_frames_beyond_any_index_do_not_wrap_round() -> None:
    buffer = bytearray(REGION_SIZE)
    index = WalIndex(buffer)
    with pytest.raises(ValueError, match="outside"):
        index.append((1 << 63) - 1, struct.pack("=3I", 1, 2, 3))
    assert not any(buffer)
    assert index.newest(-(1 << 63)) == (b"", b"")


def test_a_header_that_is_being_written_is_not_read() -> None:
    buffer = bytearray(REGION_SIZE)
    index = WalIndex(buffer)
    assert index.header() is None
    old, new = IndexHeader(page_size=512, change=1), IndexHeader(page_size=512, change=2)
    index.publish(old)
    found = index.header()
    assert found is not None
    assert found.change == 1
    buffer[HEADER_SIZE : 2 * HEADER_SIZE] = new.pack()
    assert index.header() is None
    buffer[:HEADER_SIZE] = new.pack()
    assert index.header() == IndexHeader.parse(new.pack())


def test_a_damaged_hash_table_is_an_error_not_a_loop() -> None:
    buffer = bytearray(REGION_SIZE)
    index = WalIndex(buffer)
    index.append(1, array("I", [5]))
    buffer[REGION_SIZE // 2 :] = b"\1\0" * 8192
    with pytest.raises(ValueError, match="no free slot"):
        index.find(9, 1)
    with pytest.raises(ValueError, match="full of wrong entries"):
        index.append(2, array("I", [7]))


def test_bounds() -> None:
    index = WalIndex(bytearray(REGION_SIZE))
    assert (index.capacity, regions_for(0), regions_for(4062), regions_for(4063)) == (4062, 1, 1, 2)
    assert (regions_for(4062 + 4096), regions_for(4062 + 4097)) == (2, 3)
    with pytest.raises(ValueError, match="outside"):
        index.append(4062, array("I", [1, 2]))
    with pytest.raises(ValueError, match="outside"):
        index.find(1, 4063)
    with pytest.raises(ValueError, match="outside"):
        index.newest(4063)
    with pytest.raises(ValueError, match="from frame 0"):
        index.append(0, array("I", [1]))
    with pytest.raises(IndexError):
        index.read_mark(5)
    with pytest.raises(ValueError, match="bytes"):
        WalIndex(bytearray(1000))
    index.rebind(bytearray(2 * REGION_SIZE))
    index.append(4062, array("I", [1, 2]))
    assert (index.find(1, 4063), index.find(2, 4063), index.find(2, 4062)) == (4062, 4063, 0)
    index.release()
    with pytest.raises(ValueError, match="released"):
        index.header()
    with pytest.raises(ValueError, match="released"):
        _ = index.backfill


def test_a_released_map_can_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "shm"
    path.write_bytes(bytes(REGION_SIZE))
    fd = os.open(path, os.O_RDWR)
    try:
        view = mmap.mmap(fd, 0)
    finally:
        os.close(fd)
    index = WalIndex(view)
    with pytest.raises(BufferError):
        view.close()
    index.release()
    view.close()
