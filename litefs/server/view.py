"""What the HTTP server asks of the node that it shows."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from litefs.stream.acks import Ack, AckAnswer, ReplicaInfo
from litefs.stream.protocols import Catalog, Identity, Source
from litefs.types import Position


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """One database in figures: sizes in bytes, ``log_segments`` files of log, commits since the start;
    ``damaged``: it is served for reading only."""

    name: str
    position: Position
    commits: int = 0
    log_segments: int = 0
    log_bytes: int = 0
    damaged: bool = False


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
        offered: Mapping[str, Position],
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
    def catalog(self) -> Catalog: ...

    @property
    def replicas(self) -> Replicas: ...

    @property
    def lag_seconds(self) -> float:
        """How far this replica is behind; 0 on the primary."""

    def databases(self) -> Sequence[DatabaseInfo]: ...

    async def import_database(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Replace or create ``name`` by the SQLite database in ``chunks``; raises LiteFSError."""

    async def export_database(self, name: str) -> Export:
        """A copy of ``name``; raises DatabaseNotFound."""
