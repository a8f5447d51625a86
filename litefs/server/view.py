"""What the HTTP server asks of the node that it shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Protocol

from litefs.errors import FormatError
from litefs.meters import Meters
from litefs.server.event_hub import EventHub
from litefs.server.status_format import Status
from litefs.server.waiting import Waiting
from litefs.stream.acks import Ack, AckAnswer, ReplicaInfo
from litefs.stream.protocols import Catalog, Entry, Identity, Source
from litefs.types import Point, Position


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """One database in figures: sizes in bytes, ``pages`` of it; a log of ``log_segments`` files that begins
    with ``first_txid`` (0: there is none); ``commits`` is how many transactions it has gained since this
    process started, by clients here or from the primary.

    ``damaged``: it is served for reading only. ``sync``: so many replicas must hold a commit. ``lag``: how
    old, in seconds, the last transaction from the primary was when it was applied here; None without one.
    """

    name: str
    position: Position
    page_size: int = 0
    pages: int = 0
    commits: int = 0
    log_segments: int = 0
    log_bytes: int = 0
    first_txid: int = 0
    damaged: bool = False
    sync: int = 0
    lag: float | None = None


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """``term`` counts changes of primary; ``role_changes``: how often this node became primary or ceased to
    be, since its start; ``ready`` as of ``/readyz``; ``lost``: directories of ``lost/``, of what is kept of
    removed databases not counted."""

    term: int
    role_changes: int
    ready: bool
    lost: int


@dataclass(frozen=True, slots=True)
class Export:
    """A consistent copy of a database, ``size`` bytes in a file without a name: closed, or forgotten with a
    request that was given up, it is gone."""

    file: IO[bytes]
    size: int


class Replicas(Protocol):
    """What the node wants to know of its replicas while it is primary."""

    def joined(
        self,
        replica: Identity,
        stream_id: int,
        offered: Mapping[str, Point],
        sources: Mapping[int, Source],
        *,
        whole: bool,
    ) -> None:
        """A stream begins: ``offered`` is what the replica has, ``sources`` are its databases by handle;
        ``whole``: all that there are, and that there will be."""

    def left(self, replica: Identity, stream_id: int) -> None:
        """That stream ended."""

    def acknowledged(self, replica: Identity, stream_id: int, ack: Ack) -> AckAnswer:
        """What a replica says that it holds. Raises StreamEnded, NotPrimary."""

    def connected(self) -> Sequence[ReplicaInfo]:
        """The replicas whose streams are open."""


@dataclass(frozen=True, slots=True)
class DrillFigures:
    """The restore drills of a database since the start. ``sound``, ``ended`` (Unix s), ``seconds`` and the
    restored ``txid`` are those of the last one."""

    name: str
    sound: bool = True
    ended: float = 0.0
    seconds: float = 0.0
    txid: int = 0
    runs: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class ArchiveFigures:
    """How far the archive of a database is, as the primary keeps it: everything up to ``txid`` is in timeline
    ``timeline`` (0: not known yet); ``behind`` transactions are not, the oldest of them for ``lag`` seconds.
    ``bytes`` sent, ``objects`` and ``snapshots`` stored, ``errors``: since this node became primary;
    ``error``: what keeps it from going on, empty if nothing does."""

    name: str
    timeline: int = 0
    txid: int = 0
    behind: int = 0
    lag: float = 0.0
    bytes: int = 0
    objects: int = 0
    snapshots: int = 0
    errors: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class HaltGrant:
    """A HALT lock that is held: where the database is, and until when (Unix s) unless it is renewed."""

    point: Point
    expires: float

    def render(self, lock_id: int) -> str:
        """The JSON of Go LiteFS's ``POST /halt``, and the hash of the last record."""
        position = {
            "TXID": f"{self.point.txid:016x}",
            "PostApplyChecksum": f"{self.point.checksum:016x}",
            "RecordHash": f"{self.point.hash:016x}",
        }
        expires = datetime.fromtimestamp(self.expires, UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({"id": lock_id, "pos": position, "expires": expires}) + "\n"

    @classmethod
    def parse(cls, text: bytes) -> HaltGrant:
        """What ``render`` made. Raises FormatError."""
        try:
            found = json.loads(text)
            position = found["pos"]
            point = "/".join(position[key] for key in ("TXID", "PostApplyChecksum", "RecordHash"))
            return cls(Point.parse(point), datetime.fromisoformat(found["expires"]).timestamp())
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not a HALT lock: {text[:200]!r}") from error


class NodeView(Protocol):
    """The node as its HTTP server sees it. Properties are cheap and read at each request."""

    @property
    def identity(self) -> Identity: ...
    @property
    def is_primary(self) -> bool: ...
    @property
    def candidate(self) -> bool: ...
    @property
    def mountpoint(self) -> str: ...

    @property
    def primary_hostname(self) -> str | None:
        """Hostname of the primary while connected to another one."""

    @property
    def held_up(self) -> Sequence[str]:
        """Who keeps this node from being a replica, a line for each."""

    def lacks(self) -> Sequence[str]:
        """What stands between this node and the role of the primary, a line for each database that it is
        behind in; nothing while another primary lives, which would hand over all that it has."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def replicas(self) -> Replicas: ...

    @property
    def snapshot_seconds(self) -> float:
        """How long a snapshot may take; infinity if it may take as long as it does."""

    @property
    def waiting(self) -> Waiting: ...

    @property
    def events(self) -> EventHub: ...

    @property
    def lag_seconds(self) -> float | None:
        """How far this replica is behind; 0 on the primary, None before its first contact with one."""

    def databases(self) -> Sequence[DatabaseInfo]:
        """All of them, by name. Reads files: call it in a worker thread."""

    def locks(self, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """SQLite's locks on these databases of the mount: "unlocked", "shared" or "exclusive" by name. For a
        worker thread: it blocks."""

    def meters(self) -> Meters:
        """What both processes of the node have counted and timed."""

    def figures(self) -> NodeFigures:
        """The node itself in figures. Reads a directory: call it in a worker thread."""

    def status(self, databases: Sequence[DatabaseInfo]) -> Status:
        """How this node and its cluster are, of which ``databases`` are to be told."""

    async def readers_see(self, name: str) -> bool:
        """Whether a transaction that begins now on the mount sees ``name`` at its position: not for a moment
        at a commit of this node's clients. Raises DatabaseNotFound, OSError."""

    async def holds(self, name: str, position: Position) -> bool:
        """Whether ``position`` is in the history of ``name`` here; true also if the log does not reach so far
        back."""

    async def import_database(
        self, name: str, chunks: AsyncIterable[bytes], *, check: bool, peer: bool
    ) -> Position:
        """Replace or create ``name`` by the SQLite database in ``chunks``, here or on the primary; its
        position afterwards, which readers here see. ``check``: nothing is replaced unless it is sound. A
        ``peer``, that is another node, asks a primary only. Raises NotPrimary, FormatError, PeerError,
        WaitTimeout, LiteFSError.
        """

    async def export_database(self, name: str, *, check: bool) -> Export:
        """A copy of ``name``, with ``check`` a sound one. Raises DatabaseNotFound, LiteFSError."""

    def unready(self) -> Sequence[str]:
        """Why this node should get no requests, whatever its lag, a line each."""

    async def unhealthy(self) -> str:
        """Why this node does not work; empty if it does. Bounded."""

    async def drop_database(self, name: str) -> None:
        """Remove ``name``, here and so on all replicas; raises DatabaseNotFound, NotPrimary, OSError."""

    async def archive_snapshot(self, name: str) -> Mapping[str, int]:
        """Write a whole copy of ``name``, or if it is empty of all databases, into the archive now; the TXIDs
        by database. Raises NotPrimary, NotSupported without an archive, DatabaseNotFound, LiteFSError."""

    def drills(self) -> Sequence[DrillFigures]:
        """What the node's own restore drills found, by database."""

    def archived(self) -> Sequence[ArchiveFigures]:
        """How far the archive of each database is; nothing without one, and on replicas."""

    async def before_stream(self) -> None:
        """A replica is about to be sent what this node has. Raises OSError."""

    def saw_term(self, term: int) -> None:
        """Another node of the cluster named that term."""

    async def handoff(self, node_id: int | None) -> None:
        """Pass the primary role to that replica, or to the nearest one. Raises NotPrimary, HandoffFailed."""

    async def promote(self, *, force: bool) -> str:
        """Become primary, with ``force`` whatever is missing here; returns what was lost. Raises NotEligible,
        HandoffFailed, PeerError."""

    async def halt(self, name: str, lock_id: int, peer: Identity | None, renew: bool) -> HaltGrant:
        """Get or renew the HALT lock of a database: for a replica, or for a client of this node (None), which
        on the primary needs none. With ``renew`` it must be held already. Raises DatabaseNotFound,
        DatabaseBusy, HaltRefused, NotPrimary, LiteFSError.
        """

    async def unhalt(self, name: str, lock_id: int, peer: Identity | None) -> None:
        """Give it up; harmless if it is not held under that id."""

    async def forward(
        self, name: str, lock_id: int, peer: Identity, chunks: AsyncIterable[bytes], size: int
    ) -> Entry:
        """Commit the LTX record of ``size`` bytes in ``chunks``, which the holder of a HALT lock ships.

        Returns the record that was logged of it, which the holder logs too. Raises HaltRefused, NotPrimary,
        PositionMismatch, LiteFSError.
        """
