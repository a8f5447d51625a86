"""How this node is: its role, whom it follows, whether it is ready; what ``/status`` and ``/readyz`` tell."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from msgspec import UNSET

from litefs.cluster.replicas import Replicas
from litefs.config import Config
from litefs.replica import Replica
from litefs.rolechange import RoleChanges
from litefs.server.status_format import DatabaseStatus, NodeStatus, PrimaryStatus, ReplicaStatus, Status
from litefs.server.view import DatabaseInfo, NodeFigures
from litefs.store.lost import lost_names
from litefs.store.paths import DataDir
from litefs.stream.acks import ReplicaInfo
from litefs.stream.handshake import format_node_id
from litefs.stream.protocols import Identity
from litefs.types import Role
from litefs.version import version


class Overview:
    """Puts together what the parts of the node know; used in its trio thread."""

    def __init__(
        self,
        data: DataDir,
        config: Config,
        identity: Callable[[], Identity],
        roles: RoleChanges,
        replica: Replica,
        replicas: Replicas,
        caught_up: Callable[[], bool],
    ) -> None:
        """``caught_up``: whether this node has had all that the primary had once, or was primary itself."""
        self._data = data
        self._config = config
        self._identity = identity
        self._roles = roles
        self._replica = replica
        self._replicas = replicas
        self._caught_up = caught_up
        self._version = version() or "development build"
        self._mount = os.path.abspath(config.fuse.dir)
        self._begin = time.monotonic()

    def lag(self) -> float | None:
        """Seconds behind the primary; 0 on the primary, None before the first contact with one."""
        if self._roles.leads:
            return 0.0
        lag = self._replica.lag()
        return None if lag is None else lag[0] / 1000

    def role(self) -> str:
        """As :class:`NodeStatus` has it."""
        if self._roles.role is Role.PRIMARY:
            return "primary" if self._roles.leads else "promoting"
        return "demoting" if self._roles.held_up else "replica"

    def in_words(self) -> str:
        """The role in a few words, for the service manager."""
        if self._roles.leads:
            return f"primary of term {self._roles.term}"
        return f"replica of {self._roles.primary}" if self._roles.primary else "replica without a primary"

    def unready(self) -> list[str]:
        """Why this node should get no requests, in lines; nothing if it is ready."""
        if not self._caught_up():
            return ["it has not caught up with a primary since its start"]
        if not self._roles.is_settled:
            return ["its role is changing, or its mount is being made"]
        if not self._roles.leads and self._roles.primary is None:
            return ["it is not connected to a primary"]
        return []

    def figures(self) -> NodeFigures:
        """The node in figures; reads a directory."""
        return NodeFigures(
            self._identity().term, self._roles.role_changes, not self.unready(), len(lost_names(self._data))
        )

    def primary(self) -> PrimaryStatus | None:
        """The primary as this node knows it."""
        if self._roles.leads:
            own = self._identity().hostname
            return PrimaryStatus(own, self._config.lease.advertise_url, True)
        followed, connected = self._replica.primary, self._roles.primary
        if followed is None:
            return None
        return PrimaryStatus(connected or followed.hostname, followed.advertise_url, connected is not None)

    def status(self, databases: Sequence[DatabaseInfo]) -> Status:
        """The status of this moment, with these databases."""
        own, lease = self._identity(), self._config.lease
        node = NodeStatus(
            id=format_node_id(own.node_id),
            hostname=own.hostname,
            version=self._version,
            role=self.role(),
            candidate=lease.candidate,
            path=self._mount,
            term=own.term,
            lease=lease.type,
            uptime=round(time.monotonic() - self._begin, 3),
            ready=not self.unready(),
            cluster_id=own.cluster_id or UNSET,
        )
        return Status(
            node,
            self.primary(),
            self.lag(),
            [_database(one) for one in databases],
            [_replica(one) for one in self._replicas.connected()] if self._roles.leads else [],
            list(self._roles.held_up),
        )


def _database(info: DatabaseInfo) -> DatabaseStatus:
    return DatabaseStatus(
        name=info.name,
        txid=f"{info.position.txid:016x}",
        checksum=f"{info.position.checksum:016x}",
        page_size=info.page_size,
        pages=info.pages,
        log_bytes=info.log_bytes,
        log_segments=info.log_segments,
        commits=info.commits,
        damaged=info.damaged,
        sync={0: "off", 1: "any"}.get(info.sync, info.sync),
        lag=UNSET if info.lag is None else round(info.lag, 3),
    )


def _replica(info: ReplicaInfo) -> ReplicaStatus:
    return ReplicaStatus(
        id=format_node_id(info.node_id),
        hostname=info.hostname,
        candidate=info.candidate,
        in_sync=info.in_sync,
        databases={name: f"{point.txid:016x}" for name, point in sorted(info.held.items())},
    )
