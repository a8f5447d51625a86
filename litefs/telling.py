"""What a node tells of itself over HTTP, besides what it replicates: figures, status, events, health."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from litefs.cluster.replicas import Replicas
from litefs.config import Config
from litefs.errors import LiteFSError
from litefs.eventfeed import EventFeed
from litefs.figures import Figures
from litefs.forwarding import Forwarding
from litefs.mountprobe import MountProbe
from litefs.overview import Overview
from litefs.replica import Replica
from litefs.rolechange import RoleChanges
from litefs.security import Security
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.stream.handshake import Hello
from litefs.stream.protocols import Identity
from litefs.trace import TRACE
from litefs.types import Role


class Telling:
    """The parts that look at the node, and what they have to be told; ``run`` must be running."""

    def __init__(
        self,
        config: Config,
        data: DataDir,
        security: Security,
        identity: Callable[[], Identity],
        catalog: StoreCatalog,
        roles: RoleChanges,
        replica: Replica,
        replicas: Replicas,
        caught_up: Callable[[], bool],
    ) -> None:
        """``caught_up`` as of :class:`Overview`."""
        self.figures = Figures(catalog, replicas.rules)
        self.overview = Overview(data, config, identity, roles, replica, replicas, caught_up)
        self.forwarding = Forwarding(replica, identity, security.peer)
        self.probe = MountProbe(Path(config.fuse.dir).absolute())
        self._feed = EventFeed(data, catalog, roles)
        self.events = self._feed.hub
        self._roles = roles

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed.run)
            nursery.start_soon(self.probe.run)

    def role_changed(self, role: Role) -> None:
        """This node serves as primary, or commits nothing any more."""
        if TRACE.enabled:
            TRACE("Role", role=role, term=self._roles.term)
        self._feed.role_changed()

    def connected(self, hello: Hello) -> None:
        """A primary's stream has begun."""
        if TRACE.enabled:
            TRACE("Connect", primary=hello.identity.hostname, term=hello.identity.term)
        self._feed.role_changed()

    def disconnected(self, error: LiteFSError | None) -> None:
        """It has ended."""
        if TRACE.enabled:
            TRACE("Disconnect", error=error)
        self.forwarding.disconnected()
        self._feed.role_changed()
