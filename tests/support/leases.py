"""Leases for tests, quicker than in production."""

from __future__ import annotations

from litefs.cluster.lease import Lease, Timing
from litefs.cluster.leases import object_lease
from litefs.config import ObjectConfig

TIMING = Timing(term=2.0, renew=0.5, margin=0.3)


def open_lease(url: str, key: str, timing: Timing = TIMING) -> Lease:
    """The lease at ``url``."""
    return object_lease(ObjectConfig(url=url, key=key), timing)
