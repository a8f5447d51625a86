"""Plots of a run, from its JSON document: operations over time, the 99th percentile over time, and latencies.

Drawn by Matplotlib, which is not among what LiteFS needs to run: it is the extra ``plot``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litefs.bench.settings import BenchError

SUFFIXES = (".svg", ".png", ".pdf")


def require_matplotlib() -> None:
    """Raise BenchError if there is none: to be called before anything is measured."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise BenchError(
            "plots need Matplotlib: pip install 'litefs-fuse[plot]', here or elsewhere; a run's -json can be "
            "plotted there with -from FILE"
        ) from None


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the plots to ``path``, whose suffix is one of SUFFIXES. Raises BenchError."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10), layout="constrained")
    rates, slowest, latencies = figure.subplots(3, 1)
    for target in document["targets"]:
        for kind in target["kinds"]:
            label = target["path"] if len(target["kinds"]) == 1 else f"{target['path']}: {kind}"
            times, counts, p99 = timeline(target["rounds"], kind)
            rates.plot(times, counts, label=label)
            slowest.plot(times, [1000 * value for value in p99], label=label)
            values, above = complement(target["kinds"][kind]["histogram"])
            latencies.step([value / 1e6 for value in values], above, where="post", label=label)
    rates.set(ylabel="operations/s", ylim=(0, None), xlabel="seconds of load")
    slowest.set(ylabel="p99 in ms", yscale="log", xlabel="seconds of load")
    latencies.set(ylabel="share that takes longer", yscale="log", xscale="log", xlabel="latency in ms")
    latencies.invert_yaxis()
    for axes in (rates, slowest, latencies):
        axes.grid(alpha=0.3)
        axes.legend()
    settings, machine = document["settings"], document["machine"]
    figure.suptitle(
        f"litefs bench {settings['workload']}, {settings['journal_mode']}, "
        f"synchronous={settings['synchronous']}, {settings['clients']} clients\n"
        f"{machine['kernel']}, {machine['cpus']} CPUs, SQLite {machine['sqlite']}"
    )
    try:
        figure.savefig(path)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error


def timeline(rounds: list[dict[str, Any]], kind: str) -> tuple[list[float], list[float], list[float]]:
    """The rounds one behind the other: the seconds of load at each interval's end, operations a second in it,
    and its 99th percentile in seconds. A gap (NaN) stands between rounds."""
    gap = float("nan")
    times: list[float] = []
    rates: list[float] = []
    p99: list[float] = []
    elapsed = 0.0
    for each in rounds:
        before = 0.0
        for point in each["kinds"].get(kind, {"series": []})["series"]:
            ended = min(point["at"], each["seconds"])
            if ended > before:
                times.append(elapsed + ended)
                rates.append(point["count"] / (ended - before))
                p99.append(point["p99"] or gap)
            before = point["at"]
        elapsed += each["seconds"]
        times.append(elapsed)
        rates.append(gap)
        p99.append(gap)
    return times, rates, p99


def complement(histogram: list[list[int]]) -> tuple[list[int], list[float]]:
    """Latencies in ns, and the share of the operations that took longer than each."""
    total = sum(count for _, count in histogram)
    values, above, seen = [], [], 0
    for value, count in histogram[:-1]:
        seen += count
        values.append(value)
        above.append((total - seen) / total)
    return values, above
