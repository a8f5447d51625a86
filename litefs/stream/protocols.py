"""What the two ends of the stream ask of the rest of the node.

The sender pulls from a :class:`Catalog` of :class:`Source` objects; the receiver pushes into a :class:`Sink`.
Both sides are protocols, so that tests run them in memory and ``node.py`` hands in the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from litefs.types import Point, Position

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes that the callee must not keep after it returns."""


@dataclass(frozen=True, slots=True)
class Identity:
    """How a node introduces itself to a peer.

    ``node_id`` is random per start, ``cluster_id`` empty until the node has joined a cluster (``LFSC`` + 16
    hex), ``term`` counts changes of primary (0 = unknown), ``hostname`` is what ``.primary`` shows on
    replicas.
    """

    node_id: int
    cluster_id: str = ""
    term: int = 0
    hostname: str = ""


class RecordStream(Protocol):
    """The body of one record, read from its first byte on."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Entry(Protocol):
    """One record of a log: ``size`` bytes in ``body``; empty if too big for memory, then take ``open()``."""

    @property
    def txid_min(self) -> int: ...
    @property
    def txid_max(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    def open(self) -> RecordStream: ...


class RecordReader(Protocol):
    """A cursor over one database's log; several may be open at a time, in any process."""

    def seek(self, after: Point) -> bool:
        """Place the cursor behind ``after``. False if that point is not in this log's history."""

    def read(self, upto_txid: int, max_bytes: int) -> Sequence[Entry]:
        """The next records with TXID <= ``upto_txid``: about ``max_bytes``, at least one if there is one."""

    def close(self) -> None: ...


class Pages(Protocol):
    """A walk over one database's pages for a snapshot; made and iterated in a worker thread."""

    @property
    def at(self) -> Point:
        """Where the database was when the walk began; pages may be newer, never older."""

    @property
    def page_size(self) -> int: ...
    @property
    def commit(self) -> int: ...
    @property
    def timestamp(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[bytes, Buffer]]:
        """Batches of (page numbers as native u32, page images), at most about 256 KiB of images each."""

    def close(self) -> None: ...


class Source(Protocol):
    """One database as the sender sees it."""

    @property
    def name(self) -> str: ...
    @property
    def page_size(self) -> int: ...

    def position(self) -> Position:
        """The last published position; cheap, and safe while another process commits."""

    def point(self) -> Point:
        """As ``position``, for other nodes."""

    def is_at(self, point: Point) -> bool:
        """Whether that is the last published point. Far cheaper than to ask for it; no, in the middle of
        a commit, may be wrong.
        """

    def reader(self) -> RecordReader: ...

    def snapshot(self) -> Pages:
        """Begin a snapshot; keeps the log from being reaped beyond ``at`` until it is closed."""


class Catalog(Protocol):
    """The databases of a node and the one wake-up that says "some log has advanced"."""

    @property
    def revision(self) -> int:
        """Grows with every :meth:`notify`."""

    @property
    def generation(self) -> int:
        """Grows whenever the set of databases changes."""

    def sources(self) -> Mapping[str, Source]: ...

    def dropped(self, name: str) -> int:
        """The TXID at which a database was removed on purpose.

        0 if it never was, or if there is a database of that name again that has a transaction.
        """

    def notify(self) -> None:
        """Something changed. Wake-ups coalesce."""

    async def wait_change(self, seen: int) -> int:
        """Return the revision once it differs from ``seen``; at once if it does already."""

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` at each notification until the returned function is called."""


class Sink(Protocol):
    """Where received records and snapshots go. Calls for one database never overlap."""

    def positions(self) -> Mapping[str, Point]:
        """What this replica holds, database by database."""

    async def records(self, name: str, bodies: Sequence[Buffer]) -> Position:
        """Apply contiguous whole LTX records; between snapshot_begin and snapshot_end they are its tail.

        Raises PositionMismatch, ChecksumMismatch or FormatError; nothing after the offending record was
        applied.
        """

    async def snapshot_begin(
        self, name: str, page_size: int, commit: int, at: Point, timestamp: int
    ) -> None: ...

    async def snapshot_pages(self, name: str, pgnos: bytes, images: bytes) -> None:
        """``pgnos`` are native u32; ``images`` holds one page for each."""

    async def snapshot_end(self, name: str, point: Point) -> None:
        """The database must now be exactly at ``point``; raises ChecksumMismatch, PositionMismatch."""

    async def snapshot_abort(self, name: str) -> None: ...

    async def drop(self, name: str, *, deliberate: bool = False) -> None:
        """The primary does not hold this database; ``deliberate``: because somebody removed it there."""

    def primary_time(self, timestamp_ms: int) -> None:
        """All that the primary had committed at this time of its clock has been applied here."""

    def ready(self) -> None:
        """Every database has caught up once since the stream began."""


class Observer:
    """Is told which databases a received stream has, by handle, and when the sink has more of one. This one
    takes no notice."""

    async def run(self) -> None:
        """Run beside the stream, from its hello to its end. A LiteFSError that it raises ends the stream."""

    def begins(self, handle: int, name: str) -> None:
        """The stream has that database from now on."""

    def holds(self, handle: int) -> None:
        """What was received of it is in the sink, and follows on what was there."""

    def ends(self, handle: int) -> None:
        """The primary has it no more."""
