"""What this process counts and times, for ``/metrics``: plain numbers, added to where things happen.

An addition takes about 0.1 µs. Nothing is locked: two threads that add at the same instant may count once.
The fs process sends what it has to the node process each second (``litefs.link.messages.Measured``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from time import perf_counter_ns

BUCKETS = 64

now_ns = perf_counter_ns
"""The clock of all durations."""


class Times:
    """A histogram of durations: ``buckets[n]`` counts those of less than 2ⁿ ns, and no less than half that;
    ``total`` is their sum in ns."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.total = 0

    def add(self, ns: int) -> None:
        """One more."""
        self.buckets[ns.bit_length()] += 1
        self.total += ns

    def since(self, begin_ns: int) -> None:
        """One that began then, by ``now_ns``, and ends now: ``add`` without the call of it."""
        ns = perf_counter_ns() - begin_ns
        self.buckets[ns.bit_length()] += 1
        self.total += ns

    def merge(self, buckets: Mapping[int, int], total: int) -> None:
        """Those of another process: counts by bucket."""
        for index, count in buckets.items():
            self.buckets[index] += count
        self.total += total

    def sparse(self) -> dict[int, int]:
        """The buckets that are not empty."""
        return {index: count for index, count in enumerate(self.buckets) if count}


class Meters:
    """Those of a process; the histograms by name in ``times``, what is counted by database in ``counts``."""

    def __init__(self) -> None:
        self.prepare, self.append, self.replicas, self.answer = Times(), Times(), Times(), Times()
        self.fsync, self.apply = Times(), Times()
        self.times = {
            "prepare": self.prepare,
            "append": self.append,
            "replicas": self.replicas,
            "answer": self.answer,
            "fsync": self.fsync,
            "apply": self.apply,
        }
        self.commits: defaultdict[str, int] = defaultdict(int)
        self.database_writes: defaultdict[str, int] = defaultdict(int)
        self.journal_writes: defaultdict[str, int] = defaultdict(int)
        self.wal_writes: defaultdict[str, int] = defaultdict(int)
        self.shm_writes: defaultdict[str, int] = defaultdict(int)
        self.applied: defaultdict[str, int] = defaultdict(int)
        self.reaped: defaultdict[str, int] = defaultdict(int)
        self.sent: defaultdict[str, int] = defaultdict(int)
        self.snapshots_sent: defaultdict[str, int] = defaultdict(int)
        self.counts = {
            "commits": self.commits,
            "database_writes": self.database_writes,
            "journal_writes": self.journal_writes,
            "wal_writes": self.wal_writes,
            "shm_writes": self.shm_writes,
            "applied": self.applied,
            "reaped": self.reaped,
            "sent": self.sent,
            "snapshots_sent": self.snapshots_sent,
        }
        self.received_bytes = 0
        self.lease_renewals = 0
        """That the lease's store has taken, and those that it has refused or not answered."""
        self.lease_failures = 0

    def merge(self, other: Meters) -> None:
        """Add all of another one's."""
        for name, times in other.times.items():
            self.times[name].merge(times.sparse(), times.total)
        for name, counts in other.counts.items():
            for database, count in list(counts.items()):  # at once: others go on adding
                self.counts[name][database] += count
        self.received_bytes += other.received_bytes
        self.lease_renewals += other.lease_renewals
        self.lease_failures += other.lease_failures


METERS = Meters()
"""This process's."""


class Changes:
    """What was added to ``METERS`` since it was asked last."""

    def __init__(self) -> None:
        self._times: dict[str, tuple[dict[int, int], int]] = {}
        self._counts: dict[str, dict[str, int]] = {name: {} for name in METERS.counts}

    def times(self) -> dict[str, tuple[dict[int, int], int]]:
        """By name: counts by bucket, and the sum in ns, of what came since; those with nothing are left
        out."""
        found = {}
        for name, times in METERS.times.items():
            buckets, total = times.sparse(), times.total
            old, old_total = self._times.get(name, ({}, 0))
            if buckets != old:
                added = {at: count - old.get(at, 0) for at, count in buckets.items()}
                found[name] = {at: count for at, count in added.items() if count}, total - old_total
                self._times[name] = buckets, total
        return found

    def counts(self) -> dict[str, dict[str, int]]:
        """By database, what came since to each of ``Meters.counts``; those with nothing are left out."""
        found: dict[str, dict[str, int]] = {}
        for name, counts in METERS.counts.items():
            old = self._counts[name]
            for database, count in list(counts.items()):
                if count != old.get(database, 0):
                    found.setdefault(database, {})[name] = count - old.get(database, 0)
                    old[database] = count
        return found
