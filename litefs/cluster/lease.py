"""Who is primary. A lease gives the role for a time; the static lease gives it for ever, by configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from litefs.errors import ConfigError, NotPrimary


@dataclass(frozen=True, slots=True)
class PrimaryInfo:
    """Where the primary is: the name that ``.primary`` shows, and the URL that replicas connect to."""

    hostname: str
    advertise_url: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that is held. ``term`` grows with each change of primary; ``ttl`` in seconds from the moment
    before the request that gave it, infinite for a lease that never ends.
    """

    term: int
    ttl: float


class Lease(Protocol):
    """One way to elect a primary."""

    async def acquire(self) -> Grant | None:
        """Try to become primary; None if another node is, or this one may not be."""

    async def renew(self, grant: Grant) -> Grant:
        """Extend a grant. Raises NotPrimary if it is gone."""

    async def release(self, grant: Grant) -> None:
        """Give the role up, so that another node need not wait for the end of the term."""

    async def primary(self) -> PrimaryInfo | None:
        """The present primary, if one is known and it is not this node."""


class StaticLease:
    """The candidate is primary; ``hostname`` and ``advertise_url`` name the primary on every node."""

    TERM = 1

    def __init__(self, *, candidate: bool, hostname: str, advertise_url: str) -> None:
        """Raises ConfigError if a replica is not told where the primary is."""
        if not candidate and not advertise_url:
            raise ConfigError(
                "lease.advertise-url: a replica with a static lease needs the URL of the primary"
            )
        self._candidate = candidate
        self._info = PrimaryInfo(hostname or advertise_url, advertise_url)

    async def acquire(self) -> Grant | None:
        return Grant(self.TERM, math.inf) if self._candidate else None

    async def renew(self, grant: Grant) -> Grant:
        if not self._candidate:
            raise NotPrimary("this node is not the candidate of the static lease")
        return grant

    async def release(self, grant: Grant) -> None:
        """Nothing to give back: the configuration names the primary."""

    async def primary(self) -> PrimaryInfo | None:
        return None if self._candidate else self._info
