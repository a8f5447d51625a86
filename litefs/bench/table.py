"""The result as text, for a terminal or a file."""

from __future__ import annotations

from litefs.bench.histogram import Histogram
from litefs.bench.result import SHARES, Result, Target, rows_of, spread
from litefs.bench.settings import Settings
from litefs.bench.workloads import LARGE_ROW, large_rows

_COLUMNS = ("p50", "p90", "p99", "p99.9", "max")


def header(result: Result) -> list[str]:
    """What was done, and on what."""
    asked, machine = result.settings, result.machine
    awake = "kept awake" if machine["cpusAwake"] else "may sleep"
    load = " ".join(f"{value:.1f}" for value in machine["load"])
    return [
        f"litefs bench {asked.workload}: {_settings(asked)}",
        f"{machine['kernel']}, {machine['cpus']} CPUs ({awake}) {machine['cpu']}, load {load}, "
        f"SQLite {machine['sqlite']}, Python {machine['python']}, LiteFS {machine['litefs']}",
    ]


def _settings(asked: Settings) -> str:
    parts = [
        f"{asked.journal_mode}, synchronous={asked.synchronous}",
        f"pages of {asked.page_size}",
        f"{asked.clients} client{'s' if asked.clients > 1 else ''}",
        f"rate {asked.rate:g}/s" if asked.rate else "as fast as possible",
    ]
    if asked.workload == "large":
        parts.append(f"transactions of {large_rows(asked) * LARGE_ROW / 1e6:.1f} MB")
    else:
        parts.append(f"rows of {asked.row_size} bytes")
    if asked.workload == "batch":
        parts.append(f"{asked.batch} rows a transaction")
    if asked.filled:
        parts.append(f"{asked.filled:,} rows")
    parts.append(f"{asked.rounds} rounds of {asked.seconds:g} s")
    return ", ".join(parts) + f", seed {asked.seed}"


def text(result: Result) -> str:
    """The whole report, without a line feed at its end."""
    lines = header(result)
    for target in result.targets:
        lines += ["", *_target(target, result)]
    if ratios := result.ratios():
        first, second = (target.path for target in result.targets)
        found = spread(ratios)
        lines += [
            "",
            f"{first} / {second}: {found['median']:.3f} of its rate "
            f"({found['min']:.3f} to {found['max']:.3f} in {len(ratios)} rounds)",
        ]
    if result.interrupted:
        lines += ["", "Interrupted: these are the results until then."]
    return "\n".join(lines)


def _target(target: Target, result: Result) -> list[str]:
    rounds = target.rounds
    steal = max((each.steal for each in rounds), default=0.0)
    checked = "checked" if target.checked else "not checked"
    lines = [f"{target.path} ({target.file_system}), {checked}, steal ≤ {steal:.1f} %"]
    kinds = target.kinds()
    width = max(map(len, kinds), default=0)
    lines.append(
        f"  {'':<{width}}  {'rate/s':>10} {'(min to max)':>22}" + "".join(f"{c:>10}" for c in _COLUMNS)
    )
    for name, histogram in kinds.items():
        rate = spread(target.rates(name))
        between = f"({_number(rate['min'])} to {_number(rate['max'])})"
        lines.append(f"  {name:<{width}}  {_number(rate['median']):>10} {between:>22}{_latencies(histogram)}")
    lines += [f"  {note}" for note in _notes(target, result.settings)]
    return lines


def _latencies(histogram: Histogram) -> str:
    if not histogram.count:
        return ""
    values = [*(histogram.percentile(share) for _, share in SHARES), histogram.maximum]
    return "".join(f"{_time(value):>10}" for value in values)


def _notes(target: Target, asked: Settings) -> list[str]:
    notes = []
    for name in target.kinds():
        rate = spread(target.rates(name))["median"]
        if (rows := rows_of(asked, name)) != 1:
            notes.append(
                f"{name}: {_number(rate * rows)} rows/s, {_number(rate * rows * asked.row_size / 1e6)} MB/s"
            )
        if name == "large":
            notes.append(f"{name}: {_number(rate * large_rows(asked) * LARGE_ROW / 1e6)} MB/s")
    others = dict.fromkeys(name for each in target.rounds for name in each.other)
    for name in others:
        found = spread([each.other[name] for each in target.rounds if name in each.other])
        notes.append(
            f"{name}: {_number(found['median'])} ({_number(found['min'])} to {_number(found['max'])})"
        )
    unstarted = sum(each.unstarted for each in target.rounds)
    if unstarted:
        begun = sum(kind.count for name, kind in target.kinds().items() if name != "visible")
        notes.append(f"{unstarted:,} of {begun + unstarted:,} operations were due but not begun in time")
    if busy := sum(each.busy for each in target.rounds):
        notes.append(f"{busy:,} operations were tried again: another client was in the way for too long")
    if asked.workload == "lag":
        notes.append("visible: from the commit's end until a reader of the replica saw the row")
    return notes


def _number(value: float) -> str:
    """Three digits at least, thousands separated."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _time(nanoseconds: int) -> str:
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if nanoseconds >= scale:
            value = nanoseconds / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{nanoseconds} ns"
