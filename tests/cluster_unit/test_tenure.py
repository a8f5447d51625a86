"""What a beat says at each moment of a tenure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import trio

from litefs.cluster import steps
from litefs.cluster.lease import Beat, Grant, LeaseLost, LeaseUnavailable, PrimaryInfo, View
from litefs.cluster.tenure import Tenure
from litefs.meters import METERS
from litefs.types import Point
from tests.support.members import NAME, SmallMember


class Recorder:
    """A lease that is always granted, and keeps what was written."""

    def __init__(self) -> None:
        self.beats: list[Beat] = []

    async def acquire(self, view: View, beat: Beat) -> Grant:
        self.beats.append(beat)
        return Grant(beat.term, math.inf)

    async def renew(self, grant: Grant, beat: Beat) -> Grant:
        self.beats.append(beat)
        return grant

    async def cluster_id(self, proposal: str) -> str:
        return proposal


def test_until_the_member_serves_its_own_positions_alone_decide(tmp_path: Path) -> None:
    """Also in a second tenure: what was published in the first one, and its in-sync set, are over."""
    member = SmallMember(tmp_path, "a", 1)
    lease = Recorder()
    tenure = Tenure(cast(Any, lease), member, 1, PrimaryInfo("a", "http://a"))

    def said() -> tuple[Point | None, tuple[int, ...] | None]:
        beat = lease.beats[-1]
        return beat.positions.get(NAME), beat.in_sync

    async def main() -> None:
        for term in (1, 2):
            member.sync = (7, 8)
            member.serving, member.deadline = True, math.inf
            assert member.commit()
            own = member.positions()[NAME]
            await tenure.take(steps.Take(View("1", None, held=False), term, forced=False))
            assert said() == (own, None)
            assert member.commit()
            renew = steps.Renew(Grant(term, math.inf))
            await tenure.renew(renew)
            assert said() == (own, None), "not yet"
            tenure.serving = True
            await tenure.renew(renew)
            assert said() == (member.positions()[NAME], (7, 8))
            tenure.serving = False

    trio.run(main)
    member.close()


def test_renewals_are_counted_by_their_outcome(tmp_path: Path) -> None:
    """An operator sees a store that answers now and then before the lease is lost to it."""
    outcomes: list[type[Exception] | None] = [None, LeaseUnavailable, None, LeaseLost]

    class Flaky(Recorder):
        async def renew(self, grant: Grant, beat: Beat) -> Grant:
            if (error := outcomes.pop(0)) is not None:
                raise error("on purpose")
            return await super().renew(grant, beat)

    tenure = Tenure(cast(Any, Flaky()), SmallMember(tmp_path, "a", 1), 1, PrimaryInfo("a", "http://a"))
    before = METERS.lease_renewals, METERS.lease_failures

    async def main() -> None:
        while outcomes:
            await tenure.renew(steps.Renew(Grant(1, math.inf)))

    trio.run(main)
    assert (METERS.lease_renewals, METERS.lease_failures) == (before[0] + 2, before[1] + 2)
