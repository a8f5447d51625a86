"""What ``GET /status`` answers, as values: how a node and its cluster are, for people, the command line and
the status page. The names in JSON are these in camel case."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class NodeStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The node that was asked.

    ``id``: 16 hex digits, new with each start; ``role``: "primary", "replica", or "promoting" or "demoting"
    on the way there; ``path``: the mount; ``term`` counts changes of primary; ``lease``: the type of
    ``litefs.yml``; ``uptime``: seconds; ``ready``: what ``GET /readyz`` says.
    """

    id: str
    hostname: str
    version: str
    role: str
    candidate: bool
    path: str
    term: int
    lease: str
    uptime: float
    ready: bool
    cluster_id: str | UnsetType = msgspec.field(default=UNSET, name="clusterID")


class PrimaryStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The primary that this node is, or follows; ``connected``: a stream of it is open here."""

    hostname: str
    url: str
    connected: bool


class DatabaseStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of :class:`litefs.server.view.DatabaseInfo`; TXID and checksum as 16 hex digits, ``sync``
    "off", "any" or the number of replicas that must hold a commit."""

    name: str
    txid: str
    checksum: str
    page_size: int
    pages: int
    log_bytes: int
    log_segments: int
    commits: int
    damaged: bool
    sync: str | int
    lag: float | UnsetType = UNSET


class ReplicaStatus(msgspec.Struct, frozen=True, rename="camel"):
    """A replica whose stream from this primary is open. ``databases``: the TXID up to which it has said that
    its log holds each, 16 hex digits; only those that it is sent."""

    id: str
    hostname: str
    candidate: bool
    in_sync: bool
    databases: dict[str, str]


class ArchiveStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of :class:`litefs.server.view.ArchiveFigures` that say how far the archive of a database is;
    TXID as 16 hex digits, ``lag`` in seconds."""

    name: str
    timeline: int
    txid: str
    behind: int
    lag: float
    error: str


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """All of it. ``lag``: seconds that this node is behind the primary, 0 on a primary, null before the first
    contact with one. ``held_up``: who keeps a demotion from being complete, a line for each. ``archive``: on
    the primary, if there is one."""

    node: NodeStatus
    primary: PrimaryStatus | None
    lag: float | None
    databases: list[DatabaseStatus]
    replicas: list[ReplicaStatus]
    held_up: list[str]
    archive: list[ArchiveStatus] | UnsetType = UNSET
