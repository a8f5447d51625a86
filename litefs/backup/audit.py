"""Look at every object of a timeline: is it whole, does it follow the one before, does it say what the
transactions say. Blocks; memory: 9 bytes a page of the database, and one bundle.

The transactions of the bundles are replayed in order as page checksums. After each one the rolling checksum
must be the recorded one; each file that ends there must hold what the replay has. So what is sound here is
restored exactly, whichever files a restore chooses.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import xxhash

from litefs.backup.archive import Archive, Head, LtxFile, Start
from litefs.backup.bundle import Bundle, Logged
from litefs.backup.layout import LEVELS, SNAPSHOT_LEVEL
from litefs.backup.replay import Replay
from litefs.errors import ArchiveCorrupt, ArchiveMissing, FormatError
from litefs.ltx.decoder import Decoder
from litefs.store.segments import LENGTH
from litefs.types import Point

MAX_PROBLEMS = 100
"""That are told; of more their number."""

Advance = Callable[[int], object]


@dataclass(slots=True)
class Audit:
    """What was looked at and what is wrong. ``proved``: files whose content the transactions confirm; the
    others are older than the transactions that are kept, or were written by Litestream, and merely whole.
    ``notes``: what is unusual and harms nothing."""

    first: int = 0
    last: int = 0
    last_time: int = 0
    transactions: int = 0
    bundles: int = 0
    files: int = 0
    proved: int = 0
    size: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more: int = 0

    @property
    def sound(self) -> bool:
        return not self.problems

    def problem(self, text: str) -> None:
        """Note what is wrong."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)
        else:
            self.more += 1


@dataclass(slots=True)
class Listing:
    """The names in a timeline, taken so that what is added meanwhile does not look wrong: what was derived is
    listed before what it is derived from."""

    head: Head | None
    start: Start | None
    files: dict[int, list[LtxFile]]
    bundles: list[tuple[int, int, str]]

    @classmethod
    def of(cls, archive: Archive) -> Listing:
        """Raises ArchiveUnavailable, ArchiveCorrupt."""
        head, start = archive.head(), archive.start()
        files = {level: archive.files(level) for level in reversed(LEVELS)}
        return cls(head, start, files, list(archive.bundle_names()))

    @property
    def size(self) -> int:
        """Bytes of all objects that are named."""
        return sum(file.size for files in self.files.values() for file in files) + sum(
            size for _, size, _ in self.bundles
        )


def check_names(listing: Listing, audit: Audit) -> None:
    """What the names alone tell: gaps and overlaps within levels, and between them."""
    for level, files in listing.files.items():
        if level == SNAPSHOT_LEVEL:
            for file in files:
                if file.min_txid != 1:
                    audit.problem(f"{file.key}: a snapshot that does not begin with transaction 1")
            continue
        for one, two in pairwise(files):
            if two.min_txid > one.max_txid + 1:
                lacking = f"TXID {one.max_txid + 1:016x} to {two.min_txid - 1:016x}"
                audit.problem(f"level {level}: a gap: no file has {lacking}")
            elif two.min_txid <= one.max_txid:
                audit.notes.append(f"{one.key} and {two.key} overlap, as after a change of the archiver")
    _check_ladder(listing, audit)


def _check_ladder(listing: Listing, audit: Audit) -> None:
    """A level begins where the one above it ends, or before; the lowest ones reach back to a snapshot."""
    reached = 0
    for level in range(SNAPSHOT_LEVEL, -1, -1):
        files = listing.files[level]
        if level == SNAPSHOT_LEVEL:
            reached = files[0].max_txid if files else 0
            continue
        if files and files[0].min_txid > reached + 1:
            audit.problem(
                f"level {level}: a gap: no file of this level or above has TXID {reached + 1:016x} to "
                f"{files[0].min_txid - 1:016x}"
            )
        if files:
            reached = max(reached, files[-1].max_txid)


class Auditor:
    """One timeline. ``advance`` is told of each piece of work, in bytes."""

    def __init__(self, archive: Archive, advance: Advance = lambda count: None) -> None:
        self._archive = archive
        self._advance = advance
        self._replay = Replay()
        self._audit = Audit()
        self._listing = Listing.of(archive)
        self._ends: dict[int, list[LtxFile]] = {}
        self._begins: dict[int, list[LtxFile]] = {}
        self._time = 0

    @property
    def size(self) -> int:
        """Bytes to look at."""
        return self._listing.size

    def run(self) -> Audit:
        """Look at everything. Raises ArchiveUnavailable."""
        listing, audit = self._listing, self._audit
        audit.size = listing.size
        check_names(listing, audit)
        for files in listing.files.values():
            for file in files:
                self._ends.setdefault(file.max_txid, []).append(file)
                if file.level != SNAPSHOT_LEVEL:
                    self._begins.setdefault(file.min_txid, []).append(file)
        if listing.bundles:
            self._walk()
        for files in list(self._ends.values()):
            for file in files:
                self._check_alone(file)
                if listing.bundles and file.max_txid > audit.last:
                    audit.problem(f"{file.key}: goes beyond TXID {audit.last:016x}, the last of the bundles")
        self._check_end()
        return audit

    # -- the transactions -----------------------------------------------------------------------------

    def _walk(self) -> None:
        first = self._listing.bundles[0][0]
        start = self._listing.start
        if start is not None and first > start.point.txid + 1 and not self._ends:
            self._audit.problem(f"bundle {start.point.txid + 1:016x} is missing, and no snapshot is after it")
        self._audit.first = first
        self._replay.txid = first - 1
        last: Point | None = None
        if first > 1:
            self._replay.forget()
        for name, size, key in self._listing.bundles:
            bundle = self._bundle(name, key)
            self._advance(size)
            if bundle is None:
                last = None
                self._replay.forget()
                continue
            if last is not None and name != last.txid + 1:
                self._audit.problem(f"bundle {last.txid + 1:016x} is missing: TXIDs up to {name - 1:016x}")
                self._replay.forget()
            elif last is not None and bundle.after != last:
                self._audit.problem(f"{key}: follows {bundle.after}, not {last}: another history")
                self._replay.forget()
            if not self._replay.known:
                self._arrive(bundle.after)
            self._bundle_records(bundle, key)
            last = bundle.last
        if last is not None:
            self._audit.last = last.txid

    def _bundle(self, name: int, key: str) -> Bundle | None:
        try:
            found = self._archive.bundle(name)
        except ArchiveCorrupt as error:
            self._audit.problem(str(error))
            return None
        if found is None and not self._pruned_bundle(name):
            self._audit.problem(f"{key}: listed, but not there")
        return found

    def _pruned_bundle(self, name: int) -> bool:
        """Whether a bundle went, with all before it, since it was listed."""
        first = next(iter(self._archive.bundle_names()), None)
        return first is not None and first[0] > name

    def _bundle_records(self, bundle: Bundle, key: str) -> None:
        audit = self._audit
        audit.bundles += 1
        bodies: list[bytes] = []
        if not bundle.big:
            try:
                bodies = self._archive.records(bundle)
            except (ArchiveCorrupt, ArchiveMissing) as error:
                audit.problem(f"{key}: {error}")
                self._replay.forget()
                return
        for number, entry in enumerate(bundle.entries):
            audit.transactions += 1
            if entry.time < self._time:
                audit.problem(
                    f"{key}: the time of TXID {entry.txid:016x} is before that of the one before it"
                )
            self._time = audit.last_time = entry.time
            try:
                if bundle.big:
                    with self._big(entry) as decoder:
                        self._record(entry, decoder)
                else:
                    self._record(entry, Decoder(io.BytesIO(bodies[number]).read))
            except (FormatError, ArchiveMissing) as error:
                audit.problem(f"{key}: TXID {entry.txid:016x}: {error}")
                self._replay.forget()
            self._arrive(entry.point, entry.time)

    def _record(self, entry: Logged, decoder: Decoder) -> None:
        header = decoder.header
        if (header.min_txid, header.max_txid) != (entry.txid, entry.txid):
            raise ArchiveCorrupt(f"its record is that of {header.min_txid:016x}-{header.max_txid:016x}")
        if not self._replay.known:
            for _ in decoder:
                pass
            return
        for file in self._begins.get(entry.txid, ()):
            self._replay.follow(file)
        self._replay.apply(decoder)
        if self._replay.checksum != entry.point.checksum:
            raise ArchiveCorrupt(
                f"its pages lead to checksum {self._replay.checksum:016x}, not {entry.point.checksum:016x}"
            )

    @contextmanager
    def _big(self, entry: Logged) -> Iterator[Decoder]:
        reader = self._archive.open_big(entry.point)
        digest, size = xxhash.xxh3_64(), 0

        def read(count: int) -> bytes:
            nonlocal size
            piece = reader.read(count)
            digest.update(piece)
            size += len(piece)
            self._advance(len(piece))
            return piece

        try:
            yield Decoder(read)
            digest.update(LENGTH.pack(size))
            if size != entry.size or digest.intdigest() != entry.point.hash:
                raise ArchiveCorrupt("the record is damaged")
        finally:
            reader.close()

    # -- the files ------------------------------------------------------------------------------------

    def _arrive(self, point: Point, time: int | None = None) -> None:
        """The files that end with a transaction; one of them may be the snapshot that makes it known."""
        files = self._ends.pop(point.txid, [])
        for file in sorted(files, key=lambda file: -file.level):
            if not self._replay.known:
                if file.level != SNAPSHOT_LEVEL:
                    self._check_alone(file)
                    continue
                self._check(file, self._replay.load, time)
                if self._replay.known and self._replay.checksum != point.checksum:
                    self._audit.problem(
                        f"{file.key}: its pages have checksum {self._replay.checksum:016x}, that of "
                        f"TXID {point.txid:016x} is {point.checksum:016x}"
                    )
                    self._replay.forget()
                elif self._replay.known:
                    self._audit.proved += 1
                continue
            if self._check(file, partial(self._replay.compare, file), time):
                self._audit.proved += 1

    def _check_alone(self, file: LtxFile) -> None:
        def read(decoder: Decoder) -> None:
            for _ in decoder:
                pass

        self._check(file, read, None)

    def _check(self, file: LtxFile, look: Callable[[Decoder], None], time: int | None) -> bool:
        """Read a file whole; whether it is sound."""
        audit = self._audit
        audit.files += 1
        self._advance(file.size)
        try:
            reader = self._archive.open(file)
            try:
                decoder = Decoder(reader.read)
                header = decoder.header
                if (header.min_txid, header.max_txid) != (file.min_txid, file.max_txid):
                    raise ArchiveCorrupt(f"holds {header.min_txid:016x}-{header.max_txid:016x}")
                look(decoder)
            finally:
                reader.close()
            if time is not None and header.timestamp != time:
                raise ArchiveCorrupt(f"its time is {header.timestamp}, that of the transaction {time}")
        except FormatError as error:
            audit.problem(f"{file.key}: {error}")
            return False
        except ArchiveMissing:
            if any(other.key == file.key for other in self._archive.files(file.level)):
                audit.problem(f"{file.key}: listed, but not there")
            else:
                audit.files -= 1  # removed meanwhile, since other files hold what it held
            return False
        return True

    def _check_end(self) -> None:
        head, audit = self._listing.head, self._audit
        if not self._listing.bundles:
            audit.last = max(
                (files[-1].max_txid for files in self._listing.files.values() if files), default=0
            )
        if head is not None and head.txid > audit.last:
            audit.problem(
                f"it was complete up to TXID {head.txid:016x}, but what follows {audit.last:016x} is gone"
            )
