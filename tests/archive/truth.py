"""What a database was at every transaction, kept beside the archive: records are copied from the nodes' own
logs as they grow, and pages are taken from them by the reference decoder. None of the archive's code is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lz4.block

from litefs.errors import LogCorrupt
from litefs.store.paths import DataDir, encode_name
from litefs.store.segments import (
    SEGMENT_HEADER_SIZE,
    Extent,
    SegmentHeader,
    SegmentMap,
    list_segments,
)
from litefs.types import START, Point
from tests.kernels.reference_ltx import blocks

_HEADER = struct.Struct(">4sIIIQQq")
"""Magic, flags, page size, commit, minimum and maximum TXID, timestamp: how an LTX file begins."""


@dataclass(frozen=True, slots=True)
class Record:
    """A transaction that some log had: it leads from ``before`` to ``point``; ``time``: Unix ms, as it was
    recorded."""

    before: Point
    point: Point
    time: int
    offset: int
    size: int


class Image:
    """The pages of a database, one transaction after the other."""

    def __init__(self) -> None:
        self.page_size = 0
        self._commit = 0
        self._pages: dict[int, bytes] = {}

    def apply(self, body: bytes) -> None:
        """Take the pages of a record, an LTX file in block format."""
        _, _, page_size, self._commit, _, _, _ = _HEADER.unpack_from(body)
        if page_size != self.page_size:
            self.page_size = page_size
            self._pages.clear()
        for pgno, block in blocks(body).items():
            self._pages[pgno] = lz4.block.decompress(block, uncompressed_size=page_size)
        for pgno in [pgno for pgno in self._pages if pgno > self._commit]:
            del self._pages[pgno]

    @property
    def content(self) -> bytes:
        """The file."""
        missing = [pgno for pgno in range(1, self._commit + 1) if pgno not in self._pages]
        assert not missing, f"no transaction holds pages {missing[:10]}"
        return b"".join(self._pages[pgno] for pgno in range(1, self._commit + 1))


class Truth:
    """All records of one database that any node had, by where they lead."""

    def __init__(self, path: Path, name: str) -> None:
        """``path``: the file that keeps them."""
        self.name = name
        self._file = path.open("w+b")
        self.records: dict[Point, Record] = {}

    def close(self) -> None:
        self._file.close()

    def collect(self, data: Path, upto_txid: int | None = None) -> None:
        """Take what the log of a node has, up to ``upto_txid`` if its writer lives, and what it set aside."""
        self._take(DataDir(data).database_dir(self.name).log, upto_txid)
        lost = data / "lost"
        for directory in sorted(lost.glob(f"{encode_name(self.name)}-*")) if lost.is_dir() else []:
            self._take(directory, None)

    def _take(self, log: Path, upto_txid: int | None) -> None:
        segments = list_segments(log)
        for index, (first, path) in enumerate(segments):
            if upto_txid is not None and first > upto_txid:
                return
            following = segments[index + 1][0] if index + 1 < len(segments) else None
            try:
                self._take_segment(path, following, upto_txid)
            except (FileNotFoundError, LogCorrupt):
                if upto_txid is None and index + 1 < len(segments):
                    raise  # only the last one may be torn, or at this moment be made

    def _take_segment(self, path: Path, following: int | None, upto_txid: int | None) -> None:
        with SegmentMap(path) as segment:
            before = segment.header.base
            # Hashes are checked once: of records that are known only the head is looked at.
            for extent in segment.extents(verify=False, before=following):
                if upto_txid is not None and extent.txid_max > upto_txid:
                    return
                if extent.point not in self.records:
                    checked = segment.extent_at(extent.offset, verify=True)
                    if checked is None:
                        return
                    self._add(before, checked, bytes(segment.view[extent.body_offset :][: extent.size]))
                before = extent.point

    def _add(self, before: Point, extent: Extent, body: bytes) -> None:
        assert extent.txid_min == extent.txid_max == before.txid + 1
        _, _, _, _, _, txid, time = _HEADER.unpack_from(body)
        assert txid == extent.txid_max
        offset = self._file.seek(0, 2)
        self._file.write(body)
        self.records[extent.point] = Record(before, extent.point, time, offset, len(body))

    def body(self, record: Record) -> bytes:
        """The LTX file of a record."""
        self._file.seek(record.offset)
        return self._file.read(record.size)

    def history(self, tip: Point) -> list[Record]:
        """Every transaction from the first one to ``tip``."""
        found = []
        while tip != START:
            record = self.records.get(tip)
            assert record is not None, f"{self.name}: nobody kept the transaction that leads to {tip}"
            found.append(record)
            tip = record.before
        return found[::-1]

    def images(self, tip: Point) -> Iterator[tuple[Record, Image]]:
        """The same, each with the database as it left it: the same object, changed in place."""
        image = Image()
        for record in self.history(tip):
            image.apply(self.body(record))
            yield record, image


def tip_of(data: Path, name: str) -> Point:
    """Where the log of a database leads; its writer must be at rest."""
    segments = list_segments(DataDir(data).database_dir(name).log)
    tip = START
    for _, path in segments[-1:]:
        with path.open("rb") as file:
            tip = SegmentHeader.unpack(file.read(SEGMENT_HEADER_SIZE), path).base
        with SegmentMap(path) as segment:
            for extent in segment.extents(verify=True):
                tip = extent.point
    return tip
