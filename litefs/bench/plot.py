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
            "plotted there with -from PATH"
        ) from None


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the plots to ``path``, whose suffix is one of SUFFIXES. Raises BenchError."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10), layout="constrained")
    rates, slowest, latencies = figure.subplots(3, 1)
    length = max(
        (each["seconds"] for target in document["targets"] for each in target["rounds"]), default=0.0
    )
    for target in document["targets"]:
        for kind in target["kinds"]:
            label = target["path"] if len(target["kinds"]) == 1 else f"{target['path']}: {kind}"
            times, counts, p99 = timeline(target["rounds"], kind, length)
            rates.plot(times, counts, label=label)
            slowest.plot(times, [1000 * value for value in p99], label=label)
            values, above = complement(target["kinds"][kind]["histogram"])
            latencies.step([value / 1e6 for value in values], above, where="post", label=label)
    rates.set(ylabel="operations/s", ylim=(0, None), xlabel="seconds of load")
    slowest.set(ylabel="p99 in ms", xlabel="seconds of load")
    latencies.set(ylabel="share that takes longer", xlabel="latency in ms")
    for axes, scales in ((slowest, {"yscale": "log"}), (latencies, {"xscale": "log", "yscale": "log"})):
        # Without any positive value Matplotlib has no logarithmic scale.
        if any(value > 0 for line in axes.lines for value in line.get_ydata()):
            axes.set(**scales)
    latencies.invert_yaxis()
    for axes in (rates, slowest, latencies):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    settings, machine = document["settings"], document["machine"]
    figure.suptitle(
        f"litefs bench {settings['workload']}, {settings['journalMode']}, "
        f"synchronous={settings['synchronous']}, {settings['clients']} clients\n"
        f"{machine['kernel']}, {machine['cpus']} CPUs, SQLite {machine['sqlite']}"
    )
    try:
        figure.savefig(path)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error


def timeline(
    rounds: list[dict[str, Any]], kind: str, length: float
) -> tuple[list[float], list[float], list[float]]:
    """The rounds one behind the other, ``length`` seconds each: the time of each interval's end, operations a
    second in it, and its 99th percentile in seconds. A gap (NaN) ends each round.

    The rest at a round's end that is less than half an interval is too short to tell a rate.
    """
    gap = float("nan")
    points: list[tuple[float, float, float]] = []
    for number, each in enumerate(rounds):
        before = 0.0
        for point in each["kinds"].get(kind, {"series": []})["series"]:
            took = min(point["at"], each["seconds"]) - before
            if took >= (point["at"] - before) / 2:
                points.append((number * length + before + took, point["count"] / took, point["p99"] or gap))
            before = point["at"]
        points.append(((number + 1) * length, gap, gap))
    times, rates, p99 = (list(column) for column in zip(*points, strict=True)) if points else ([], [], [])
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
