"""How far a timeline goes, found without listing it: from the note of its head along the chain of bundles."""

from __future__ import annotations

from dataclasses import dataclass

from litefs.backup.archive import Archive, Head, Start
from litefs.backup.bundle import Bundle, big_name
from litefs.backup.layout import SNAPSHOT_LEVEL, own
from litefs.errors import ArchiveCorrupt
from litefs.ltx.format import HEADER_SIZE, Header
from litefs.types import START, Point


@dataclass(frozen=True, slots=True)
class Tip:
    """The end of a timeline.

    ``time``: Unix ms, what follows is no earlier; ``bundle``: first TXID of the last bundle, 0 without one;
    ``page_size``: of the last record, 0 without one.
    """

    point: Point
    time: int
    page_size: int
    bundle: int = 0
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A timeline's end, and what is missing before it.

    ``pending``: the first TXID of the first bundle whose files of level 0 may not all be there, 0 if they
    are; ``page_size``: of the record before it."""

    tip: Tip
    pending: int
    page_size: int


def find(archive: Archive, start: Start) -> Found:
    """Read the end of a timeline: from its head, which may be some bundles behind. Without one the names of
    its bundles are listed. Raises ArchiveCorrupt, ArchiveUnavailable."""
    try:
        head = archive.head()
    except ArchiveCorrupt:
        head = None
    begun = archive.bundle(head.bundle) if head is not None and head.bundle else None
    if head is None or begun is None or begun.last.txid != head.txid:
        floor = max(start.time, head.as_of if head is not None else 0)
        return _listed(archive, start, floor)
    return _from_head(archive, head, begun)


def _from_head(archive: Archive, head: Head, begun: Bundle) -> Found:
    last, pending, previous = begun, 0, begun
    derived: int | None = None
    for bundle in archive.bundles(head.bundle):
        if bundle.last.txid > begun.last.txid and not pending:
            if derived is None:  # raw files are written in their order, and the newest is never pruned
                derived = max((file.max_txid for file in archive.files(0, head.txid)), default=head.txid)
            if bundle.last.txid > derived:
                pending, previous = bundle.first_txid, last
        last = bundle
    size = page_size_of(archive, previous if pending else last)
    return Found(_tip(archive, last, head.as_of, size), pending, size)


def _listed(archive: Archive, start: Start, floor: int) -> Found:
    """As ``find``, from the names of all bundles and files: the note of the head is not there yet, or was
    lost."""
    files = [file.max_txid for level in range(SNAPSHOT_LEVEL) for file in archive.files(level)]
    derived = max(files, default=start.point.txid)
    before = pending = 0
    for first, _, _ in archive.bundle_names():
        if not pending or first <= derived + 1:
            before, pending = pending, first
    base = _base_page_size(archive, start)
    if not pending:
        return Found(Tip(start.point, floor, base), 0, base)
    previous = archive.bundle(before) if before else None
    size = base if previous is None else page_size_of(archive, previous)
    last = None
    for bundle in archive.bundles(pending):
        last = bundle
    if last is None:
        raise ArchiveCorrupt(f"{archive.url}: bundle {pending:016x} is gone")
    return Found(_tip(archive, last, floor, size), pending, size)


def _tip(archive: Archive, last: Bundle, floor: int, page_size: int) -> Tip:
    size = page_size_of(archive, last) if last.entries else page_size
    return Tip(last.last, max(last.last_time, floor), size, last.first_txid, last.dropped)


def page_size_of(archive: Archive, bundle: Bundle) -> int:
    """Of the last record of a bundle."""
    if not bundle.entries:
        return 0
    entry = bundle.entries[-1]
    name = big_name(entry.point) if bundle.big else f"log/{bundle.first_txid:016x}"
    key = own(archive.prefix, name)
    return Header.unpack(archive.target.read(key, entry.offset, HEADER_SIZE)).page_size


def _base_page_size(archive: Archive, start: Start) -> int:
    """Of the snapshot that a timeline begins with; 0 if it begins without."""
    if start.point == START:
        return 0
    for file in archive.files(SNAPSHOT_LEVEL):
        if file.max_txid == start.point.txid:
            return archive.header(file).page_size
    return 0  # pruned: then there are bundles, and their page sizes
