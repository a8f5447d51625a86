"""HALT as the node has it: the locks it holds as primary, and those that its clients have as a replica."""

from __future__ import annotations

import time
from pathlib import Path

import trio

from litefs.errors import DatabaseNotFound
from litefs.halt.primary import HALT_SECONDS, PrimaryHalts
from litefs.halt.replica import HaltLinks as HaltLinks
from litefs.halt.replica import ReplicaHalts
from litefs.server.view import HaltGrant
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.stream.protocols import Identity

LEAVE_SECONDS = 2.0
"""How long giving locks up may take at a stop; the primary ends them in any case."""


class Halts:
    """Both sides; which one is used follows from the role and from who asks."""

    def __init__(self, data: DataDir, mount: Path, catalog: StoreCatalog, links: HaltLinks) -> None:
        self._catalog = catalog
        self.primary = PrimaryHalts(data, mount, links.identity)
        self.replica = ReplicaHalts(data, catalog, links)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.primary.run)
            nursery.start_soon(self.replica.run)

    async def halt(
        self, name: str, lock_id: int, peer: Identity | None, renew: bool, is_primary: bool
    ) -> HaltGrant:
        """As ``NodeView.halt``."""
        if name not in self._catalog.sources():
            raise DatabaseNotFound(f"{name}: database not found")
        if peer is not None:
            return await self.primary.halt(name, lock_id, peer, renew=renew)
        if not is_primary:
            return await self.replica.halt(name, lock_id, renew=renew)
        # its clients write here anyway; a lock of the node's would only be in their way
        return HaltGrant(self._catalog.position(name), time.time() + HALT_SECONDS)

    async def unhalt(self, name: str, lock_id: int, peer: Identity | None) -> None:
        """As ``NodeView.unhalt``."""
        if peer is not None:
            await self.primary.unhalt(name, lock_id, peer)
        else:
            await self.replica.unhalt(name, lock_id)

    async def unmounted(self) -> None:
        """The fs process is gone."""
        self.replica.unmounted()
        await self.primary.void()

    async def leave(self) -> None:
        """The node stops; bounded."""
        with trio.move_on_after(LEAVE_SECONDS):
            await self.replica.leave()
            await self.primary.void()
