"""Reading the log beside its writer."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litefs.errors import LogCorrupt, PositionMismatch
from litefs.ltx import decode
from litefs.store import log, reader
from litefs.store.log import Log
from litefs.store.reader import ImageReader, LogReader, newest_images
from litefs.store.segments import Extent, SegmentMap, extents, list_segments
from litefs.types import ZERO, Position
from tests.store.test_log import PAGE, append, checksum, record


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 8192)
    return Log.create(tmp_path / "log", Position(10, checksum(10)), PAGE)


def read_all(source: LogReader, upto: int, max_bytes: int = 1000) -> list[int]:
    found = []
    while entries := source.read(upto, max_bytes):
        assert all(entry.size == len(entry.body) for entry in entries)
        assert sum(entry.size for entry in entries[:-1]) < max_bytes
        found += [entry.txid_max for entry in entries]
    return found


def test_reads_exactly_what_was_published(writer: Log) -> None:
    with LogReader(writer.directory) as source:
        assert source.seek(writer.tip)
        assert source.read(10) == []
        append(writer, 50)
        assert read_all(source, 35) == list(range(11, 36))
        assert read_all(source, 60) == list(range(36, 61))
        assert source.position == writer.tip


@pytest.mark.parametrize("after", [10, 11, 37, 60])
def test_seek_finds_every_position(writer: Log, after: int) -> None:
    append(writer, 50)
    with LogReader(writer.directory) as source:
        assert source.seek(Position(after, checksum(after)))
        assert read_all(source, 60) == list(range(after + 1, 61))
        assert source.position_at(after) == Position(after, checksum(after))


def test_the_tip_is_the_last_whole_record(writer: Log) -> None:
    with LogReader(writer.directory) as source:
        assert source.tip() == writer.tip
        append(writer, 50)
        assert source.tip() == Position(60, checksum(60))
    with LogReader(writer.directory / "none") as source:
        assert source.tip() == ZERO


@pytest.mark.parametrize(
    "position", [Position(9, checksum(9)), Position(37, 5), Position(61, checksum(61)), Position(10, 0), ZERO]
)
def test_seek_refuses_other_histories(writer: Log, position: Position) -> None:
    append(writer, 50)
    with LogReader(writer.directory) as source:
        assert not source.seek(position)


def test_no_log_reaches_nowhere(tmp_path: Path) -> None:
    with LogReader(tmp_path / "none") as source:
        assert not source.seek(ZERO)
        assert source.position_at(1) is None
        assert source.first_txid == 0


def test_a_reader_that_retention_overtook_is_told(writer: Log) -> None:
    append(writer, 50)
    with LogReader(writer.directory) as source:
        assert source.seek(Position(10, checksum(10)))
        held = source.read(11, 1)
        assert [entry.txid_max for entry in held] == [11]
        for _, path in list_segments(writer.directory)[:3]:
            path.unlink()
        with pytest.raises(PositionMismatch, match="no longer holds TXID"):
            source.read(60, 1 << 20)
        assert source.position.txid > 11  # the open segment could be read to its end


def test_published_but_missing_is_damage(writer: Log) -> None:
    append(writer, 3)
    with LogReader(writer.directory) as source:
        assert source.seek(Position(10, checksum(10)))
        with pytest.raises(LogCorrupt, match="though 0000000000000014 was published"):
            source.read(20)


def test_big_records_are_streamed(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    append(writer, 1)
    body, post = record(12, pages=2000)
    writer.append(body, 12, post)
    append(writer, 1)
    with LogReader(writer.directory) as source:
        assert source.seek(Position(10, checksum(10)))
        assert [len(entry.body) for entry in source.read(13, 1 << 30)][1] == len(body)
        monkeypatch.setattr(reader, "STREAM_BYTES", 1 << 19)
        assert source.seek(Position(11, checksum(11)))
        big, small = source.read(13, 1 << 30)
        assert (big.body, big.size, big.txid_max, small.txid_max) == (b"", len(body), 12, 13)
        assert big.position == Position(12, checksum(12))
        with big.open() as stream:
            assert stream.read() == body
        path, offset = big.extent.path, big.extent.body_offset + big.size // 2
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(bytes(data))
        with big.open() as stream, pytest.raises(LogCorrupt, match="checksum is wrong"):
            stream.read()


def test_reading_beside_the_writer(writer: Log) -> None:
    count = 3000
    published = [10]
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(count):
                append(writer, 1)
                published[0] = writer.tip.txid
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    found: list[int] = []
    with LogReader(writer.directory) as source:
        assert source.seek(Position(10, checksum(10)))
        while thread.is_alive() or len(found) < count:
            assert not failures
            found += read_all(source, published[0], 100_000)
    thread.join(30)
    assert found == list(range(11, 11 + count))


def test_newest_images_come_from_the_index_alone(writer: Log, rng: random.Random) -> None:
    expected: dict[int, bytes] = {}
    for txid in range(11, 60):
        pages = rng.randrange(1, 5)
        body, post = record(txid, pages)
        writer.append(body, txid, post)
        if txid > 30:
            images = decode(body).images
            expected |= {2 + n: bytes(images[n * PAGE : (n + 1) * PAGE]) for n in range(pages)}
    images_at_50 = newest_images(writer.directory, 30, 50, page_size=PAGE)
    found = newest_images(writer.directory, 50, 59, page_size=PAGE, images=images_at_50)
    assert found is images_at_50
    with ImageReader() as source:
        assert {pgno: source.page(pgno, image, PAGE) for pgno, image in found.items()} == expected
    with pytest.raises(LogCorrupt, match="begins with TXID"):
        newest_images(writer.directory, 3, 20, page_size=PAGE)
    with pytest.raises(LogCorrupt, match="the log ends at"):
        newest_images(writer.directory, 30, 100, page_size=PAGE)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pages=st.lists(st.integers(1, 40), min_size=1, max_size=25),
    max_bytes=st.integers(1, 60_000),
    start=st.integers(0, 24),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, pages: list[int], max_bytes: int, start: int
) -> None:
    bodies = [record(txid, count) for txid, count in enumerate(pages, 1)]
    writer = Log.create(tmp_path_factory.mktemp("log") / "log", ZERO, PAGE)
    for txid, (body, post) in enumerate(bodies, 1):
        writer.append(body, txid, post)
    writer.close()
    start = min(start, len(pages))
    with LogReader(writer.directory) as source:
        assert source.seek(Position(start, checksum(start)))
        found = []
        while entries := source.read(len(pages), max_bytes):
            found += [entry.body for entry in entries]
    assert found == [body for body, _ in bodies[start:]]
    assert [extent.size for extent in extents(writer.directory, 0)] == [len(body) for body, _ in bodies]


def test_nothing_beyond_what_was_published_is_looked_at(writer: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer may cut that off while another process has the segment mapped, which would be its end."""
    append(writer, 50)
    looked: dict[Path, int] = {}
    real = SegmentMap.extent_at

    def extent_at(segment: SegmentMap, offset: int, *, verify: bool) -> Extent | None:
        looked[segment.path] = offset
        return real(segment, offset, verify=verify)

    monkeypatch.setattr(SegmentMap, "extent_at", extent_at)
    last = {}
    for upto in range(11, 61):
        looked.clear()
        last = {extent.path: extent.offset for extent in extents(writer.directory, 10, upto)}
        assert looked.pop(max(looked)) == last.pop(max(last)), upto
    assert last
