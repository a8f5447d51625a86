"""The static lease."""

from __future__ import annotations

import math

import pytest
import trio

from litefs.cluster.lease import Grant, PrimaryInfo, StaticLease
from litefs.errors import ConfigError, NotPrimary


def test_the_candidate_is_primary_for_ever() -> None:
    async def main() -> None:
        lease = StaticLease(candidate=True, hostname="a", advertise_url="http://a:20202")
        grant = await lease.acquire()
        assert grant == Grant(1, math.inf)
        assert await lease.renew(grant) == grant
        await lease.release(grant)
        assert await lease.primary() is None

    trio.run(main)


def test_others_are_told_where_the_primary_is() -> None:
    async def main() -> None:
        lease = StaticLease(candidate=False, hostname="a", advertise_url="http://a:20202")
        assert await lease.acquire() is None
        assert await lease.primary() == PrimaryInfo("a", "http://a:20202")
        with pytest.raises(NotPrimary):
            await lease.renew(Grant(1, math.inf))

    trio.run(main)


def test_a_replica_without_a_primarys_url_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="advertise-url"):
        StaticLease(candidate=False, hostname="a", advertise_url="")
