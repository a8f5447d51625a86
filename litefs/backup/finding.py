"""Which files and bundles of an archive make up a moment. Blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter

from litefs.backup.archive import Archive, LtxFile, Start
from litefs.backup.bundle import Bundle, Logged, big_name
from litefs.backup.compaction import chain
from litefs.backup.layout import LEVELS, SNAPSHOT_LEVEL, own
from litefs.backup.pieces import Piece, read_header
from litefs.errors import ArchiveMissing, NotRestorable
from litefs.types import Point


@dataclass(frozen=True, slots=True)
class Goal:
    """What is looked for: the last transaction before ``time`` (Unix ms), or transaction ``txid``, or without
    either the newest."""

    time: int | None = None
    txid: int | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A database as it was: which pieces it is made of, the oldest first, and what follows from the last one.

    ``time``: Unix ms that its files show; ``point``: of the log as the primary had it, None if the archive
    does not say.
    """

    name: str
    txid: int
    time: int
    page_size: int
    commit: int
    pieces: Sequence[Piece]
    point: Point | None = None

    @property
    def checksum(self) -> int | None:
        """Of the whole database as the primary had it."""
        return self.point.checksum if self.point is not None else None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.page_size * self.commit


@dataclass(frozen=True, slots=True)
class At:
    """A transaction, and its time (Unix ms)."""

    txid: int
    time: int


def find(timelines: Sequence[Archive], goal: Goal) -> tuple[Archive, Moment] | None:
    """The moment in the newest timeline that has it; None if the database did not exist then.

    ``timelines``: of one database, the oldest first. Raises NotRestorable, which names the nearest moments
    that there are, ArchiveCorrupt, ArchiveUnavailable.
    """
    refused: NotRestorable | None = None
    for archive in reversed(timelines):
        timeline = Timeline(archive)
        if timeline.unfinished:
            continue
        try:
            at = timeline.locate(goal)
        except NotRestorable as error:
            refused = refused or error
            continue
        if at is None:
            return None
        if at.txid == 0:
            continue  # it did not exist yet; perhaps in the timeline before
        return archive, timeline.moment(at)
    if refused is not None:
        raise refused
    return None


class Timeline:
    """One timeline as it is listed now."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.start: Start | None = archive.start()
        self._bundles = [first for first, _, _ in archive.bundle_names()]
        self._files: dict[int, list[LtxFile]] = {level: archive.files(level) for level in LEVELS}
        self._fronts: dict[int, Bundle] = {}

    @property
    def unfinished(self) -> bool:
        """Claimed by an archiver that did not come to its start."""
        if self.start is not None or not any(self._files.values()):
            return self.start is None
        try:
            self._archive.target.size(own(self._archive.prefix, "claim"))
        except ArchiveMissing:
            return False  # of Litestream
        return True

    # -- from a goal to a transaction -----------------------------------------------------------------

    def locate(self, goal: Goal) -> At | None:
        """The transaction; 0 if the timeline begins later, None if the database was removed before. Raises
        NotRestorable."""
        if goal.txid is not None:
            return self._at_txid(goal.txid)
        return self._before(goal.time) if goal.time is not None else self._newest()

    def _newest(self) -> At | None:
        last = self._last()
        if last is None:
            return At(0, 0)
        dropped = bool(self._bundles) and self._front(self._bundles[-1]).dropped
        return None if dropped else last

    def _at_txid(self, txid: int) -> At:
        first = self.start.point.txid if self.start is not None else 0
        if txid <= first and not self._ends(txid):
            raise self._refusal(f"TXID {txid:016x}", None, self._first())
        entry = self._entry(txid)
        if entry is not None:
            return At(txid, entry.time)
        ends = self._ends(txid)
        if ends:
            return At(txid, self._time(ends[0]))
        raise self._refusal(f"TXID {txid:016x}", *self._around(txid))

    def _before(self, time: int) -> At | None:
        last = self._last()
        if last is None:
            return At(0, 0)
        bundle = self._front(self._bundles[-1]) if self._bundles else None
        if bundle is not None and bundle.dropped and bundle.time < time:
            return None
        if time > max(last.time + 1, self._as_of()):
            raise self._refusal(f"the moment {moment_text(time)}", last, None)
        found = self._in_bundles(time)
        for files in self._files.values():
            at = bisect_left(files, time, key=self._time)
            if at and (found is None or files[at - 1].max_txid > found.txid):
                found = At(files[at - 1].max_txid, self._time(files[at - 1]))
        if found is not None:
            return found
        if self.start is not None and self.start.reason in ("new", "recreated"):
            return At(0, 0)
        raise self._refusal(f"the moment {moment_text(time)}", None, self._first())

    def _in_bundles(self, time: int) -> At | None:
        """The last transaction in a bundle before ``time``."""

        def begins(first: int) -> int:
            bundle = self._front(first)
            return bundle.entries[0].time if bundle.entries else bundle.time

        at = bisect_left(self._bundles, time, key=begins)
        if not at:
            return None
        bundle = self._front(self._bundles[at - 1])
        if not bundle.entries:
            return At(bundle.after.txid, bundle.time)
        entry = bundle.entries[bisect_left(bundle.entries, time, key=attrgetter("time")) - 1]
        return At(entry.txid, entry.time)

    def _as_of(self) -> int:
        head = self._archive.head()
        return head.as_of if head is not None else 0

    def newest(self) -> At | None:
        """The last transaction; None if there is none."""
        return self._last()

    def _point(self, txid: int) -> Point | None:
        entry = self._entry(txid)
        if entry is not None:
            return entry.point
        return self.start.point if self.start is not None and self.start.point.txid == txid else None

    # -- from a transaction to pieces -----------------------------------------------------------------

    def moment(self, at: At) -> Moment:
        """What makes up a transaction. Raises NotRestorable."""
        pieces = self._pieces(self._chosen(at.txid), 0, at)
        header = read_header(self._archive.target, pieces[-1])
        name, size = self._archive.name, header.page_size
        return Moment(name, at.txid, at.time, size, header.commit, pieces, self._point(at.txid))

    def after(self, txid: int, last: int) -> list[Piece]:
        """What leads from one transaction to another, the oldest piece first. Raises NotRestorable."""
        others = (file for level in LEVELS if level != SNAPSHOT_LEVEL for file in self._files[level])
        fitting = [file for file in others if txid < file.max_txid <= last]
        return self._pieces(chain(fitting, txid), txid, self._at_txid(last))

    def _pieces(self, chosen: Sequence[LtxFile], reached: int, at: At) -> list[Piece]:
        """Those files, and from their end the records of bundles."""
        pieces = [Piece(file.key, 0, file.size) for file in chosen]
        reached = chosen[-1].max_txid if chosen else reached
        while reached < at.txid:
            place = bisect_left(self._bundles, reached + 2) - 1
            bundle = self._front(self._bundles[place]) if place >= 0 else None
            if bundle is None or bundle.last.txid <= reached:
                gap = f"TXID {at.txid:016x}: the transaction after {reached:016x} is missing"
                raise self._refusal(gap, *self._around(at.txid))
            for entry in bundle.entries:
                if reached < entry.txid <= at.txid:
                    pieces.append(self._piece(bundle, entry))
                    reached = entry.txid
        return pieces

    def _chosen(self, txid: int) -> list[LtxFile]:
        """Litestream's choice (reference §2), as far as it leads."""
        snapshots = [file for file in self._files[SNAPSHOT_LEVEL] if file.max_txid <= txid]
        chosen = snapshots[-1:]
        reached = chosen[0].max_txid if chosen else 0
        others = (file for level in LEVELS if level != SNAPSHOT_LEVEL for file in self._files[level])
        return chosen + chain([file for file in others if file.max_txid <= txid], reached)

    def _piece(self, bundle: Bundle, entry: Logged) -> Piece:
        prefix = self._archive.prefix
        name = big_name(entry.point) if bundle.big else f"log/{bundle.first_txid:016x}"
        return Piece(own(prefix, name), entry.offset, entry.size)

    # -- what there is --------------------------------------------------------------------------------

    def _front(self, first: int) -> Bundle:
        found = self._fronts.get(first)
        if found is None:
            bundle = self._archive.bundle(first)
            if bundle is None:
                raise ArchiveMissing(f"{self._archive.url}: bundle {first:016x} is gone")
            found = self._fronts[first] = bundle
        return found

    def _entry(self, txid: int) -> Logged | None:
        at = bisect_left(self._bundles, txid + 1)
        if not at:
            return None
        entries = self._front(self._bundles[at - 1]).entries
        return next((entry for entry in entries if entry.txid == txid), None)

    def _ends(self, txid: int) -> list[LtxFile]:
        return [file for files in self._files.values() for file in files if file.max_txid == txid]

    def _time(self, file: LtxFile) -> int:
        return self._archive.header(file).timestamp

    def _last(self) -> At | None:
        newest = [files[-1] for files in self._files.values() if files]
        best = max(newest, key=lambda file: file.max_txid, default=None)
        if self._bundles:
            bundle = self._front(self._bundles[-1])
            if best is None or bundle.last.txid >= best.max_txid:
                return At(bundle.last.txid, bundle.last_time)
        return At(best.max_txid, self._time(best)) if best is not None else None

    def _first(self) -> At | None:
        oldest = [file for files in self._files.values() for file in files[:1] if file.min_txid == 1]
        best = min(oldest, key=lambda file: file.max_txid, default=None)
        return At(best.max_txid, self._time(best)) if best is not None else None

    def _around(self, txid: int) -> tuple[At | None, At | None]:
        """The nearest moments that files or bundles end with, below and above."""
        ends = sorted({file.max_txid for files in self._files.values() for file in files})
        at = bisect_left(ends, txid)
        last = self._last()

        def of(number: int) -> At:
            return At(number, self._time(self._ends(number)[0]))

        below = of(ends[at - 1]) if at else None
        above = of(ends[at]) if at < len(ends) and ends[at] > txid else None
        if last is not None and last.txid < txid:
            below = last
        return below, above

    def _refusal(self, what: str, below: At | None, above: At | None) -> NotRestorable:
        near = [
            f"{word} is TXID {one.txid:016x} of {moment_text(one.time)}"
            for word, one in (("the nearest before", below), ("the nearest after", above))
            if one is not None
        ]
        text = "; ".join(near) or "nothing is"
        return NotRestorable(f"{self._archive.name}: {what} is not in {self._archive.url}: {text}")


def moment_text(time: int) -> str:
    """Unix ms as RFC 3339 in UTC."""
    text = datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
