"""What this node asks of the lease, and what it publishes with it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace

from litefs.cluster import steps
from litefs.cluster.lease import Beat, Lease, LeaseLost, LeaseUnavailable, PrimaryInfo, View
from litefs.cluster.member import Member
from litefs.cluster.standing import Standing, advance, weigh
from litefs.errors import LiteFSError
from litefs.meters import METERS
from litefs.types import Point

log = logging.getLogger("litefs.election")


class Tenure:
    """Turns the role machine's wishes into requests to a lease, and the answers into events."""

    def __init__(self, lease: Lease, member: Member, node_id: int, info: PrimaryInfo) -> None:
        """``node_id``: of this life; ``info``: how this node is published when it is primary."""
        self._lease = lease
        self._member = member
        self._node_id = node_id
        self._info = info
        self._published: Mapping[str, Point] = {}
        self._in_sync: tuple[int, ...] | None = None
        self._foreign = ""
        """The cluster id in the store when it was not this node's."""
        self.serving = False
        """The member is primary: what it publishes counts."""
        self.obstacle = ""
        """What stood in the way when this node was weighed last."""
        self.given_up = ""
        """What stood in the way of the takeover that was asked for last, by force."""

    def weigh(self, view: View) -> steps.Weighed:
        """Compare what this node holds with the view's beat, to win or to wait."""
        standing = self.standing(view)
        self.obstacle = standing.obstacle
        return steps.Weighed(view.version, standing)

    def standing(self, view: View) -> Standing:
        """How this node compares with the view's beat; nothing follows from it."""
        member = self._member
        standing = weigh(view.beat, self._node_id, member.positions(), member.holds, member.was_removed)
        own = member.cluster_id()
        standing = replace(standing, joined=bool(own))
        if self._foreign and own != self._foreign:
            barred = f"the lease is cluster {self._foreign}'s, which this node does not belong to"
            standing = replace(standing, barred=barred)
        return standing

    async def take(self, action: steps.Take) -> steps.Event:
        """Acquire or claim the lease, then make sure that its cluster is this node's.

        Until the member serves, positions alone decide who may win next: it holds every acknowledged commit,
        and acknowledges no other one. So whoever is where it is now will do, in sync before or not.
        """
        self.given_up = self.obstacle if action.forced else ""
        self._published, self._in_sync = dict(self._member.positions()), None
        beat = self._beat(action.term)
        take = self._lease.claim if action.view.held else self._lease.acquire
        try:
            grant = await take(action.view, beat)
            if grant is None:
                return steps.Missed()
            if not await self._join(action.forced):
                await self._lease.release(grant, self._beat(action.term, released=True))
                return steps.Missed()
        except LeaseUnavailable as error:
            log.warning("cannot take the lease: %s", error)
            return steps.Unanswered()
        self._member.recorded(beat)
        return steps.Won(grant)

    async def renew(self, action: steps.Renew) -> steps.Event:
        """Publish anew and move the deadline; not while the member is stuck, which holds up its clients as
        long as nobody else is primary."""
        if self.serving and self._member.is_stuck():
            return steps.Unanswered()
        if self.serving:
            self._published = advance(self._published, self._member.published(), self._member.positions())
            self._in_sync = self._member.in_sync()
        beat = self._beat(action.grant.term)
        try:
            grant = await self._lease.renew(action.grant, beat)
        except LeaseLost as error:
            METERS.lease_failures += 1
            return steps.Lost(str(error))
        except LeaseUnavailable as error:
            METERS.lease_failures += 1
            log.debug("the lease was not renewed: %s", error)
            return steps.Unanswered()
        METERS.lease_renewals += 1
        self._member.recorded(beat)
        return steps.Renewed(grant)

    async def release(self, action: steps.Release) -> steps.Released:
        """Give the lease up at exactly the positions that this node holds now."""
        self._published = dict(self._member.positions())
        beat = self._beat(action.grant.term, released=True, successor=action.successor)
        try:
            await self._lease.release(action.grant, beat)
        except (LeaseLost, LeaseUnavailable) as error:
            log.warning("the lease was not released: %s", error)
            return steps.Released(f"the lease was not released: {error}")
        return steps.Released()

    def _beat(self, term: int, *, released: bool = False, successor: int | None = None) -> Beat:
        positions, in_sync = self._published, self._in_sync
        return Beat(term, self._node_id, self._info, positions, in_sync, released, successor)

    async def _join(self, forced: bool) -> bool:
        """Whether the cluster whose lease was won is this node's. A node that belongs to none founds one; one
        that exists it joins as a replica, which has its data first, or by force."""
        own = self._member.cluster_id()
        proposal = own or f"LFSC{secrets.randbits(64):016X}"
        stored = await self._lease.cluster_id(proposal)
        if stored != proposal and (own or not forced):
            self._foreign = stored
            return False
        if not own:
            try:
                self._member.join(stored)
            except (LiteFSError, OSError) as error:
                log.error("cannot store the cluster id: %s", error)
                return False
        return True
