"""What lies in the data directory: log segments, page checksums, and all that recovery reads."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import tempfile
from contextlib import closing
from pathlib import Path

import xxhash

from litefs._core.pagesums import HEADER_SIZE, PageSums
from litefs.errors import FormatError, LiteFSError, LogCorrupt, PositionMismatch
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import ImageReader, LogReader, newest_images
from litefs.store.recovery import recover
from litefs.store.segments import (
    RECORD_HEAD,
    RECORD_HEAD_SIZE,
    SEGMENT_HEADER_SIZE,
    extents,
    record_end,
    record_hash,
    segment_path,
)
from litefs.store.sums import GRANULE, SumsFile
from litefs.types import START
from tests.fuzz.sqlite import resum
from tests.fuzz.target import Target, exact
from tests.store.support import Writer

_PAGE = 512


def _closed_database() -> dict[str, bytes]:
    """Files of a database with a few transactions, some of them not in the database file."""
    with tempfile.TemporaryDirectory(prefix="litefs-fuzz-") as root:
        directory = DatabaseDir("app.db", Path(root, "db"))
        directory.create()
        writer = Writer(directory, Path(root, "source.db"), _PAGE)
        writer.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        writer.run("INSERT INTO t (v) VALUES (zeroblob(900)), ('x')")
        writer.checkpoint()
        writer.run("INSERT INTO t (v) VALUES (zeroblob(700))")
        writer.run("DELETE FROM t WHERE id = 1")
        writer.close()
        journal = Path(root, "other.db")
        with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
            sql.executescript(f"PRAGMA page_size={_PAGE}; PRAGMA cache_size=1; CREATE TABLE t (v); BEGIN;")
            sql.executemany("INSERT INTO t VALUES (zeroblob(700))", [()] * 5)
            hot = Path(f"{journal}-journal").read_bytes()
            sql.execute("ROLLBACK")
        (segment,) = directory.log.iterdir()
        return {
            "database": directory.database.read_bytes(),
            "sums": directory.sums.read_bytes().rstrip(b"\0"),
            "log": segment.read_bytes().rstrip(b"\0") + bytes(8),
            "database-journal": hot,
        }


_FILES = _closed_database()


# --- log segments


def rehash(data: bytes) -> bytes:
    """With the right hashes in the segment's header and in every record whose length is possible."""
    out = bytearray(data)
    if len(out) < SEGMENT_HEADER_SIZE:
        return data
    out[56:64] = xxhash.xxh3_64_intdigest(bytes(out[:56])).to_bytes(8, "little")
    at = SEGMENT_HEADER_SIZE
    while at + RECORD_HEAD_SIZE < len(out):
        size, _ = RECORD_HEAD.unpack_from(out, at)
        start = at + RECORD_HEAD_SIZE
        if not 0 < size <= len(out) - start:
            break
        out[at : at + RECORD_HEAD_SIZE] = RECORD_HEAD.pack(
            size, record_hash(bytes(out[start : start + size]), size)
        )
        at = record_end(at, size)
    return bytes(out)


def _run_log(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="litefs-fuzz-", dir=_scratch()) as root:
        directory = Path(root)
        segment_path(directory, 1).write_bytes(data)
        with LogReader(directory) as reader:
            if reader.seek(START):
                for entry in reader.read(3):
                    with entry.open() as body:
                        assert body.read() == entry.body
        tip = 0
        for extent in extents(directory, 0, verify=True):
            tip = extent.txid_max
        with ImageReader() as images:
            for pgno, image in list(newest_images(directory, 0, tip, page_size=_PAGE).items())[:40]:
                images.page(pgno, image, _PAGE)
        log = Log.open(directory)
        try:
            assert log.tip.txid == tip or tip == 0  # without a record it is where the header begins
        finally:
            log.close()
        log = Log.open(directory)  # what was cut is gone
        log.close()
        assert log.cut is None


# --- page checksums


def _run_sums(data: bytes) -> None:
    """As memory, with any content; then as a file."""
    stopped_inside = len(data) > 16 and data[16] & 1
    padded = data.ljust(HEADER_SIZE + 64, b"\0")
    buffer = exact(padded[: len(padded) // 8 * 8])
    sums = PageSums(buffer)
    try:
        if not stopped_inside:  # readers wait a second for it, see tests/kernels/test_pagesums.py
            sums.snapshot()
            sums.wal()
        sums.recompute_total()
        for pgno in (0, 1, 2, sums.capacity, sums.capacity + 1, sums.page_count, 0xFFFFFFFF):
            sums.get(pgno)
            assert not sums.matches(pgno, b"\xee" * _PAGE)
        for commit in (0, 1, 2, sums.page_count, sums.capacity, 0xFFFFFFFF):
            _transaction(sums, commit)
    finally:
        sums.release()
    with tempfile.NamedTemporaryFile(prefix="litefs-fuzz-", dir=_scratch()) as raw:
        raw.write(data)
        if len(data) > HEADER_SIZE:
            raw.truncate(GRANULE)
        raw.flush()
        try:
            file = SumsFile(Path(raw.name))
        except FormatError as error:
            raise FormatError(str(error).replace(raw.name, "sums")) from error
        file.close()


def _transaction(sums: PageSums, commit: int) -> None:
    numbers = struct.pack("=2I", 1, 2)
    try:
        post, new = sums.preview(numbers, bytes(2 * min(sums.page_size, 65536)), commit)
        sums.commit(numbers, new, commit, sums.txid, post, 0, 0)
    except ValueError as error:
        if "page" not in str(error):
            raise


# --- recovery

_DAMAGED = ("database", "sums", "log", "database-journal")
_PLAIN = range(8)
"""First byte of an input for recovery: which file follows, and whether the journal is there."""


def _repair_recovery(data: bytes) -> bytes:
    """With the right checksums in a journal or a log; ``sums`` has none, and a database those of its log."""
    repairs = {"database-journal": resum, "log": rehash}
    repair = repairs.get(_DAMAGED[data[0] % 4]) if data else None
    return data[:1] + repair(data[1:]) if repair else data


def _run_recovery(data: bytes) -> None:
    which = data[0] if data else 0
    files = dict(_FILES)
    if which & 4:
        del files["database-journal"]
    files[_DAMAGED[which % 4]] = data[1:]
    with tempfile.TemporaryDirectory(prefix="litefs-fuzz-", dir=_scratch()) as root:
        directory = DatabaseDir("app.db", Path(root))
        directory.create()
        for name, content in files.items():
            path = segment_path(directory.log, 1) if name == "log" else directory.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        os.truncate(directory.sums, -(-max(len(files["sums"]), 1) // GRANULE) * GRANULE)
        try:
            recover(directory)
            again = recover(directory)
        except LiteFSError as error:
            raise type(error)(str(error).replace(root, "DATA")) from error
        assert not again.damaged or shutil.disk_usage(root).free > 0


def _scratch() -> str | None:
    """Memory, if there is a file system in it: nothing here has to outlive a power failure."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


TARGETS = (
    Target(
        "log",
        (_FILES["log"],),
        _run_log,
        (LogCorrupt, FormatError, PositionMismatch),
        "offset|byte|log",
        rehash,
        slow=True,
    ),
    Target("sums", (_FILES["sums"],), _run_sums, (FormatError,), "sums", slow=True),
    Target(
        "recovery",
        tuple(bytes([n]) + _FILES[_DAMAGED[n % 4]] for n in _PLAIN),
        _run_recovery,
        (LiteFSError,),
        "DATA|offset|byte",
        _repair_recovery,
        slow=True,
    ),
)
