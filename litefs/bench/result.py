"""What was measured: rounds of one directory, several directories side by side, and the JSON of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from litefs.bench.histogram import Histogram
from litefs.bench.meter import Measured
from litefs.bench.settings import Settings

FORMAT = 1
"""Of the JSON document."""

SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))


@dataclass(slots=True)
class Figures:
    """One kind of operation in one round, over all clients."""

    name: str
    rate: float
    """Operations a second."""
    latencies: Histogram
    """In ns, of the whole round."""
    series: list[dict[str, float]]
    """:func:`latency` of each interval, by when the operations ended."""

    @classmethod
    def of(cls, name: str, rate: float, intervals: Sequence[Histogram]) -> Figures:
        """From the latencies of each interval, which are not kept: a run may have many rounds."""
        latencies = Histogram()
        for each in intervals:
            latencies.merge(each)
        return cls(name, rate, latencies, list(map(latency, intervals)))


@dataclass(slots=True)
class Round:
    """One round on one directory."""

    kinds: list[Figures]
    seconds: float
    """How long it really took."""
    interval: float
    """Seconds of each point of Figures.series."""
    steal: float = 0.0
    """Percent of CPU time that other tenants of the machine took."""
    busy: int = 0
    unstarted: int = 0
    errors: list[str] = field(default_factory=list)
    other: dict[str, float] = field(default_factory=dict)
    """Figures by name that are no latencies, as of ``catch-up``."""

    @property
    def rate(self) -> float:
        """Operations a second, of all kinds."""
        return sum(kind.rate for kind in self.kinds)

    @classmethod
    def of(cls, names: Sequence[str], clients: Sequence[Measured], interval_ns: int) -> Round:
        """Put together what the clients did; each counts for the time that it took itself."""
        kinds = []
        for kind, name in enumerate(names):
            rate = sum(
                1e9 * sum(part.count for part in client.kinds[kind]) / client.elapsed
                for client in clients
                if client.elapsed > 0
            )
            length = max((len(client.kinds[kind]) for client in clients), default=0)
            intervals = [Histogram() for _ in range(length)]
            for client in clients:
                for interval, part in zip(intervals, client.kinds[kind], strict=False):
                    interval.merge(part)
            kinds.append(Figures.of(name, rate, intervals))
        return cls(
            kinds,
            max((client.elapsed for client in clients), default=0) / 1e9,
            interval_ns / 1e9,
            busy=sum(client.busy for client in clients),
            unstarted=sum(client.unstarted for client in clients),
            errors=[client.error for client in clients if client.error],
        )


@dataclass(slots=True)
class Target:
    """A directory and its rounds."""

    path: str
    file_system: str
    rounds: list[Round] = field(default_factory=list)
    checked: bool = False
    """All that was acknowledged is in the database, which is sound."""

    def kinds(self) -> dict[str, Histogram]:
        """The latencies of each kind of operation over all rounds."""
        found: dict[str, Histogram] = {}
        for each in self.rounds:
            for kind in each.kinds:
                found.setdefault(kind.name, Histogram()).merge(kind.latencies)
        return found

    def rates(self, kind: str) -> list[float]:
        """Operations a second in each round."""
        return [found.rate for each in self.rounds for found in each.kinds if found.name == kind]


@dataclass(slots=True)
class Result:
    """A whole run."""

    settings: Settings
    machine: dict[str, Any]
    targets: list[Target]
    interrupted: bool = False

    def ratios(self) -> list[float]:
        """The first directory's rate in each round by that of the second in the same round."""
        if len(self.targets) < 2:
            return []
        pairs = zip(self.targets[0].rounds, self.targets[1].rounds, strict=False)
        # A round that was interrupted before its first operation ended tells nothing.
        return [first.rate / second.rate for first, second in pairs if first.rate and second.rate]


def rows_of(settings: Settings, kind: str) -> float:
    """Rows of one operation of a kind, 1 where rows say nothing."""
    return {"batch": settings.batch, "scan": settings.rows}.get(kind, 1)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most; zeros if there is nothing."""
    if not values:
        return {"median": 0.0, "min": 0.0, "max": 0.0}
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def latency(histogram: Histogram) -> dict[str, Any]:
    """Percentiles in seconds, as in the JSON document."""
    found: dict[str, Any] = {name: histogram.percentile(share) / 1e9 for name, share in SHARES}
    return {"count": histogram.count, **found, "max": histogram.maximum / 1e9}


def document(result: Result) -> dict[str, Any]:
    """The run as a JSON object (docs/bench.md). Times in seconds, histograms in nanoseconds."""
    found: dict[str, Any] = {
        "format": FORMAT,
        "settings": {_camel(name): value for name, value in asdict(result.settings).items()},
        "machine": result.machine,
        "interrupted": result.interrupted,
        "targets": [_target(target) for target in result.targets],
    }
    if ratios := result.ratios():
        found["ratio"] = spread(ratios)
    return found


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))


def _target(target: Target) -> dict[str, Any]:
    return {
        "path": target.path,
        "fileSystem": target.file_system,
        "checked": target.checked,
        "kinds": {
            name: {
                "rate": spread(target.rates(name)),
                "latency": latency(histogram),
                "histogram": histogram.rows(),
            }
            for name, histogram in target.kinds().items()
        },
        "other": {
            name: spread([each.other[name] for each in target.rounds if name in each.other])
            for name in dict.fromkeys(name for each in target.rounds for name in each.other)
        },
        "rounds": [_round(each) for each in target.rounds],
    }


def _round(each: Round) -> dict[str, Any]:
    return {
        "seconds": each.seconds,
        "rate": each.rate,
        "steal": each.steal,
        "busy": each.busy,
        "unstarted": each.unstarted,
        "errors": each.errors,
        "other": each.other,
        "kinds": {
            kind.name: {
                "rate": kind.rate,
                "latency": latency(kind.latencies),
                "series": [
                    {"at": round((number + 1) * each.interval, 6), **point}
                    for number, point in enumerate(kind.series)
                ],
            }
            for kind in each.kinds
        },
    }
