"""What the node answers to those who ask its HTTP server; implements :class:`litefs.server.view.NodeView`."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from litefs.apply.publish import is_published
from litefs.cluster.replicas import Replicas
from litefs.copies import Copies
from litefs.errors import NotPrimary, NotSupported, PeerError, PositionMismatch, WaitTimeout
from litefs.halt.node import Halts
from litefs.leading import Leading
from litefs.lockview import held_locks
from litefs.meters import Meters
from litefs.replica import Replica
from litefs.rolechange import RoleChanges
from litefs.server.event_hub import EventHub
from litefs.server.positions import reached
from litefs.server.status_format import ArchiveStatus, Status
from litefs.server.view import ArchiveFigures, DatabaseInfo, DrillFigures, Export, HaltGrant, NodeFigures
from litefs.server.waiting import Waiting
from litefs.store.paths import DataDir
from litefs.store.reader import Entry
from litefs.stream.catalog import StoreCatalog
from litefs.stream.protocols import Identity
from litefs.takeback import TakeBack
from litefs.telling import Telling
from litefs.types import Position


@dataclass(frozen=True, slots=True)
class Parts:
    """What the answers come from; ``mount``, ``candidate`` and ``snapshot_seconds`` as configured."""

    data: DataDir
    mount: Path
    candidate: bool
    snapshot_seconds: float
    identity: Callable[[], Identity]
    catalog: StoreCatalog
    roles: RoleChanges
    replica: Replica
    replicas: Replicas
    leading: Leading
    telling: Telling
    halts: Halts
    take_back: TakeBack
    drills: Callable[[], Sequence[DrillFigures]]
    archived: Callable[[], Sequence[ArchiveFigures]]
    snapshot: Callable[[str], Awaitable[Mapping[str, int]]] | None
    """As of NodeView.archive_snapshot on the primary; None without an archive."""


ARRIVAL_SECONDS = 300.0
"""How long an import that the primary took may need until readers see it on the replica that was asked."""


class Answers:
    """The node as its HTTP server sees it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.waiting = Waiting(parts.catalog, self.readers_see)
        self._copies = Copies(parts.data, parts.mount, parts.catalog)

    @property
    def identity(self) -> Identity:
        return self._parts.identity()

    @property
    def replicas(self) -> Replicas:
        return self._parts.replicas

    @property
    def is_primary(self) -> bool:
        return self._parts.roles.leads

    @property
    def candidate(self) -> bool:
        return self._parts.candidate

    @property
    def snapshot_seconds(self) -> float:
        return self._parts.snapshot_seconds

    @property
    def mountpoint(self) -> str:
        return str(self._parts.mount)

    @property
    def primary_hostname(self) -> str | None:
        return self._parts.roles.primary

    @property
    def held_up(self) -> list[str]:
        return self._parts.roles.held_up

    def lacks(self) -> list[str]:
        return self._parts.leading.lacks()

    @property
    def catalog(self) -> StoreCatalog:
        return self._parts.catalog

    @property
    def events(self) -> EventHub:
        return self._parts.telling.events

    @property
    def lag_seconds(self) -> float | None:
        return self._parts.telling.overview.lag()

    def databases(self) -> list[DatabaseInfo]:
        return self._parts.telling.figures.databases()

    def locks(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        return held_locks(self._parts.mount, names)

    def meters(self) -> Meters:
        return self._parts.telling.figures.meters()

    def figures(self) -> NodeFigures:
        return self._parts.telling.overview.figures()

    def status(self, databases: Sequence[DatabaseInfo]) -> Status:
        status = self._parts.telling.overview.status(databases)
        names = {one.name for one in databases}
        archive = [_archive_status(one) for one in self.archived() if one.name in names]
        return msgspec.structs.replace(status, archive=archive) if archive else status

    async def archive_snapshot(self, name: str) -> Mapping[str, int]:
        if self._parts.snapshot is None:
            raise NotSupported("there is no archive: litefs.yml has no backup section")
        if not self.is_primary:
            raise NotPrimary("only the primary writes to the archive")
        return await self._parts.snapshot(name)

    def drills(self) -> Sequence[DrillFigures]:
        return self._parts.drills()

    def archived(self) -> Sequence[ArchiveFigures]:
        return self._parts.archived()

    async def before_stream(self) -> None:
        if self._parts.leading.grant() is not None:  # an elected primary that lost its tail cannot win
            await self._parts.take_back.before_stream()

    def saw_term(self, term: int) -> None:
        self._parts.leading.saw_term(term)

    async def handoff(self, node_id: int | None) -> None:
        await self._parts.leading.handoff(node_id)

    async def promote(self, *, force: bool) -> str:
        return await self._parts.leading.promote(force=force)

    async def halt(self, name: str, lock_id: int, peer: Identity | None, renew: bool) -> HaltGrant:
        return await self._parts.halts.halt(name, lock_id, peer, renew, self.is_primary)

    async def unhalt(self, name: str, lock_id: int, peer: Identity | None) -> None:
        await self._parts.halts.unhalt(name, lock_id, peer)

    async def forward(
        self, name: str, lock_id: int, peer: Identity, chunks: AsyncIterable[bytes], size: int
    ) -> Entry:
        return await self._parts.halts.primary.forward(name, lock_id, peer, chunks, size)

    async def readers_see(self, name: str) -> bool:
        if not self.is_primary and not self._parts.roles.is_settled:
            # Whoever was primary may have logged a commit that was not announced; the applier does that when
            # it has the logs.
            return False
        sums = self._parts.data.database_dir(name).sums
        return await trio.to_thread.run_sync(is_published, self._parts.mount / name, sums)

    async def holds(self, name: str, position: Position) -> bool:
        return await trio.to_thread.run_sync(self._parts.roles.holds_position, name, position)

    def unready(self) -> list[str]:
        return self._parts.telling.overview.unready()

    async def unhealthy(self) -> str:
        return await self._parts.telling.probe.complaint()

    async def import_database(
        self, name: str, chunks: AsyncIterable[bytes], *, check: bool, peer: bool
    ) -> Position:
        if self.is_primary:
            return await self._copies.import_database(name, chunks, check=check)
        if peer:
            raise NotPrimary("lease expired: this node is not the primary")
        self._parts.data.database_dir(name)  # the name is checked before anything is sent
        forwarding = self._parts.telling.forwarding
        position = await forwarding.import_database(name, chunks, check=check)
        if forwarding.receives(name):
            await self._arrived(name, position)
        return position

    async def _arrived(self, name: str, position: Position) -> None:
        """Wait until readers here see what the primary has imported. Raises WaitTimeout; PeerError if another
        primary came that has not got it."""
        with trio.move_on_after(ARRIVAL_SECONDS):
            while name not in self._parts.catalog.sources():
                await self._parts.catalog.wait_change(self._parts.catalog.revision)
            try:
                await reached(self, name, position.txid, position.checksum, ARRIVAL_SECONDS)
            except PositionMismatch:
                raise PeerError(
                    f"{name}: imported on the primary, but a failover lost it: another history took its place"
                ) from None
            return
        raise WaitTimeout(f"{name}: imported on the primary, not here after {ARRIVAL_SECONDS:g} s")

    async def export_database(self, name: str, *, check: bool) -> Export:
        return await self._copies.export_database(name, check=check)

    async def drop_database(self, name: str) -> None:
        await self._copies.drop_database(name)


def _archive_status(one: ArchiveFigures) -> ArchiveStatus:
    return ArchiveStatus(one.name, one.timeline, f"{one.txid:016x}", one.behind, round(one.lag, 3), one.error)
