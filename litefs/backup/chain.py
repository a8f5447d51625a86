"""One timeline as its archiver continues it: bundles first, then what is derived from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from litefs.backup import bundle as bundles
from litefs.backup.archive import Archive, Head, Start
from litefs.backup.bundle import MAX_RECORDS, Bundle
from litefs.backup.snapshots import write_full_record
from litefs.backup.tip import Tip, find, page_size_of
from litefs.backup.transcode import write_l0
from litefs.errors import ArchiveCorrupt, LogCorrupt
from litefs.ltx.format import Header
from litefs.store.contents import header_of
from litefs.store.reader import Entry

PIECE = 1 << 20
"""Bytes of a big record that are sent at a time."""


class Chain:
    """The end of one timeline. Blocks; for one thread at a time.

    ``tip`` moves only once a bundle is known to be there: after an error ask ``look_again`` first, for what
    was asked of the store may have happened.
    """

    def __init__(
        self, archive: Archive, start: Start, tip: Tip, pending: int = 0, page_size: int = 0
    ) -> None:
        """``pending``, ``page_size``: as in :class:`litefs.backup.tip.Found`."""
        self.archive = archive
        self.start = start
        self.tip = tip
        self._pending = pending
        self._derived_size = page_size if pending else tip.page_size
        """Page size of the last record whose files are there."""

    @classmethod
    def found(cls, archive: Archive, start: Start) -> Chain:
        """One that is in the archive. Raises ArchiveCorrupt, ArchiveUnavailable."""
        end = find(archive, start)
        return cls(archive, start, end.tip, end.pending, end.page_size)

    @property
    def derived(self) -> bool:
        """Whether the files of all bundles are there."""
        return not self._pending

    # -- the history ----------------------------------------------------------------------------------

    def add(self, entries: Sequence[Entry]) -> bool:
        """Append records that follow the tip, and derive their files; False if another archiver was first.

        Raises LogCorrupt, ArchiveUnavailable, NotPrimary.
        """
        for group in _groups(entries, self.tip.page_size):
            if not (self._add_big(group[0]) if not group[0].body else self._add(group)):
                return False
        return True

    def _add(self, group: list[Entry]) -> bool:
        records, time, size = [], self.tip.time, 0
        for entry in group:
            header = _header(entry)
            time, size = max(time, header.timestamp), header.page_size
            records.append((entry.point, time, entry.body))
        data = bundles.pack(self.tip.point, records)
        if not self.archive.append(self.tip.point.txid + 1, data):
            return False
        bundle = bundles.parse(data)
        del data, records
        self._advance(bundle, size)
        self.derive(bundle, [entry.body for entry in group])
        return True

    def _add_big(self, entry: Entry) -> bool:
        header = _header(entry)
        with entry.open() as file:
            self.archive.write_big(entry.point, iter(lambda: file.read(PIECE), b""))
        time = max(self.tip.time, header.timestamp)
        data = bundles.pack_big(self.tip.point, entry.point, time, entry.size)
        if not self.archive.append(self.tip.point.txid + 1, data):
            return False
        self._advance(bundles.parse(data), header.page_size)
        self.derive()
        return True

    def drop(self, time: int) -> bool:
        """End the timeline: the database was removed at ``time`` (Unix ms). False if it goes on."""
        data = bundles.pack_dropped(self.tip.point, max(time, self.tip.time))
        if not self.archive.append(self.tip.point.txid + 1, data):
            return False
        self._advance(bundles.parse(data), self.tip.page_size)
        return True

    def is_there(self) -> bool:
        """Whether the archive has this timeline, and the last bundle that is known of it."""
        if self.archive.start() != self.start:
            return False
        found = self.archive.bundle(self.tip.bundle) if self.tip.bundle else None
        return found.last == self.tip.point if found is not None else not self.tip.bundle

    def look_again(self) -> Bundle | None:
        """What follows the tip in the archive, if anything does. Raises ArchiveCorrupt."""
        found = self.archive.bundle(self.tip.point.txid + 1)
        if found is not None and found.after != self.tip.point:
            raise ArchiveCorrupt(
                f"{self.archive.url}: bundle {found.first_txid:016x} does not follow {self.tip.point}"
            )
        return found

    def adopt(self, bundle: Bundle) -> None:
        """Go on behind a bundle that ``look_again`` found."""
        size = page_size_of(self.archive, bundle) if bundle.entries else self.tip.page_size
        self._advance(bundle, size)

    def _advance(self, bundle: Bundle, page_size: int) -> None:
        self._pending = self._pending or bundle.first_txid
        time = max(self.tip.time, bundle.last_time)
        self.tip = Tip(bundle.last, time, page_size, bundle.first_txid, bundle.dropped)

    # -- what follows from it -------------------------------------------------------------------------

    def derive(self, last: Bundle | None = None, bodies: Sequence[bytes] | None = None) -> None:
        """Write the files of level 0 that are missing, and after a change of the page size a snapshot.

        ``last``, ``bodies``: the bundle just added, whose records are at hand. Raises ArchiveUnavailable;
        asked again, it goes on.
        """
        while self._pending:
            known = last is not None and last.first_txid == self._pending
            bundle = last if known else self.archive.bundle(self._pending)
            if bundle is None:
                raise ArchiveCorrupt(f"{self.archive.url}: bundle {self._pending:016x} is gone")
            self._derive(bundle, bodies if known else None)
            following = bundle.last.txid + 1
            ended = bundle.first_txid == self.tip.bundle or bundle.dropped
            self._pending = 0 if ended else following

    def _derive(self, bundle: Bundle, bodies: Sequence[bytes] | None) -> None:
        if not bundle.entries:
            return
        size = Header.unpack(bodies[0]).page_size if bodies else page_size_of(self.archive, bundle)
        if self._derived_size and size != self._derived_size:
            write_full_record(self.archive, bundle)
        write_l0(self.archive, bundle, bodies)
        self._derived_size = size

    def note_head(self, as_of: int) -> None:
        """Note that nothing more was committed before ``as_of`` (Unix ms): from now on nothing gets a time
        before that."""
        as_of = max(as_of, self.tip.time)
        tip = self.tip
        self.tip = Tip(tip.point, as_of, tip.page_size, tip.bundle, tip.dropped)
        self.archive.set_head(Head(tip.point.txid, as_of, tip.bundle))


def _header(entry: Entry) -> Header:
    if entry.txid_min != entry.txid_max:
        raise LogCorrupt(f"{entry.extent.path}: offset {entry.extent.offset}: several transactions in one")
    return header_of(entry)


def _groups(entries: Sequence[Entry], page_size: int) -> Iterator[list[Entry]]:
    """What becomes a bundle each: records that change the page size, and big ones, alone."""
    alone: list[bool] = []
    for entry in entries:
        size = entry.extent.page_size
        alone.append(not entry.body or bool(page_size and size != page_size))
        page_size = size
    number = 0

    def key(index: int) -> tuple[bool, int]:
        nonlocal number
        number += alone[index] or (index > 0 and alone[index - 1])
        return alone[index], number

    for _, run in groupby(range(len(entries)), key=key):
        group = [entries[index] for index in run]
        for start in range(0, len(group), MAX_RECORDS):
            yield group[start : start + MAX_RECORDS]
