"""Leases for tests, quicker than in production."""

from __future__ import annotations

from litefs.cluster.lease import Lease, Timing
from litefs.cluster.leases import consul_lease, object_lease
from litefs.config_lease import ConsulConfig, ObjectConfig

TIMING = Timing(term=2.0, renew=0.5, margin=0.3)


def open_lease(url: str, key: str, timing: Timing = TIMING) -> Lease:
    """The lease at ``url``; http means Consul."""
    if url.startswith("http://"):
        return consul_lease(ConsulConfig(url=url, key=key), timing)
    return object_lease(ObjectConfig(url=url, key=key), timing)
