"""The state that a log ends with, as far as it can be true."""

from __future__ import annotations

from dataclasses import dataclass

from litefs.errors import FormatError, LogCorrupt
from litefs.ltx.format import HEADER_SIZE, Header, page_total
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import newest_images
from litefs.store.segments import Extent, extents
from litefs.store.sums import SumsFile
from litefs.types import Point


@dataclass(frozen=True, slots=True)
class Tip:
    """The last transaction; ``commit``: pages of the database after it, ``timestamp``: Unix ms."""

    point: Point
    page_size: int
    commit: int
    timestamp: int


def tip_of(directory: DatabaseDir, file: SumsFile, log: Log) -> Tip:
    """What the last record says; for a log without one, what the checksums or the database file say.

    Raises LogCorrupt, naming segment and offset, for a record of another page size than the log's, or of more
    pages than there can be: everything that follows takes memory and disk by their number.
    """
    known = file.point == log.tip and file.sums.page_count <= file.sums.capacity
    for extent in extents(directory.log, max(log.first_txid - 1, log.tip.txid - 1)):
        if extent.txid_max == log.tip.txid:
            header = _header(extent)
            if header.page_size != log.page_size:
                raise LogCorrupt(
                    f"{extent.path}: offset {extent.body_offset + 8}: pages of {header.page_size} bytes, "
                    f"but {log.page_size} in this log"
                )
            if not (known and header.commit == file.sums.page_count):
                _check_size(directory, log, extent, header)
            return Tip(log.tip, header.page_size, header.commit, header.timestamp)
    if known:
        return Tip(log.tip, log.page_size, file.sums.page_count, file.sums.timestamp)
    return Tip(log.tip, log.page_size, _file_pages(directory, log.page_size), 0)


def _header(extent: Extent) -> Header:
    with extent.path.open("rb") as segment:
        segment.seek(extent.body_offset)
        try:
            return Header.unpack(segment.read(HEADER_SIZE))
        except FormatError as error:
            raise LogCorrupt(f"{extent.path}: offset {extent.body_offset}: {error}") from error


def _check_size(directory: DatabaseDir, log: Log, extent: Extent, header: Header) -> None:
    """A record that grows the database holds all that it grows by, so what the file lacks is in the log."""
    size, commit = header.page_size, header.commit
    have = _file_pages(directory, size)
    if commit <= have:
        return
    images = newest_images(directory.log, log.first_txid - 1, log.tip.txid, page_size=size)
    held = sum(have < pgno <= commit for pgno in images)
    needed = page_total(size, commit) - page_total(size, have)
    if held < needed:
        raise LogCorrupt(
            f"{extent.path}: offset {extent.body_offset + 12}: {commit} pages, but the file has {have}, "
            f"and the log only {held} of the {needed} others"
        )


def _file_pages(directory: DatabaseDir, page_size: int) -> int:
    try:
        return directory.database.stat().st_size // page_size
    except FileNotFoundError:
        return 0
