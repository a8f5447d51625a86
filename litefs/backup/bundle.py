"""Bundles: the transactions of about a second as the log has them, each with its checksum.

Litestream's files merge transactions and carry no database checksums; bundles are what makes every single
TXID restorable and provable. A bundle is named by its first TXID and only ever created, never replaced: of
two archivers that would follow the same transaction one wins, so a timeline's bundles are one history.

Little-endian::

    head, 64 bytes   "LFSBNDL1", u32 count, u32 flags, u64 txid, checksum, hash (the point that it follows),
                     i64 time (Unix ms: of the removal, else 0), u64 0, u64 0
    count * 48       u64 txid, i64 time (Unix ms), u64 checksum after it, u64 hash, u64 offset, u64 size
    u64              XXH3-64 of all bytes before
    records          as in the log, LTX v3 with checksums; offset counts from the first byte of the bundle

Flag 1: the only record lies in ``big/TXID-HASH`` (offset 0). Flag 2: no record; the database was removed
after the point. Times never decrease, from bundle to bundle too, whatever clocks of primaries say.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from litefs.backup.target import ENCRYPTED, SEALED
from litefs.errors import ArchiveCorrupt
from litefs.store.segments import record_hash
from litefs.types import Point

MAX_BYTES = 16 << 20
"""Of records in one bundle, unless it is a single one."""
MAX_EMBEDDED = 64 << 20
"""A record above this lies beside its bundle: what is created must be sent in one piece."""
MAX_RECORDS = 65536

FLAG_BIG = 1
FLAG_DROPPED = 2

_HEAD = struct.Struct("<8sIIQQQq16x")
_ENTRY = struct.Struct("<QqQQQQ")
_HASH = struct.Struct("<Q")
_MAGIC = b"LFSBNDL1"
FIRST_READ = 16 << 10
"""Bytes with which most bundles' entries are read in one request."""


@dataclass(frozen=True, slots=True)
class Logged:
    """One transaction in a bundle: ``point`` after it, ``time`` (Unix ms), ``size`` bytes at ``offset``."""

    point: Point
    time: int
    offset: int
    size: int

    @property
    def txid(self) -> int:
        return self.point.txid


@dataclass(frozen=True, slots=True)
class Bundle:
    """The front of a bundle: which transactions it holds and where. ``time`` is that of a removal."""

    after: Point
    entries: tuple[Logged, ...]
    flags: int = 0
    time: int = 0

    @property
    def first_txid(self) -> int:
        return self.after.txid + 1

    @property
    def last(self) -> Point:
        """The point that it leads to."""
        return self.entries[-1].point if self.entries else self.after

    @property
    def last_time(self) -> int:
        return self.entries[-1].time if self.entries else self.time

    @property
    def dropped(self) -> bool:
        return bool(self.flags & FLAG_DROPPED)

    @property
    def big(self) -> bool:
        return bool(self.flags & FLAG_BIG)

    def check(self, entry: Logged, body: bytes) -> None:
        """Raises ArchiveCorrupt unless ``body`` is that entry's record, whole."""
        if len(body) != entry.size or record_hash(body, len(body)) != entry.point.hash:
            raise ArchiveCorrupt(f"the record of TXID {entry.txid:016x} is damaged")


def big_name(point: Point) -> str:
    """Where the record that leads to ``point`` lies if it is too big for a bundle, below ``litefs/``."""
    return f"big/{point.txid:016x}-{point.hash:016x}"


def front_size(count: int) -> int:
    """Bytes before the first record."""
    return _HEAD.size + count * _ENTRY.size + _HASH.size


def pack(after: Point, records: list[tuple[Point, int, bytes]]) -> bytes:
    """A bundle of (point after it, time, record) that follows ``after``."""
    offset = front_size(len(records))
    entries = []
    for point, time, body in records:
        entries.append(Logged(point, time, offset, len(body)))
        offset += len(body)
    return b"".join([_front(Bundle(after, tuple(entries))), *(body for _, _, body in records)])


def pack_big(after: Point, point: Point, time: int, size: int) -> bytes:
    """A bundle whose one record of ``size`` bytes lies at ``big_name(point)``."""
    return _front(Bundle(after, (Logged(point, time, 0, size),), FLAG_BIG))


def pack_dropped(after: Point, time: int) -> bytes:
    """A bundle that says that the database was removed at ``time``."""
    return _front(Bundle(after, (), FLAG_DROPPED, time))


def _front(bundle: Bundle) -> bytes:
    after = bundle.after
    front = _HEAD.pack(
        _MAGIC, len(bundle.entries), bundle.flags, after.txid, after.checksum, after.hash, bundle.time
    ) + b"".join(
        _ENTRY.pack(e.point.txid, e.time, e.point.checksum, e.point.hash, e.offset, e.size)
        for e in bundle.entries
    )
    return front + _HASH.pack(xxhash.xxh3_64_intdigest(front))


def needed(data: bytes) -> int:
    """How many bytes of a bundle that begins with ``data`` (64 or more) ``parse`` needs. Raises
    ArchiveCorrupt."""
    if len(data) < _HEAD.size or data[:8] != _MAGIC:
        raise ArchiveCorrupt(ENCRYPTED if data.startswith(SEALED) else "not a bundle of transactions")
    count = _HEAD.unpack_from(data)[1]
    if count > MAX_RECORDS:
        raise ArchiveCorrupt(f"a bundle of {count} transactions")
    return front_size(count)


def parse(data: bytes) -> Bundle:
    """The front of a bundle, from at least ``needed`` bytes of it. Raises ArchiveCorrupt."""
    size = needed(data)
    if len(data) < size:
        raise ArchiveCorrupt(f"a bundle of {len(data)} bytes, {size} at least")
    end = size - _HASH.size
    if _HASH.unpack_from(data, end)[0] != xxhash.xxh3_64_intdigest(data[:end]):
        raise ArchiveCorrupt("the checksum of a bundle's front is wrong")
    _, count, flags, txid, checksum, digest, time = _HEAD.unpack_from(data)
    entries = tuple(
        Logged(Point(found[0], found[2], found[3]), found[1], found[4], found[5])
        for found in _ENTRY.iter_unpack(data[_HEAD.size : end])
    )
    bundle = Bundle(Point(txid, checksum, digest), entries, flags, time)
    wanted = list(range(txid + 1, txid + 1 + count))
    if [entry.txid for entry in entries] != wanted or bundle.dropped == bool(entries):
        raise ArchiveCorrupt(f"the transactions of bundle {txid + 1:016x} are not in order")
    return bundle
