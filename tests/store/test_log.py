"""The log's writer: what is in a segment, what opening it cuts, what it refuses."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.errors import FormatError, LogCorrupt, LogSyncFailed, PositionMismatch
from litefs.ltx import Header, encode
from litefs.store import fileops, log
from litefs.store.log import Log
from litefs.store.reader import LogReader
from litefs.store.segments import PREALLOCATE_MIN, RECORD_HEAD_SIZE, extents, list_segments, segment_path
from litefs.types import CHECKSUM_FLAG, START, Point, Position
from tests.store.support import pack

PAGE = 512


def record(txid: int, pages: int = 1, images: bytes | None = None) -> tuple[bytes, int]:
    """A record (of random content) that follows ``checksum(txid - 1)``, and its post-apply checksum."""
    post = checksum(txid)
    first = 1 if txid == 1 else 2
    commit = pages if txid == 1 else 10_000
    header = Header(0, PAGE, commit, txid, txid, txid, checksum(txid - 1))
    numbers = pack(*range(first, first + pages))
    return encode(header, numbers, images or os.urandom(PAGE * pages), post), post


def checksum(txid: int) -> int:
    return CHECKSUM_FLAG | txid * 7919 if txid else 0


def append(writer: Log, count: int, pages: int = 1) -> None:
    for txid in range(writer.tip.txid + 1, writer.tip.txid + 1 + count):
        body, post = record(txid, pages)
        writer.append(body, txid, post)


def txids(directory: Path) -> list[int]:
    return [extent.txid_max for extent in extents(directory, 0, verify=True)]


@pytest.fixture
def writer(tmp_path: Path) -> Log:
    return Log.create(tmp_path / "log", START, PAGE)


def test_empty_log_is_at_its_base(tmp_path: Path) -> None:
    base = Point(41, checksum(41), 77)
    Log.create(tmp_path / "log", base, PAGE).close()
    reopened = Log.open(tmp_path / "log")
    assert (reopened.tip, reopened.first_txid, reopened.page_size, reopened.cut) == (base, 42, PAGE, None)
    with pytest.raises(FileExistsError):
        Log.create(tmp_path / "log", base, PAGE)
    reopened.close()


def test_append_and_reopen(writer: Log) -> None:
    append(writer, 30)
    with pytest.raises(PositionMismatch):
        writer.append(record(30)[0], 30, 1)
    path = segment_path(writer.directory, 1)
    assert path.stat().st_size % 8 == 0
    killed = Log.open(writer.directory)  # as after a kill: the preallocated zeros are still there
    assert killed.tip.position == Position(30, checksum(30))
    assert killed.cut is None
    append(killed, 2)
    killed.close()
    writer._fd = os.open(os.devnull, os.O_RDWR)
    writer.close()
    assert txids(writer.directory) == list(range(1, 33))


def test_every_truncation_of_the_tail_is_cut_to_a_record(
    writer: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fileops, "fdatasync", lambda fd: None)
    for txid in range(1, 4):
        writer.append(record(txid, images=bytes(PAGE))[0], txid, checksum(txid))
    writer.close()
    data = segment_path(writer.directory, 1).read_bytes()
    bodies = [extent.body_offset + extent.size for extent in extents(writer.directory, 0)]
    copy = tmp_path / "copy"
    for size in range(64, len(data)):
        for zeros in (b"", bytes(4096)):
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            torn = data[:size] + zeros
            segment_path(copy, 1).write_bytes(torn)
            whole = sum(torn[:end] == data[:end] for end in bodies)
            opened = Log.open(copy)
            assert opened.tip.txid == whole, size
            if size % 8 == 3:
                append(opened, 1)
                assert txids(copy) == list(range(1, whole + 2)), size
            opened.close()


def test_bit_flips_are_cut_at_the_tail_and_refused_before(
    writer: Log, tmp_path: Path, rng: random.Random
) -> None:
    append(writer, 6)
    writer.close()
    data = segment_path(writer.directory, 1).read_bytes()
    last = list(extents(writer.directory, 0))[-1]
    for _ in range(300):
        at = rng.randrange(len(data))
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        segment_path(copy, 1).write_bytes(bytes(damaged))
        padding = at >= last.body_offset + last.size
        try:
            opened = Log.open(copy)
        except LogCorrupt as error:
            refused = str(error)
        else:
            refused = ""
            opened.close()
        if refused:
            assert at < last.offset
            assert "offset" in refused
            continue
        if at >= last.offset and not padding:
            assert opened.tip.txid == 5
            assert opened.cut is not None
            assert "cut at offset" in str(opened.cut)
        else:
            # Only the padding between records carries nothing.
            assert opened.tip.txid == 6, at


def test_a_flip_in_an_earlier_segment_is_refused_when_it_is_read(
    writer: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 2048)
    append(writer, 10)
    writer.close()
    first = list_segments(writer.directory)[0][1]
    data = bytearray(first.read_bytes())
    data[200] ^= 1
    first.write_bytes(bytes(data))
    with LogReader(writer.directory) as reader:
        assert reader.seek(START)
        with pytest.raises(LogCorrupt, match="offset 64"):
            reader.read(10)


def test_lost_writes_after_a_power_failure_are_cut_unless_they_were_synced(writer: Log) -> None:
    append(writer, 30, pages=2)
    path = segment_path(writer.directory, 1)
    found = list(extents(writer.directory, 0))
    with path.open("r+b") as file:
        # The second page of the file never reached the disk, later ones did.
        file.seek(4096)
        file.write(bytes(4096))
    torn = sum(extent.end <= 4096 for extent in found)
    with pytest.raises(LogCorrupt, match="a whole one"):
        Log.open(writer.directory, synced_txid=torn + 1)
    opened = Log.open(writer.directory, synced_txid=torn)
    assert opened.tip.txid == torn
    assert opened.cut is not None
    opened.close()
    assert path.stat().st_size == found[torn].offset
    writer.close()


def test_rotation_by_size_and_age(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 4096)
    append(writer, 40)
    assert len(list_segments(writer.directory)) > 3
    monkeypatch.setattr(log, "SEGMENT_BYTES", 1 << 20)
    before = len(list_segments(writer.directory))
    writer._expires = 0.0
    append(writer, 2)
    assert len(list_segments(writer.directory)) == before + 1
    writer.close()
    assert txids(writer.directory) == list(range(1, 43))
    reopened = Log.open(writer.directory)
    assert reopened.tip.position == Position(42, checksum(42))
    reopened.close()


def test_a_segment_that_a_crash_left_unborn_is_removed(writer: Log) -> None:
    append(writer, 2)
    writer.close()
    segment_path(writer.directory, 3).write_bytes(bytes(PREALLOCATE_MIN))
    reopened = Log.open(writer.directory)
    assert reopened.tip.txid == 2
    assert reopened.cut is not None
    append(reopened, 1)
    reopened.close()
    assert txids(writer.directory) == [1, 2, 3]


def test_a_used_segment_without_header_is_refused(writer: Log) -> None:
    append(writer, 2)
    writer.close()
    segment_path(writer.directory, 3).write_bytes(bytes(100) + b"x")
    with pytest.raises(LogCorrupt, match=r"0000000000000003\.seg: offset 0"):
        Log.open(writer.directory)


def test_a_full_disk_leaves_the_log_as_it_was(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    append(writer, 1)
    state = (writer.tip, writer._end)

    def no_zeros(fd: int, start: int, end: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    writer._allocated = writer._end
    with monkeypatch.context() as patch:
        patch.setattr(fileops, "write_zeros", no_zeros)
        with pytest.raises(OSError, match="full"):
            append(writer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "io")))
        with pytest.raises(OSError, match="io"):
            append(writer, 1)
    assert (writer.tip, writer._end) == state
    append(writer, 3)
    writer.close()
    assert txids(writer.directory) == [1, 2, 3, 4]


def test_preallocation_falls_back_to_what_is_needed(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fileops.write_zeros

    def little(fd: int, start: int, end: int) -> None:
        if end - start > 8192:
            raise OSError(errno.ENOSPC, "full")
        real(fd, start, end)

    monkeypatch.setattr(fileops, "write_zeros", little)
    append(writer, 5)
    writer.close()
    assert txids(writer.directory) == [1, 2, 3, 4, 5]


def test_big_records_come_in_pieces(writer: Log) -> None:
    append(writer, 1)
    body, post = record(2, pages=6000)
    assert len(body) > 2 << 20
    with writer.begin() as big:
        for start in range(0, len(body), 100_000):
            big.write(body[start : start + 100_000])
        with pytest.raises(RuntimeError, match="another record"):
            writer.append(record(3)[0], 3, 0)
        assert txids(writer.directory) == [1]
        big.commit(2, post)
    append(writer, 1)
    body, post = record(4, pages=3000)
    writer.append(body, 4, post)
    append(writer, 1)
    writer.close()
    assert txids(writer.directory) == [1, 2, 3, 4, 5]
    with LogReader(writer.directory) as reader:
        assert reader.seek(reader.point_at(3) or START)
        assert reader.read(4)[0].body == body


@pytest.mark.parametrize("pages", [1, 50, 400])
def test_a_big_record_may_be_begun_anew(writer: Log, pages: int) -> None:
    append(writer, 1)
    body, post = record(2, pages)
    with writer.begin() as big:
        big.write(b"LTX1" + os.urandom(200_000))
        big.rewind()
        big.write(body)
        big.commit(2, post)
    killed = Log.open(writer.directory)
    assert (killed.tip, killed.cut) == (writer.tip, None)
    killed.close()
    append(writer, 2)
    writer.close()
    assert txids(writer.directory) == [1, 2, 3, 4]
    with LogReader(writer.directory) as reader:
        assert reader.seek(reader.point_at(1) or START)
        assert reader.read(2)[0].body == body


def test_an_aborted_big_record_leaves_nothing(writer: Log) -> None:
    append(writer, 1)
    with writer.begin() as big:
        big.write(os.urandom(300_000))
    assert Log.open(writer.directory).tip.txid == 1
    big = writer.begin()
    big.write(b"LTX1" + os.urandom(200_000))
    big.abort()
    big.abort()
    append(writer, 2)
    killed = Log.open(writer.directory)
    assert (killed.tip.txid, killed.cut) == (3, None)
    killed.close()
    writer.close()


def test_a_kill_before_the_head_leaves_nothing(writer: Log) -> None:
    append(writer, 1)
    big = writer.begin()
    big.write(record(2, pages=3000)[0])
    killed = Log.open(writer.directory)
    assert killed.tip.txid == 1
    append(killed, 1)
    killed.close()
    assert txids(writer.directory) == [1, 2]


@pytest.mark.parametrize("synced", [0, 4])
def test_a_failed_sync_is_not_repeated_on_that_file(
    writer: Log, monkeypatch: pytest.MonkeyPatch, synced: int
) -> None:
    append(writer, synced)
    writer.sync()
    append(writer, 3)
    synced_files: list[int] = []
    old = os.fstat(writer._fd).st_ino

    def fail(fd: int) -> None:
        synced_files.append(os.fstat(fd).st_ino)
        if os.fstat(fd).st_ino == old:
            raise OSError(errno.EIO, "io")
        os.fdatasync(fd)

    monkeypatch.setattr(fileops, "fdatasync", fail)
    with pytest.raises(LogSyncFailed):
        writer.sync()
    assert writer.synced_txid == synced
    append(writer, 2)
    writer.sync()
    assert synced_files.count(old) == 1
    assert writer.synced_txid == synced + 5
    # What the old file may have lost at a power failure is all in the new one.
    for first, path in list_segments(writer.directory):
        if path.stat().st_ino == old:
            assert first < synced + 1
            os.truncate(path, path.stat().st_size - 100)
    writer.close()
    assert txids(writer.directory) == list(range(1, synced + 6))
    reopened = Log.open(writer.directory)
    assert reopened.tip.txid == synced + 5
    reopened.close()


def test_records_that_a_failed_sync_took_are_missed(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    append(writer, 2)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "io")

    with monkeypatch.context() as patch:
        patch.setattr(fileops, "fdatasync", fail)
        with pytest.raises(LogSyncFailed):
            writer.sync()
    os.pwrite(writer._fd, bytes(4096), 64)
    with pytest.raises(LogSyncFailed, match="can no longer be read"):
        append(writer, 1)


def test_a_sync_that_keeps_failing_refuses_appends(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    append(writer, 2)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "io")

    monkeypatch.setattr(fileops, "fdatasync", fail)
    for _ in range(2):
        with pytest.raises(LogSyncFailed):
            writer.sync()
    with pytest.raises(LogSyncFailed):
        append(writer, 1)
    assert writer.tip.txid == 2


def test_a_trusted_tip_is_not_read_again(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    append(writer, 5)
    tip = writer.tip
    writer.close()
    hashed: list[int] = []
    from litefs.store import segments

    real: Callable[..., int] = segments.record_hash

    def counting(body: bytes, size: int) -> int:
        hashed.append(size)
        return real(body, size)

    monkeypatch.setattr(segments, "record_hash", counting)
    Log.open(writer.directory, trusted=tip).close()
    assert hashed == []
    Log.open(writer.directory, trusted=Point(4, checksum(4), tip.hash)).close()
    assert len(hashed) >= 5


def test_a_record_that_does_not_chain_is_refused(writer: Log) -> None:
    append(writer, 2)
    body, post = record(9)
    writer.append(body, 9, post)
    writer.close()
    with pytest.raises(LogCorrupt, match="does not follow TXID 0000000000000002"):
        Log.open(writer.directory)


def test_no_log_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Log.open(tmp_path)
    assert RECORD_HEAD_SIZE == 16
    assert issubclass(LogCorrupt, FormatError)
