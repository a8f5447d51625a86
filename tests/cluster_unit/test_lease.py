"""The static lease."""

from __future__ import annotations

import math

import pytest

from litefs.cluster.lease import Grant, PrimaryInfo, StaticLease
from litefs.errors import ConfigError


def test_the_candidate_is_primary_for_ever() -> None:
    lease = StaticLease(candidate=True, hostname="a", advertise_url="http://a:20202")
    assert lease.grant() == Grant(1, math.inf)
    assert lease.primary() is None


def test_others_are_told_where_the_primary_is() -> None:
    lease = StaticLease(candidate=False, hostname="a", advertise_url="http://a:20202")
    assert lease.grant() is None
    assert lease.primary() == PrimaryInfo("a", "http://a:20202")


def test_a_replica_without_a_primarys_url_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="advertise-url"):
        StaticLease(candidate=False, hostname="a", advertise_url="")
