"""Both ends of the stream in memory: test doubles for everything that replicates, without disk and mount.

A record here is u64 TXID, u64 checksum before, u64 checksum after, then per page u32 number and image (page
size fixed by the database); a checksum is the XOR of the pages' hashes with bit 63 set, as in LTX. Not a
real format.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import trio

from litefs.errors import ChecksumMismatch, FormatError, PositionMismatch
from litefs.stream.protocols import Buffer, Source
from litefs.stream.wakeup import Wakeup
from litefs.types import CHECKSUM_FLAG, START, Point, Position

_RECORD = struct.Struct("<QQQ")
BATCH_PAGES = 16
BATCH_BYTES = 256 << 10


def page_hash(pgno: int, image: Buffer) -> int:
    """A checksum for the double only: two CRC-32 side by side, bit 63 set."""
    head = pgno.to_bytes(4, "big")
    return CHECKSUM_FLAG | zlib.crc32(image, zlib.crc32(head)) << 31 | zlib.adler32(image, pgno)


def total(pages: Mapping[int, Buffer]) -> int:
    """Rolling checksum over all pages."""
    value = 0
    for pgno, image in pages.items():
        value ^= page_hash(pgno, image)
    return CHECKSUM_FLAG | value


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """One record of a :class:`MemorySource`."""

    txid_min: int
    txid_max: int
    body: bytes

    @property
    def size(self) -> int:
        return len(self.body)

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.body)


class MemorySource:
    """A database in memory with its whole log; ``commit`` and ``reap`` change it. Thread safe."""

    def __init__(self, name: str, page_size: int = 512, *, page_delay: float = 0.0) -> None:
        self.name = name
        self.page_size = page_size
        self.page_delay = page_delay
        self.pages: dict[int, bytes] = {}
        self.entries: list[tuple[MemoryEntry, Point]] = []
        self.first = START
        self.open_snapshots = 0
        self.fail_snapshots = 0
        self._lock = threading.Lock()

    def is_at(self, point: Point) -> bool:
        return self.point() == point

    def position(self) -> Position:
        return self.point().position

    def point(self) -> Point:
        with self._lock:
            return self._tip()

    def _tip(self) -> Point:
        return self.entries[-1][1] if self.entries else self.first

    def commit(self, changes: Mapping[int, bytes]) -> Position:
        """Append a transaction that writes these pages."""
        with self._lock:
            before = self._tip()
            checksum = before.checksum or CHECKSUM_FLAG
            for pgno, image in changes.items():
                old = self.pages.get(pgno)
                checksum ^= (page_hash(pgno, old) ^ CHECKSUM_FLAG) if old is not None else 0
                checksum ^= page_hash(pgno, image) ^ CHECKSUM_FLAG
                self.pages[pgno] = image
            txid = before.txid + 1
            parts = [_RECORD.pack(txid, before.checksum, checksum)]
            for pgno, image in sorted(changes.items()):
                parts += (struct.pack("<I", pgno), image)
            body = b"".join(parts)
            after = Point(txid, checksum, zlib.crc32(body))
            self.entries.append((MemoryEntry(txid, txid, body), after))
            return after.position

    def reap(self, upto_txid: int) -> None:
        """Forget records up to this TXID."""
        with self._lock:
            while self.entries and self.entries[0][1].txid <= upto_txid:
                self.first = self.entries.pop(0)[1]

    def reader(self) -> MemoryReader:
        return MemoryReader(self)

    def snapshot(self) -> MemoryPages:
        return MemoryPages(self)


class MemoryReader:
    """A cursor over a MemorySource's records."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source
        self._next = 0

    def seek(self, after: Point) -> bool:
        with self._source._lock:
            known = after == self._source.first or any(at == after for _, at in self._source.entries)
        self._next = after.txid + 1
        return known

    def read(self, upto_txid: int, max_bytes: int) -> Sequence[MemoryEntry]:
        found: list[MemoryEntry] = []
        with self._source._lock:
            index = self._next - self._source.first.txid - 1
            if index < 0:
                raise FormatError(f"record {self._next} was reaped")
            while index < len(self._source.entries) and self._next <= upto_txid and max_bytes > 0:
                found.append(self._source.entries[index][0])
                max_bytes -= found[-1].size
                self._next += 1
                index += 1
        return found

    def close(self) -> None:
        pass


class MemoryPages:
    """A snapshot of a MemorySource; pages are read as late as they are asked for."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source
        with source._lock:
            self.at = source._tip()
            self.commit = len(source.pages)
            source.open_snapshots += 1
        self.page_size = source.page_size
        self.timestamp = 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        step = min(BATCH_PAGES, BATCH_BYTES // self.page_size)
        for first in range(1, self.commit + 1, step):
            pgnos = array("I", range(first, min(first + step, self.commit + 1)))
            if self._source.page_delay:
                threading.Event().wait(self._source.page_delay)
            if self._source.fail_snapshots:
                self._source.fail_snapshots -= 1
                raise FormatError("page does not match its checksum")
            with self._source._lock:
                images = b"".join(self._source.pages[pgno] for pgno in pgnos)
            yield pgnos.tobytes(), images

    def close(self) -> None:
        self._source.open_snapshots -= 1


class MemoryCatalog:
    """A catalog of sources that tests add and remove."""

    def __init__(self, *sources: Source) -> None:
        self._wakeup = Wakeup()
        self._sources = {source.name: source for source in sources}
        self.tombstones: dict[str, int] = {}
        self.generation = 0

    @property
    def revision(self) -> int:
        return self._wakeup.revision

    def sources(self) -> Mapping[str, Source]:
        return self._sources

    def add(self, source: Source) -> None:
        """Add or replace a database."""
        self._sources[source.name] = source
        self.generation += 1
        self.notify()

    def remove(self, name: str) -> None:
        """Drop a database."""
        del self._sources[name]
        self.generation += 1
        self.notify()

    def dropped(self, name: str) -> int:
        return 0 if name in self._sources else self.tombstones.get(name, 0)

    def notify(self) -> None:
        self._wakeup.notify()

    async def wait_change(self, seen: int) -> int:
        return await self._wakeup.wait_change(seen)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._wakeup.listen(callback)


class MemorySink:
    """A replica in memory that checks every record as a real one does and counts what it was told."""

    def __init__(self, *, delay: Callable[[str], float] = lambda name: 0.0) -> None:
        self.pages: dict[str, dict[int, bytes]] = {}
        self.at: dict[str, Point] = {}
        self.batches: list[tuple[str, int]] = []
        self.snapshots: list[str] = []
        self.aborted: list[str] = []
        self.dropped: list[str] = []
        self.removed: list[str] = []
        self.times: list[int] = []
        self.ready_count = 0
        self.changed = Wakeup()
        self._delay = delay
        self._building: dict[str, tuple[int, dict[int, bytes]]] = {}
        self._page_size: dict[str, int] = {}

    def positions(self) -> Mapping[str, Point]:
        return dict(self.at)

    async def wait_position(self, name: str, position: Position) -> None:
        """Wait until a database is at ``position``; the caller sets the deadline."""
        while name not in self.at or self.at[name].position != position:
            await self.changed.wait_change(self.changed.revision)

    async def records(self, name: str, bodies: Sequence[Buffer]) -> Position:
        await trio.sleep(self._delay(name))
        building = self._building.get(name)
        for body in bodies:
            txid, before, after = _RECORD.unpack_from(body)
            pages = self.pages[name] if building is None else building[1]
            if building is None and (txid, before) != (self.at[name].txid + 1, self.at[name].checksum):
                raise PositionMismatch(f"{name}: record {txid} does not follow {self.at[name]}")
            step = 4 + self._page_size[name]
            for at in range(_RECORD.size, len(body), step):
                (pgno,) = struct.unpack_from("<I", body, at)
                pages[pgno] = bytes(body[at + 4 : at + step])
            if building is None:
                self.at[name] = Point(txid, after, zlib.crc32(body))
        if building is None and total(self.pages[name]) != self.at[name].checksum:
            raise ChecksumMismatch(f"{name}: pages do not add up at {self.at[name]}")
        self.batches.append((name, len(bodies)))
        self.changed.notify()
        return self.at.get(name, START).position

    async def snapshot_begin(self, name: str, page_size: int, commit: int, at: Point, timestamp: int) -> None:
        self._building[name] = (commit, {})
        self._page_size[name] = page_size

    async def snapshot_pages(self, name: str, pgnos: bytes, images: bytes) -> None:
        await trio.sleep(self._delay(name))
        size = self._page_size[name]
        pages = self._building[name][1]
        for index, pgno in enumerate(array("I", pgnos)):
            pages[pgno] = images[index * size : (index + 1) * size]
        self.changed.notify()

    async def snapshot_end(self, name: str, point: Point) -> None:
        _, pages = self._building.pop(name)
        if total(pages) != point.checksum:
            raise ChecksumMismatch(f"{name}: the snapshot does not add up to {point}")
        self.pages[name], self.at[name] = pages, point
        self.snapshots.append(name)
        self.changed.notify()

    async def snapshot_abort(self, name: str) -> None:
        self._building.pop(name, None)
        self.aborted.append(name)

    async def drop(self, name: str, *, deliberate: bool = False) -> None:
        await trio.sleep(self._delay(name))
        self.pages.pop(name, None)
        self.at.pop(name, None)
        self.dropped.append(name)
        if deliberate:
            self.removed.append(name)
        self.changed.notify()

    def primary_time(self, timestamp_ms: int) -> None:
        self.times.append(timestamp_ms)
        self.changed.notify()

    def ready(self) -> None:
        self.ready_count += 1
        self.changed.notify()
