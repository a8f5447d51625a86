"""What may leave an archive: every moment within its retention stays restorable, and the latest too.

- The *base* of a timeline is its newest snapshot of before the retention's start. What ends at or before it
  is not needed: older snapshots, other levels' files, bundles, big records. Without a base all of that stays.
- A raw file (level 0) goes once a file of level 1 holds it and it is older than ``l0_age``, up to the first
  one that is too young; its transactions are in bundles still. The newest stays: Litestream can go on behind
  it.
- A timeline goes as a whole, but for its claim, when a later one began before the retention's start and
  nothing came to it since; and one that was claimed, and never begun, when it is older than ``dead_age`` and
  a later one has begun. Its number stays taken.

Deletions are ordered by where files begin, snapshots first: cut off anywhere, what is left of the time before
the retention is whole or lacks its beginning, so that nothing restores it wrongly. Two who prune at the same
time delete the same, or what the other has found unneeded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

from litefs.backup.archive import Archive, LtxFile, Start
from litefs.backup.layout import LEVELS, SNAPSHOT_LEVEL, own, parse_bundle_name
from litefs.errors import ArchiveMissing, FormatError

_AT_ONCE = 256
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Policy:
    """All in ms. ``retention``: every moment from so long ago until now stays restorable."""

    retention: int
    l0_age: int = 5 * 60_000
    dead_age: int = 24 * 3600_000


@dataclass(frozen=True, slots=True)
class Timeline:
    """What ``superseded`` looks at: ``claimed`` and ``begun`` in Unix ms (None: not begun), ``last`` when
    something was stored in it last, None if it has nothing but its claim."""

    number: int
    claimed: int
    begun: int | None
    last: int | None


@dataclass(slots=True)
class Pruned:
    """Objects that were deleted, by kind: ``level-N``, ``bundle``, ``big``, ``timeline``."""

    objects: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str, number: int) -> None:
        if number:
            self.objects[kind] = self.objects.get(kind, 0) + number


# -- the rules, without I/O -------------------------------------------------------------------------------


def base_of(snapshots: Iterable[LtxFile], since: int) -> int:
    """The last TXID of the newest snapshot whose ``modified``, the time of that transaction, is before
    ``since`` (Unix ms); 0 if there is none."""
    return max((file.max_txid for file in snapshots if file.modified < since), default=0)


def unneeded(levels: Mapping[int, Sequence[LtxFile]], base: int) -> list[LtxFile]:
    """The files that end before the snapshot that ends with ``base`` does, or with it, in the order in which
    they are to be deleted."""
    snapshots = [file for file in levels.get(SNAPSHOT_LEVEL, ()) if file.max_txid < base]
    others = [
        file
        for level, files in levels.items()
        for file in files
        if level != SNAPSHOT_LEVEL and file.max_txid <= base
    ]
    newest = max((file.max_txid for file in levels.get(0, ())), default=0)
    others = [file for file in others if file.level or file.max_txid != newest]
    return sorted(snapshots, key=lambda f: f.max_txid) + sorted(others, key=lambda f: (f.min_txid, -f.level))


def raw_done(raw: Sequence[LtxFile], compacted: int, before: int) -> list[LtxFile]:
    """The raw files, ascending, that level 1 holds (up to TXID ``compacted``) and that were written before
    ``before`` (Unix ms), up to the first one that is not; never the last."""
    done: list[LtxFile] = []
    for file in raw[:-1]:
        if file.max_txid > compacted or file.modified >= before:
            break
        done.append(file)
    return done


def bundles_done(bundles: Iterable[tuple[int, int, str]], base: int) -> Iterator[str]:
    """The keys of the bundles (first TXID, bytes, key; ascending) that end at or before ``base``: those that
    another one follows by then. Does not look further than to the first that stays."""
    before = ""
    for first, _, key in bundles:
        if first > base + 1:
            return
        if before:
            yield before
        before = key


def superseded(timelines: Sequence[Timeline], policy: Policy, now: int) -> list[int]:
    """The numbers of the timelines that are not needed any more; never that of the last one that has begun,
    nor of any after it."""
    since = now - policy.retention
    gone = []
    for timeline in timelines:
        later = [t.begun for t in timelines if t.number > timeline.number and t.begun is not None]
        if not later or timeline.last is None:
            continue
        if timeline.begun is None:
            if timeline.claimed < now - policy.dead_age and timeline.last < now - policy.dead_age:
                gone.append(timeline.number)
        elif min(later) < since and timeline.last < since:
            gone.append(timeline.number)
    return gone


# -- doing it ---------------------------------------------------------------------------------------------


def prune_raw(archive: Archive, policy: Policy, now: int, compacted: int | None = None) -> Pruned:
    """Delete raw files that level 1 holds. ``now``: Unix ms; ``compacted``: the last TXID of level 1 if
    known, which saves listing it. Raises ArchiveUnavailable; what was deleted then was to be deleted."""
    if compacted is None:
        compacted = max((file.max_txid for file in archive.files(1)), default=0)
    done = raw_done(archive.files(0), compacted, now - policy.l0_age)
    pruned = Pruned()
    _delete(archive, pruned, "level-0", [file.key for file in done])
    return pruned


def prune(archive: Archive, policy: Policy, now: int) -> Pruned:
    """Delete what a timeline need not hold any more; ``now``: Unix ms. Raises as ``prune_raw``."""
    pruned = prune_raw(archive, policy, now)
    snapshots = [_dated(archive, file) for file in archive.files(SNAPSHOT_LEVEL)]
    base = base_of(snapshots, now - policy.retention)
    if not base:
        return pruned
    levels = {level: archive.files(level) for level in LEVELS if level != SNAPSHOT_LEVEL}
    files = unneeded({**levels, SNAPSHOT_LEVEL: snapshots}, base)
    for level, group in groupby(files, lambda file: file.level):
        _delete(archive, pruned, f"level-{level}", (file.key for file in group))
    _delete(archive, pruned, "bundle", bundles_done(archive.bundle_names(), base))
    _delete(archive, pruned, "big", _big_records(archive, base))
    return pruned


def _dated(archive: Archive, file: LtxFile) -> LtxFile:
    """With the time of its last transaction: an object store lists when it was stored. One that cannot be
    read is the base of nothing."""
    try:
        return replace(file, modified=archive.header(file).timestamp)
    except (FormatError, ArchiveMissing):
        return replace(file, modified=_NEVER)


def _big_records(archive: Archive, base: int) -> Iterator[str]:
    """The keys of the big records up to TXID ``base``, also of those that never got a bundle."""
    for stored in archive.target.entries(own(archive.prefix, "big/")):
        txid = parse_bundle_name(stored.name.partition("-")[0])
        if txid is None:
            continue
        if txid > base:
            return
        yield stored.key


def prune_timelines(archives: Sequence[Archive], policy: Policy, now: int) -> Pruned:
    """Delete the timelines of a database that are not needed any more: ``archives`` has all of them, as
    ``archive.timelines`` gives them. Raises as ``prune``."""
    pruned = Pruned()
    starts = {archive.number: archive.start() for archive in archives}
    newest = max((number for number, start in starts.items() if start is not None), default=0)
    found = [_looked_at(archive, starts[archive.number], archive.number < newest) for archive in archives]
    gone = superseded(found, policy, now)
    for archive in archives:
        if archive.number in gone:
            _delete(archive, pruned, "timeline", _everything(archive))
    return pruned


def _looked_at(archive: Archive, start: Start | None, thoroughly: bool) -> Timeline:
    begun = None if start is None else start.time
    if not thoroughly:
        return Timeline(archive.number, 0, begun, begun)
    claimed = 0  # of Litestream's, or written by hand: as old as can be
    with suppress(ArchiveMissing, ValueError, KeyError, TypeError):
        claimed = int(json.loads(archive.target.read(own(archive.prefix, "claim")))["time"])
    files = (file.modified for level in LEVELS for file in archive.files(level))
    log = (stored.modified for stored in archive.target.entries(own(archive.prefix, "log/")))
    times = [*files, *log]
    if begun is not None:
        times.append(begun)
    return Timeline(archive.number, claimed, begun, max(times, default=None))


def _everything(archive: Archive) -> Iterator[str]:
    """All keys of a timeline but its claim; its start first: then readers pass it over."""
    yield own(archive.prefix, "start")
    for file in archive.files(SNAPSHOT_LEVEL):
        yield file.key
    for level in LEVELS:
        if level != SNAPSHOT_LEVEL:
            yield from (file.key for file in archive.files(level))
    yield from (key for _, _, key in archive.bundle_names())
    yield from (stored.key for stored in archive.target.entries(own(archive.prefix, "big/")))
    yield own(archive.prefix, "head")


def _delete(archive: Archive, pruned: Pruned, kind: str, keys: Iterable[str]) -> None:
    left = iter(keys)
    while some := list(islice(left, _AT_ONCE)):
        archive.target.delete(some)
        pruned.count(kind, len(some))
