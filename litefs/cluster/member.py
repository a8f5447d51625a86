"""What an election asks of the node that it is held for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from litefs.cluster.lease import Beat, Grant, PrimaryInfo
from litefs.types import Point


class Member(Protocol):
    """The node at its changes of role.

    The plain functions are cheap and never block. The coroutines are called one after the other, never two at
    a time; each is cancelled if it takes longer than its limit in :mod:`litefs.cluster.election`, and after a
    ``promote`` that failed or was cancelled comes ``demote``.
    """

    def positions(self) -> Mapping[str, Point]:
        """What this node holds, database by database."""

    def holds(self, name: str, point: Point) -> bool:
        """Whether ``point`` is part of the history that this node holds of ``name``; asked only for
        points before its own. True also if its log does not reach back that far."""

    def was_removed(self, name: str, point: Point) -> bool:
        """Whether a client removed a database of that name which had come to ``point``, or beyond it, and
        this node knows; asked only where that is not in what it holds now."""

    def published(self) -> Mapping[str, Point]:
        """On the primary, by database: what the most advanced connected candidate is known to hold; its own
        position where none is connected. That is what a failover must keep."""

    def in_sync(self) -> tuple[int, ...] | None:
        """Node ids of the replicas that hold every acknowledged commit; None while replication is
        asynchronous. What it returns may be in the store from now on; that it is, :meth:`recorded` tells."""

    def recorded(self, beat: Beat) -> None:
        """``beat`` is what the store holds now, from this node: after each renewal, and before
        :meth:`promote` with what the lease was taken with."""

    def successor(self) -> int | None:
        """Node id of the connected candidate that should be primary next; None if there is none."""

    def cluster_id(self) -> str:
        """The cluster this node belongs to; empty before it joined one."""

    def join(self, cluster_id: str) -> None:
        """Store the id of the cluster that this node belongs to from now on. Raises LiteFSError, OSError."""

    def extend(self, deadline_ns: float) -> None:
        """Commits may be acknowledged until this time, CLOCK_BOOTTIME in ns, ``math.inf`` for ever."""

    def is_stuck(self) -> bool:
        """Whether this primary can serve nobody at the moment: then its lease is left to run out."""

    async def promote(self, grant: Grant) -> None:
        """Return when this node serves as primary. Raises LiteFSError, OSError: the lease is given up."""

    async def demote(self, reason: str) -> None:
        """Return when commits are refused, for good; harmless on a node that is not primary. If it raises, or
        takes too long, it is called again, and only the commit deadline fences until then."""

    async def follow(self, primary: PrimaryInfo | None, term: int) -> None:
        """Replicate from ``primary``, from nobody if it is None. Returns at once. ``term`` is the highest one
        known: a primary of a lower one is told, and not followed."""

    async def hold_requests(self) -> None:
        """The role is about to be handed over: let no request begin that may write, and return when those
        that have begun are over, or after a time of its own; commits go on. :meth:`thaw` and :meth:`demote`
        let requests go on."""

    async def freeze(self) -> None:
        """Return when no commit can be acknowledged before :meth:`thaw`: they wait. Raises LiteFSError."""

    async def await_target(self, node_id: int) -> None:
        """While frozen: return when that replica holds all that this node does. Raises LiteFSError if it is
        not connected, or no candidate."""

    async def thaw(self) -> None:
        """Let commits go on; harmless if they do."""

    async def request_handoff(self, primary: PrimaryInfo) -> None:
        """Ask ``primary`` to hand its role over to this node. Raises LiteFSError."""
