"""What the HTTP server asks of the node that it shows."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from litefs.stream.protocols import Catalog, Identity
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
    def lag_seconds(self) -> float:
        """How far this replica is behind; 0 on the primary."""

    def databases(self) -> Sequence[DatabaseInfo]: ...

    async def readers_see(self, name: str) -> bool:
        """Whether a transaction that begins now on the mount sees ``name`` at its position: not for a moment
        at a commit on the primary. Raises DatabaseNotFound, OSError."""

    async def import_database(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Replace or create ``name`` by the SQLite database in ``chunks``; raises LiteFSError."""

    async def export_database(self, name: str) -> Export:
        """A copy of ``name``; raises DatabaseNotFound."""
