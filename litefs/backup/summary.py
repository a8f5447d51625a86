"""What an archive holds, in figures: by names, and a few small reads. Blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litefs.backup.archive import Archive, LtxFile
from litefs.backup.audit import Listing
from litefs.backup.finding import At
from litefs.backup.layout import SNAPSHOT_LEVEL, own
from litefs.errors import ArchiveMissing


@dataclass(frozen=True, slots=True)
class Summary:
    """One timeline.

    ``reason``: why it was begun (``Start.reason``), empty for an archive of Litestream. ``levels``: (files,
    bytes) by level, of those that have any. ``oldest``: the first moment that can be restored; from
    ``each_from`` on each single transaction can. ``as_of``: Unix ms up to which the archive is known to be
    complete, else the time of the newest. ``dropped``: when the database was removed.
    """

    name: str
    timeline: int
    url: str
    reason: str
    levels: dict[int, tuple[int, int]]
    bundles: tuple[int, int]
    oldest: At | None
    each_from: At | None
    newest: At | None
    snapshot: At | None
    as_of: int
    dropped: int | None

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return self.bundles[1] + sum(size for _, size in self.levels.values())


def summarize(archive: Archive) -> Summary | None:
    """None for a timeline that was claimed and never begun. Raises ArchiveUnavailable, FormatError."""
    listing = Listing.of(archive)
    if listing.start is None and _is_claimed(archive):
        return None
    levels = {
        level: (len(files), sum(file.size for file in files))
        for level, files in sorted(listing.files.items())
        if files
    }
    bundles = listing.bundles
    first = archive.bundle(bundles[0][0]) if bundles else None
    last = archive.bundle(bundles[-1][0]) if bundles else None
    bases = [file for files in listing.files.values() for file in files if file.min_txid == 1]
    oldest = _at(archive, min(bases, key=lambda file: file.max_txid, default=None))
    each_from = None
    if first is not None and first.entries:
        entry = first.entries[0]
        if first.after.txid == 0:
            oldest = each_from = At(entry.txid, entry.time)
        else:
            reachable = [file for file in bases if file.max_txid >= first.after.txid]
            each_from = _at(archive, min(reachable, key=lambda file: file.max_txid, default=None))
    newest = _newest(archive, [file for files in listing.files.values() for file in files[-1:]])
    if last is not None and (newest is None or last.last.txid >= newest.txid):
        newest = At(last.last.txid, last.last_time)
    return Summary(
        archive.name,
        archive.number,
        archive.url,
        listing.start.reason if listing.start is not None else "",
        levels,
        (len(bundles), sum(size for _, size, _ in bundles)),
        oldest,
        each_from,
        newest,
        _newest(archive, listing.files[SNAPSHOT_LEVEL][-1:]),
        max(listing.head.as_of if listing.head is not None else 0, newest.time if newest is not None else 0),
        last.time if last is not None and last.dropped else None,
    )


def _is_claimed(archive: Archive) -> bool:
    try:
        archive.target.size(own(archive.prefix, "claim"))
    except ArchiveMissing:
        return False
    return True


def _newest(archive: Archive, files: Sequence[LtxFile]) -> At | None:
    return _at(archive, max(files, key=lambda file: file.max_txid, default=None))


def _at(archive: Archive, file: LtxFile | None) -> At | None:
    return None if file is None else At(file.max_txid, archive.header(file).timestamp)
