"""Damage that checksums of the whole do not show, and fields that only ask for memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.errors import LogCorrupt
from litefs.store import fileops
from litefs.store.damage import mark_damaged
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.store.recovery import recover
from litefs.store.segments import SEGMENT_HEADER_SIZE, SegmentHeader, list_segments
from litefs.store.sums import SumsFile
from litefs.types import START, Point
from tests.fuzz.files import rehash
from tests.fuzz.target import bounded_memory
from tests.store.support import Writer

MakeWriter = Callable[..., Writer]
RECORD_COMMIT = SEGMENT_HEADER_SIZE + 16 + 12
"""Offset of the field "commit" in the first record of a segment."""


@pytest.fixture
def writer(directory: DatabaseDir, make_writer: MakeWriter) -> Writer:
    writer = make_writer(directory, 512)
    writer.fill(6)
    writer.checkpoint()
    return writer


def test_a_damaged_file_whose_sync_failed_is_read_from_the_disk_all_the_same(
    directory: DatabaseDir, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.db.sums_file.distrust()
    mark_damaged(directory)
    writer.db.close()
    reread: list[Path] = []
    monkeypatch.setattr(fileops, "reread", reread.append)
    assert not recover(directory).damaged
    assert reread == [directory.database]
    recover(directory, clean_allowed=False)
    assert len(reread) == 1, "once is enough"


def forget_history(directory: DatabaseDir, writer: Writer) -> None:
    """Leave a log without an image, as after retention."""
    point = writer.db.point
    writer.db.close()
    fileops.remove_tree(directory.log)
    Log.create(directory.log, point, writer.page_size).close()


def flip(path: Path, *offsets: int) -> None:
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset] ^= 8
    path.write_bytes(data)


def test_damage_that_cancels_in_the_database_checksum_is_found(
    writer: Writer, directory: DatabaseDir
) -> None:
    """The same bit of two pages: CRCs are linear, so their XOR stays what it was."""
    forget_history(directory, writer)
    good = directory.database.read_bytes()
    flip(directory.database, 1 * 512 + 100, 3 * 512 + 100)
    report = recover(directory)
    assert report.damaged
    assert report.damaged_pages == (2, 4)
    assert report.lost is not None
    again = recover(directory)
    assert again.damaged, "the damage is not taken for the truth at the second look"
    assert again.damaged_pages == (2, 4)
    assert again.lost is None
    directory.database.write_bytes(good)
    assert not recover(directory).damaged


def test_damage_that_cancels_is_mended_from_the_log(writer: Writer, directory: DatabaseDir) -> None:
    writer.db.close()
    flip(directory.database, 1 * 512 + 100, 3 * 512 + 100)
    report = recover(directory)
    assert not report.damaged
    assert report.restored == 2
    assert directory.database.read_bytes() == writer.images[-1]


def test_damaged_checksums_do_not_accuse_the_file(writer: Writer, directory: DatabaseDir) -> None:
    forget_history(directory, writer)
    flip(directory.sums, 4096 + 8)
    report = recover(directory)
    assert not report.damaged
    assert directory.database.read_bytes() == writer.images[-1]
    file = SumsFile(directory.sums)
    assert file.sums.recompute_total() == report.position.checksum
    file.close()


def test_a_file_cut_short_is_named(writer: Writer, directory: DatabaseDir) -> None:
    forget_history(directory, writer)
    size = directory.database.stat().st_size
    os.truncate(directory.database, size - 1024)
    report = recover(directory)
    assert report.damaged
    assert report.damaged_pages == (size // 512 - 1, size // 512)
    assert report.lost is not None
    assert (report.lost / "database").stat().st_size == size - 1024


@pytest.mark.parametrize("commit", [0xFFFFFFFF, 1 << 30, 5000])
def test_a_record_of_more_pages_than_there_can_be_is_refused(
    commit: int, writer: Writer, directory: DatabaseDir
) -> None:
    """Its hash is right: what wrote it was wrong. Memory and disk are not taken by that number."""
    writer.db.close()
    segment = list_segments(directory.log)[-1][1]
    with LogReader(directory.log) as reader:
        assert reader.seek(START)
        last = reader.read(len(writer.images))[-1]
    data = bytearray(segment.read_bytes())
    struct.pack_into(">I", data, last.extent.body_offset + 12, commit)
    segment.write_bytes(rehash(bytes(data)))
    before = directory.database.read_bytes()
    with (
        bounded_memory(),
        pytest.raises(LogCorrupt, match=f"{segment.name}: offset {last.extent.body_offset + 12}"),
    ):
        recover(directory)
    assert directory.database.read_bytes() == before


def test_a_record_of_another_page_size_is_refused(writer: Writer, directory: DatabaseDir) -> None:
    writer.db.close()
    segment = list_segments(directory.log)[-1][1]
    data = bytearray(segment.read_bytes())
    with LogReader(directory.log) as reader:
        assert reader.seek(START)
        last = reader.read(len(writer.images))[-1]
    struct.pack_into(">I", data, last.extent.body_offset + 8, 4096)
    segment.write_bytes(rehash(bytes(data)))
    with pytest.raises(
        LogCorrupt, match=f"{segment.name}: offset {last.extent.body_offset + 8}: pages of 4096"
    ):
        recover(directory)


def header(first_txid: int, pre_apply: int, page_size: int, digest: int = 0) -> bytes:
    return SegmentHeader(Point(first_txid - 1, pre_apply, digest), page_size).pack()


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (header(2, 1 << 63, 512), 8),
        (header(1, 1 << 63, 512), 8),
        (header(1, 0, 512, 1), 8),
        (header(1, 0, 0), 24),
        (header(1, 0, 513), 24),
        (header(1, 0, 1 << 17), 24),
    ],
    ids=[
        "other TXID than the name",
        "checksum before the first",
        "hash before the first",
        "no page size",
        "odd",
        "too big",
    ],
)
def test_a_segment_header_that_cannot_be_is_refused(
    content: bytes, offset: int, writer: Writer, directory: DatabaseDir
) -> None:
    """Its hash is right, so it is no torn write: nothing is cut."""
    writer.db.close()
    (segment,) = directory.log.iterdir()
    data = content + segment.read_bytes()[SEGMENT_HEADER_SIZE:]
    segment.write_bytes(data)
    for read in (
        lambda: Log.open(directory.log),
        lambda: recover(directory),
        lambda: LogReader(directory.log).seek(START),
    ):
        with pytest.raises(LogCorrupt, match=f"{segment.name}: offset {offset}: "):
            read()
    assert segment.read_bytes() == data


def test_a_misnamed_segment_without_a_record_is_not_removed_as_unborn(
    writer: Writer, directory: DatabaseDir
) -> None:
    position = writer.db.position
    writer.db.close()
    misnamed = directory.log / f"{position.txid + 7:016x}.seg"
    misnamed.write_bytes(header(position.txid + 1, position.checksum, 512))
    with pytest.raises(LogCorrupt, match=f"{misnamed.name}: offset 8"):
        Log.open(directory.log)
    assert misnamed.exists()
