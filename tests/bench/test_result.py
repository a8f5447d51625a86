"""What is made of the clients' figures: rates, ratios, lags, plots, the JSON document."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from litefs.bench.histogram import Histogram
from litefs.bench.meter import Measured
from litefs.bench.plot import complement, timeline
from litefs.bench.replicas import catching_up, lags_of
from litefs.bench.result import Result, Round, Target, document, latency, spread
from litefs.bench.run import order
from litefs.bench.settings import Settings
from litefs.bench.table import text

MACHINE = {
    "kernel": "Linux 1",
    "cpu": "a CPU",
    "cpus": 2,
    "cpusAwake": False,
    "load": [0.5, 0.2, 0.1],
    "python": "3",
    "sqlite": "3.1",
    "litefs": "0",
}


def measured(latencies: list[list[int]], elapsed: int, **more: Any) -> Measured:
    return Measured([[Histogram(part) for part in latencies]], elapsed, **more)


def a_round(rate: float) -> Round:
    """One of a single client with so many operations in a second."""
    return Round.of(("insert",), [measured([[1000] * int(rate)], 10**9)], 10**8)


def test_clients_count_for_the_time_that_they_took() -> None:
    first = measured([[10, 20], [30]], 2 * 10**9, busy=1, unstarted=4)
    second = measured([[40], [50, 60], [70]], 10**9, busy=2, error="disk I/O error")
    idle = measured([], 0)
    found = Round.of(("insert",), [first, second, idle], 10**8)
    (kind,) = found.kinds
    assert kind.rate == found.rate == 3 / 2 + 4 / 1
    assert [point["count"] for point in kind.series] == [3, 3, 1]
    assert (kind.latencies.count, kind.latencies.maximum) == (7, 70)
    assert (found.seconds, found.busy, found.unstarted, found.errors) == (2.0, 3, 4, ["disk I/O error"])


def test_the_ratio_is_of_rounds_side_by_side() -> None:
    # The machine became ten times slower after the first round: the ratio of medians would be 0.2.
    first, second = Target("a", "?"), Target("b", "?")
    first.rounds = [a_round(rate) for rate in (4000, 200, 150)]
    second.rounds = [a_round(rate) for rate in (10000, 1000, 300)]
    result = Result(Settings(), MACHINE, [first, second])
    assert result.ratios() == [0.4, 0.2, 0.5]
    assert document(result)["ratio"] == {"median": 0.4, "min": 0.2, "max": 0.5}
    assert "a / b: 0.400 of its rate (0.200 to 0.500 in 3 rounds)" in text(result)
    first.rounds.pop()
    assert result.ratios() == [0.4, 0.2], "a round that the other one lacks counts for nothing"
    first.rounds[1].kinds[0].rate = 0.0
    assert result.ratios() == [0.4], "a round that was cut short before anything ended counts for nothing"
    assert spread([]) == {"median": 0.0, "min": 0.0, "max": 0.0}


def test_turns_alternate() -> None:
    sessions: Any = ["a", "b", "c"]
    assert ["".join(map(str, order(sessions, number))) for number in range(4)] == ["abc", "cba", "abc", "cba"]


@pytest.mark.parametrize("seed", range(20))
def test_lags(seed: int) -> None:
    draw = random.Random(seed)
    first, count = draw.randrange(5), draw.randrange(1, 60)
    ends = [1000 * number + draw.randrange(900) for number in range(count)]
    seen, at, newest = [(0, first - 1)], 0, first - 1
    while newest < first + count - 1 and draw.random() > 0.02:
        at += draw.randrange(1, 4000)
        newest += draw.randrange(1, 4)
        seen.append((at, newest))
    slow = []
    for number, ended in enumerate(ends, first):
        when = [time for time, row in seen if row >= number]
        if when:
            slow.append((ended, max(0, when[0] - ended)))
    assert lags_of(ends, first, seen) == (slow, count - len(slow))


def test_catching_up() -> None:
    seen = [(100, 7), (200, 9), (10**9, 500), (3 * 10**9, 1000)]
    assert catching_up(seen, 1000, 10**9 - 1) == {
        "transactions behind": 991.0,
        "seconds to catch up": 2.000000001,
        "transactions/s while catching up": 991 / 2.000000001,
    }
    assert catching_up(seen, 9, 300) == {"transactions behind": 0.0, "seconds to catch up": 0.0}


def test_the_time_line_has_a_gap_after_each_round() -> None:
    def series(*counts: int) -> list[dict[str, float]]:
        return [{"at": (n + 1) / 10, "count": count, "p99": count / 1000} for n, count in enumerate(counts)]

    rounds = [
        {"seconds": 0.2, "kinds": {"x": {"series": series(5, 7)}}},
        {"seconds": 0.21, "kinds": {"x": {"series": series(9, 0, 1)}}},  # the rest is too short
        {"seconds": 0.1, "kinds": {}},
    ]
    times, rates, p99 = timeline(rounds, "x", 0.25)
    gap = math.nan
    assert times == pytest.approx([0.1, 0.2, 0.25, 0.35, 0.45, 0.5, 0.75])
    assert rates == pytest.approx([50, 70, gap, 90, 0, gap, gap], nan_ok=True)
    assert p99 == pytest.approx([0.005, 0.007, gap, 0.009, gap, gap, gap], nan_ok=True)
    assert timeline([], "x", 1) == ([], [], [])


def test_the_share_above_each_latency() -> None:
    assert complement([[10, 6], [20, 3], [30, 1]]) == ([10, 20], [0.4, 0.1])
    assert complement([]) == ([], [])


def test_the_document_is_json_and_holds_together() -> None:
    target = Target("a", "ext4", [a_round(100), a_round(300)], checked=True)
    target.rounds[1].other["things"] = 3.0
    found = json.loads(json.dumps(document(Result(Settings(row_size=7), MACHINE, [target], True))))
    assert (found["format"], found["interrupted"], found["settings"]["rowSize"]) == (1, True, 7)
    assert found["machine"] == MACHINE
    (one,) = found["targets"]
    assert (one["path"], one["fileSystem"], one["checked"]) == ("a", "ext4", True)
    assert one["other"] == {"things": {"median": 3.0, "min": 3.0, "max": 3.0}}
    kind = one["kinds"]["insert"]
    assert kind["rate"] == {"median": 200.0, "min": 100.0, "max": 300.0}
    assert sum(count for _, count in kind["histogram"]) == kind["latency"]["count"] == 400
    assert kind["latency"]["max"] == kind["latency"]["p50"] == 1e-6
    assert [each["rate"] for each in one["rounds"]] == [100.0, 300.0]
    points = one["rounds"][0]["kinds"]["insert"]["series"]
    assert [(point["at"], point["count"]) for point in points] == [(0.1, 100)]


def test_latencies_are_in_seconds() -> None:
    found = latency(Histogram([1_000_000] * 99 + [2_000_000_000]))
    assert found["count"] == 100
    assert found["p50"] == pytest.approx(0.001, rel=1 / 200)
    assert (found["p999"], found["max"]) == (2.0, 2.0)


def test_plots(tmp_path: Path) -> None:
    from litefs.bench.plot import draw

    targets = [Target(name, "ext4", [a_round(100), a_round(300)]) for name in ("one", "two")]
    found = json.loads(json.dumps(document(Result(Settings(), MACHINE, targets))))
    for name, begins in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        draw(found, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)
    draw(document(Result(Settings(), MACHINE, [Target("nothing", "?")], True)), tmp_path / "empty.svg")
