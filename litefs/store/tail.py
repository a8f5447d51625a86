"""Judging the end of a log when it is opened: what a crash left unfinished is cut, damage is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litefs.errors import LogCorrupt
from litefs.store import fileops
from litefs.store.segments import PREALLOCATE_MIN, SEGMENT_HEADER_SIZE, SegmentHeader, SegmentMap
from litefs.types import Point


@dataclass(frozen=True, slots=True)
class Cut:
    """What ``Log.open`` removed from the end of the log: never a record that is whole, except behind a lost
    write.
    """

    path: Path
    offset: int
    size: int
    after_txid: int

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.size} bytes cut at offset {self.offset}, after TXID {self.after_txid:016x}"
        )


def remove_unborn(path: Path, first_txid: int) -> Cut | None:
    """Remove a last segment whose creation a crash cut short.

    Raises LogCorrupt if its header is wrong but it was used.
    """
    with path.open("rb") as file:
        data = file.read(PREALLOCATE_MIN + 1)
    header = data[:SEGMENT_HEADER_SIZE]
    if SegmentHeader.is_whole(header):
        return None
    if any(data[SEGMENT_HEADER_SIZE:]) or len(data) > PREALLOCATE_MIN:
        SegmentHeader.unpack(header, path)
    fileops.unlink_durably(path)
    return Cut(path, 0, len(data), first_txid - 1)


@dataclass(frozen=True, slots=True)
class Tail:
    """How the last segment ends."""

    header: SegmentHeader
    tip: Point
    """The last transaction."""
    synced_end: int
    """Behind the last record that is known to have reached the disk."""
    end: int
    """Behind the last record."""
    excess: int
    """Bytes behind it to cut."""


def scan(path: Path, synced_txid: int, trusted: Point | None) -> Tail:
    """Look at the records of the last segment. Raises LogCorrupt."""
    with SegmentMap(path) as segment:
        if trusted is not None:
            tip, synced_end, end = _walk(segment, synced_txid, verify=False)
            if tip == trusted and segment.is_end(end):
                return Tail(segment.header, tip, synced_end, end, 0)
        tip, synced_end, end = _walk(segment, synced_txid, verify=True)
        if segment.extent_at(end, verify=True) is not None:
            raise LogCorrupt(f"{path}: offset {end}: the record does not follow TXID {tip.txid:016x}")
        after = segment.valid_after(end)
        if after is not None and (tip.txid < synced_txid or not segment.never_written(end, after.offset)):
            raise LogCorrupt(
                f"{path}: offset {end}: the record after TXID {tip.txid:016x} is damaged, "
                f"but a whole one (TXID {after.txid_min:016x}) follows at offset {after.offset}"
            )
        return Tail(segment.header, tip, synced_end, end, segment.used_after(end))


def _walk(segment: SegmentMap, synced_txid: int, *, verify: bool) -> tuple[Point, int, int]:
    tip, synced_end, end = segment.header.base, SEGMENT_HEADER_SIZE, SEGMENT_HEADER_SIZE
    for extent in segment.extents(verify=verify):
        tip, end = extent.point, extent.end
        if tip.txid <= synced_txid:
            synced_end = end
    return tip, synced_end, end
