"""Who is primary, and until when: what every kind of lease offers, and the lease by configuration.

A lease keeps one record in its store, the *beat*: who leads which term, how far its databases are, which
replicas are in sync. It is only ever changed by compare-and-set, so of two nodes that want to write it one
loses. The primary changes it at each renewal. A candidate that has seen one version of it for longer than any
deadline given under that version may reach, by its own clock, may take the lease over with the next term: the
old primary's next renewal fails, and its last deadline has passed (docs/failover.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from litefs.errors import ConfigError, LiteFSError, NotPrimary
from litefs.types import Point


class LeaseLost(NotPrimary):
    """Another node took the lease over, or it ended: this node must not act as primary any more."""


class LeaseUnavailable(LiteFSError):
    """The lease's store did not answer, or not in time; what was asked may have happened."""

    http_status = 503


@dataclass(frozen=True, slots=True)
class PrimaryInfo:
    """Where the primary is: the name that ``.primary`` shows, and the URL that replicas connect to."""

    hostname: str
    advertise_url: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. ``term``: how long a renewal lets the primary commit, from the moment before it was asked for;
    ``renew``: between two renewals; ``margin``: what a candidate waits beyond ``term``, for clocks that run
    at different speed (docs/failover.md)."""

    term: float = 3.0
    renew: float = 1.0
    margin: float = 0.5


@dataclass(frozen=True, slots=True)
class Beat:
    """What the primary publishes with each renewal.

    ``node_id``: of its present life. ``positions``: what a failover must keep, by database. ``in_sync``: node
    ids of the replicas that hold every acknowledged commit; None while replication is asynchronous.
    ``released``: it gave the lease up at exactly these positions; ``successor`` may then take it before
    others.
    """

    term: int
    node_id: int
    primary: PrimaryInfo
    positions: Mapping[str, Point] = field(default_factory=dict)
    in_sync: tuple[int, ...] | None = None
    released: bool = False
    successor: int | None = None


@dataclass(frozen=True, slots=True)
class View:
    """The store as of one consistent read: the beat, None before the first primary, and its version, which
    changes with every write of it. ``held``: a node holds the lease, or wrote the beat without releasing
    it."""

    version: str
    beat: Beat | None
    held: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that is held.

    ``term`` grows with each change of primary. ``deadline_ns``: CLOCK_BOOTTIME, ns, until which commits may
    be acknowledged; ``math.inf`` for a lease that never ends. ``version``: of the beat that this node wrote
    last. ``token``: what the store knows this holder by.
    """

    term: int
    deadline_ns: float
    version: str = ""
    token: str = ""


class Lease(Protocol):
    """One way to elect a primary. Calls are bounded in time; each may raise LeaseUnavailable."""

    timing: Timing

    async def observe(self) -> View:
        """Read the store, consistently."""

    async def changed(self, view: View, seconds: float) -> View:
        """The next view that has another version than ``view``, or the present one after ``seconds``."""

    async def acquire(self, view: View, beat: Beat) -> Grant | None:
        """Take a lease that nobody holds in ``view``, and publish ``beat``, whose term must be above the
        view's; None if another node was quicker."""

    async def claim(self, view: View, beat: Beat) -> Grant | None:
        """Take the lease from a holder whose beat has stood still for ``term`` + ``margin``; None if it lives
        after all, or another node was quicker. May take as long as the store's lock delay."""

    async def renew(self, grant: Grant, beat: Beat) -> Grant:
        """Publish ``beat`` and move the deadline. Raises LeaseLost."""

    async def release(self, grant: Grant, beat: Beat) -> None:
        """Give the role up: the last ``beat``, with ``released`` set, is published in the same step. Harmless
        if the lease is lost."""

    async def cluster_id(self, proposal: str) -> str:
        """The cluster's id as the store has it; ``proposal`` becomes it if there is none."""

    async def aclose(self) -> None:
        """Let go of connections and threads, not of the lease."""


class StaticLease:
    """The candidate is primary; ``hostname`` and ``advertise_url`` name the primary on every node."""

    TERM = 1

    def __init__(self, *, candidate: bool, hostname: str, advertise_url: str) -> None:
        """Raises ConfigError if a replica is not told where the primary is."""
        if not candidate and not advertise_url:
            raise ConfigError(
                "lease.advertise-url: a replica with a static lease needs the URL of the primary"
            )
        self.candidate = candidate
        self.info = PrimaryInfo(hostname or advertise_url, advertise_url)

    def grant(self) -> Grant | None:
        """The candidate's grant, which never ends; None on the others."""
        return Grant(self.TERM, math.inf) if self.candidate else None

    def primary(self) -> PrimaryInfo | None:
        """The primary, unless it is this node."""
        return None if self.candidate else self.info
