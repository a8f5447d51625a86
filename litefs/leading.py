"""Who leads: by configuration for good, or by elections that this node takes part in."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from litefs.cluster.election import HANDOFF_SECONDS, Election
from litefs.cluster.fly import MachineRole
from litefs.cluster.lease import Grant, PrimaryInfo, StaticLease
from litefs.cluster.leases import make_lease
from litefs.cluster.peer import Peer, PeerSettings
from litefs.config import Config
from litefs.errors import HandoffFailed, LiteFSError
from litefs.rolechange import RoleChanges
from litefs.stream.handshake import format_node_id
from litefs.stream.protocols import Identity
from litefs.types import Role

log = logging.getLogger("litefs.node")

PROMOTE_ATTEMPTS = 5
PROMOTE_PAUSE_SECONDS = 2.0
"""How often a node asks for the role after its start, and the pause in between."""


class Leading:
    """What decides this node's role, which ``roles`` then takes."""

    def __init__(self, config: Config, roles: RoleChanges, node_id: int) -> None:
        """Raises ConfigError for a lease that cannot be used."""
        lease = config.lease
        info = PrimaryInfo(lease.hostname, lease.advertise_url)
        self._roles = roles
        self._static: StaticLease | None = None
        self._election: Election | None = None
        if lease.type == "static":
            self._static = StaticLease(
                candidate=lease.candidate, hostname=lease.hostname, advertise_url=lease.advertise_url
            )
        else:
            self._election = Election(make_lease(config), roles, node_id, info, candidate=lease.candidate)
        self._promote = lease.promote and lease.candidate
        self._machine = MachineRole.of_environment(os.environ)

    @property
    def role(self) -> Role:
        """This node's."""
        return self._roles.role

    def grant(self) -> Grant | None:
        """The role that the configuration gives this node, for ever."""
        return self._static.grant() if self._static is not None else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the configured primary, or take part in elections; until cancelled or stopped."""
        async with trio.open_nursery() as nursery:
            if self._machine is not None:
                nursery.start_soon(self._machine.run)
            if self._static is not None:
                if (primary := self._static.primary()) is not None:
                    await self._roles.follow(primary, 0)
                task_status.started()
            elif self._election is not None:
                await self._election.run(task_status=task_status)

    def mounted(self) -> None:
        """The mount serves."""
        if self._election is not None:
            self._election.mounted()

    def unmounted(self) -> None:
        """The fs process is gone."""
        if self._election is not None:
            self._election.unmounted()

    def saw_term(self, term: int) -> None:
        """Another node named that term."""
        if self._election is not None:
            self._election.saw_term(term)

    def renew_now(self) -> None:
        """The replicas in sync have changed."""
        if self._election is not None:
            self._election.renew_now()

    def changed(self, role: Role) -> None:
        """This node has that role now."""
        if self._machine is not None:
            self._machine.report(role)

    async def stop(self) -> None:
        """Leave the role to another node, if it can be left."""
        if self._election is not None:
            await self._election.stop()

    async def handoff(self, node_id: int | None) -> None:
        """Pass the role on. Raises NotPrimary, HandoffFailed."""
        if self._election is None:
            raise HandoffFailed("static lease does not support handoff")
        await self._election.handoff(node_id)

    def lacks(self) -> list[str]:
        """What this node would lose if it became primary now, and what else is in its way; in lines."""
        return self._election.lacks() if self._election is not None else []

    async def promote_at_start(self) -> None:
        """Once this node has caught up: ask the primary for its role, if ``lease.promote`` says so. Returns
        when this node is primary, or the primary keeps its role."""
        if not self._promote or self._election is None:
            return
        for attempt in range(PROMOTE_ATTEMPTS):
            if attempt:
                await trio.sleep(PROMOTE_PAUSE_SECONDS)
            try:
                await self._election.promote()
            except LiteFSError as error:
                log.warning("lease.promote: %s", error)
            else:
                return
        log.error("lease.promote: this node goes on as a replica")

    async def promote(self, *, force: bool) -> str:
        """Become primary; returns what was lost. Raises NotEligible, HandoffFailed, PeerError."""
        if self._election is None:
            if self._roles.leads:
                return ""
            raise HandoffFailed("static lease does not support handoff")
        return await self._election.promote(force=force)


async def ask_for_handoff(
    primary: PrimaryInfo, settings: PeerSettings, identity: Callable[[], Identity]
) -> None:
    """Have ``primary`` pass its role to this node. Raises PeerError."""
    own = identity()
    async with Peer(primary.advertise_url, settings) as peer:
        path = f"/handoff?nodeID={format_node_id(own.node_id)}"
        await peer.ask("POST", path, own, seconds=HANDOFF_SECONDS + 2)
