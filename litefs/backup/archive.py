"""One timeline of a database in an archive: its files by level, and its bundles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from litefs.backup import bundle as bundles
from litefs.backup.bundle import Bundle, Logged
from litefs.backup.layout import (
    ltx_name,
    own,
    parse_bundle_name,
    parse_ltx_name,
    parse_prefix,
    prefix_of,
)
from litefs.backup.target import ENCRYPTED, SEALED, Reader, Target
from litefs.errors import ArchiveCorrupt, ArchiveMissing
from litefs.ltx.format import HEADER_SIZE, Header
from litefs.types import Point


@dataclass(frozen=True, slots=True)
class LtxFile:
    """One LTX file of the archive; ``modified`` as in ``Stored``."""

    level: int
    min_txid: int
    max_txid: int
    size: int
    modified: int
    key: str


@dataclass(frozen=True, slots=True)
class Start:
    """Where a timeline's history begins: every transaction after ``point`` is in it.

    ``reason``: ``new``, ``diverged`` (the one before holds transactions that this history has not), ``gap``
    (transactions in between were never archived), ``recreated`` (the database had been removed).
    """

    point: Point
    time: int
    reason: str
    node: str

    def pack(self) -> bytes:
        """As JSON."""
        fields = {"point": str(self.point), "time": self.time, "reason": self.reason, "node": self.node}
        return json.dumps(fields).encode()

    @classmethod
    def parse(cls, data: bytes) -> Start:
        """Raises ArchiveCorrupt."""
        try:
            found = json.loads(data)
            return cls(
                Point.parse(found["point"]), int(found["time"]), str(found["reason"]), str(found["node"])
            )
        except (ValueError, KeyError, TypeError) as error:
            why = ENCRYPTED if data.startswith(SEALED) else error
            raise ArchiveCorrupt(f"the start of a timeline cannot be read: {why}") from None


@dataclass(frozen=True, slots=True)
class Head:
    """Up to where an archive was complete at time ``as_of`` (Unix ms): the primary had committed no more."""

    txid: int
    as_of: int


class Archive:
    """One timeline on a target. All methods block; they may be called from several threads at a time."""

    def __init__(self, target: Target, prefix: str, name: str = "", number: int = 1) -> None:
        """``prefix``: where it lies in the target, empty if the target's root is itself one timeline."""
        self.target = target
        self.prefix = prefix
        self.name = name or prefix
        self.number = number

    @property
    def url(self) -> str:
        """For messages and for ``litestream restore``."""
        return f"{self.target.name}/{self.prefix}" if self.prefix else self.target.name

    # -- Litestream's files ---------------------------------------------------------------------------

    def files(self, level: int, after: int = 0) -> list[LtxFile]:
        """The files of a level that begin after TXID ``after``, ascending by name."""
        found = []
        name = f"{after:016x}-~" if after else ""  # "~" sorts after every digit
        for stored in self.target.entries(self.target.layout.level(self.prefix, level), name):
            txids = parse_ltx_name(stored.name)
            if txids is not None:
                found.append(LtxFile(level, *txids, stored.size, stored.modified, stored.key))
        return found

    def header(self, file: LtxFile) -> Header:
        """The first 100 bytes of a file. Raises FormatError."""
        return Header.unpack(self.target.read(file.key, 0, HEADER_SIZE))

    def open(self, file: LtxFile) -> Reader:
        """The bytes of a file."""
        return self.target.open(file.key)

    def write(
        self, level: int, min_txid: int, max_txid: int, timestamp: int, data: bytes | Iterable[bytes]
    ) -> str:
        """Store a file, which may replace one of the same name and content; returns its key."""
        key = self.target.layout.level(self.prefix, level) + ltx_name(min_txid, max_txid)
        self.target.write(key, data, timestamp)
        return key

    # -- the history ----------------------------------------------------------------------------------

    def claim(self, node: str, time: int) -> bool:
        """Open this timeline for ``node``; False if somebody did before."""
        data = json.dumps({"node": node, "time": time}).encode()
        return self.target.write(own(self.prefix, "claim"), data, create=True)

    def begin(self, start: Start) -> bool:
        """Say where the history begins, once what it needs (a snapshot) is there; False if it was said."""
        return self.target.write(own(self.prefix, "start"), start.pack(), create=True)

    def start(self) -> Start | None:
        """Where the history begins; None for an archive of Litestream, or a timeline only claimed."""
        try:
            return Start.parse(self.target.read(own(self.prefix, "start")))
        except ArchiveMissing:
            return None

    def append(self, first_txid: int, data: bytes) -> bool:
        """Add a bundle that begins with ``first_txid``; False if another one does."""
        return self.target.write(self._bundle_key(first_txid), data, create=True)

    def bundle(self, first_txid: int) -> Bundle | None:
        """The front of the bundle that begins with ``first_txid``; None if there is none. Raises
        ArchiveCorrupt."""
        key = self._bundle_key(first_txid)
        try:
            data = self.target.read(key, 0, bundles.FIRST_READ)
            if bundles.needed(data) > len(data):
                data = self.target.read(key, 0, bundles.needed(data))
            found = bundles.parse(data)
        except ArchiveMissing:
            return None
        except ArchiveCorrupt as error:
            raise ArchiveCorrupt(f"{self.target.name}/{key}: {error}") from None
        if found.first_txid != first_txid:
            raise ArchiveCorrupt(f"{self.target.name}/{key}: begins with TXID {found.first_txid:016x}")
        return found

    def bundles(self, first_txid: int) -> Iterator[Bundle]:
        """The bundles from the one that begins with ``first_txid`` on, as far as each follows the last.

        Raises ArchiveCorrupt if one follows another history than the one before it leads to.
        """
        last: Point | None = None
        while (found := self.bundle(first_txid)) is not None:
            if last is not None and found.after != last:
                raise ArchiveCorrupt(f"{self.url}: bundle {first_txid:016x} does not follow {last}")
            yield found
            if found.dropped:
                return
            last = found.last
            first_txid = last.txid + 1

    def bundle_names(self, after_txid: int = 0) -> Iterator[tuple[int, int, str]]:
        """(first TXID, bytes, key) of the bundles that begin after ``after_txid``, from their names alone."""
        for stored in self.target.entries(own(self.prefix, "log/"), f"{after_txid:016x}"):
            first = parse_bundle_name(stored.name)
            if first is not None:
                yield first, stored.size, stored.key

    def record(self, found: Bundle, entry: Logged) -> bytes:
        """One transaction as the log had it, checked; not for a big one. Raises ArchiveCorrupt."""
        body = self.target.read(self._bundle_key(found.first_txid), entry.offset, entry.size)
        found.check(entry, body)
        return body

    def records(self, found: Bundle) -> list[bytes]:
        """All transactions of a bundle that is not big, in one request, checked. Raises ArchiveCorrupt."""
        if not found.entries:
            return []
        first, last = found.entries[0], found.entries[-1]
        size = last.offset + last.size - first.offset
        data = self.target.read(self._bundle_key(found.first_txid), first.offset, size)
        bodies = [data[e.offset - first.offset : e.offset - first.offset + e.size] for e in found.entries]
        for entry, body in zip(found.entries, bodies, strict=True):
            found.check(entry, body)
        return bodies

    def write_big(self, point: Point, data: Iterable[bytes]) -> None:
        """Store the record that leads to ``point``, before its bundle is appended."""
        self.target.write(own(self.prefix, bundles.big_name(point)), data)

    def open_big(self, point: Point) -> Reader:
        """The bytes of such a record; they must be checked against the bundle's hash."""
        return self.target.open(own(self.prefix, bundles.big_name(point)))

    def set_head(self, head: Head) -> None:
        """Note up to where the archive is complete."""
        data = json.dumps({"txid": f"{head.txid:016x}", "as-of": head.as_of}).encode()
        self.target.write(own(self.prefix, "head"), data)

    def head(self) -> Head | None:
        """What was noted last; None if nothing was. The archive may be ahead of it. Raises ArchiveCorrupt."""
        try:
            found = json.loads(self.target.read(own(self.prefix, "head")))
            return Head(int(found["txid"], 16), int(found["as-of"]))
        except ArchiveMissing:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ArchiveCorrupt(f"{self.url}: the note of its head cannot be read: {error}") from None

    def _bundle_key(self, first_txid: int) -> str:
        return own(self.prefix, f"log/{first_txid:016x}")


def timelines(target: Target, name: str) -> list[Archive]:
    """All timelines of a database, the newest last, also those that were only claimed."""
    numbers = [
        found[1]
        for component in target.directories("")
        if (found := parse_prefix(component)) is not None and found[0] == name
    ]
    return [Archive(target, prefix_of(name, number), name, number) for number in sorted(numbers)]


def databases(target: Target) -> list[str]:
    """The names of the databases in an archive, ascending."""
    found = {parsed[0] for component in target.directories("") if (parsed := parse_prefix(component))}
    return sorted(found)
