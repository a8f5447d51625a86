"""The report as text."""

from __future__ import annotations

from dataclasses import replace

from litefs.bench.histogram import Histogram
from litefs.bench.meter import Measured
from litefs.bench.result import Result, Round, Target
from litefs.bench.settings import Settings
from litefs.bench.table import text
from tests.bench.test_result import MACHINE

MS = 1_000_000


def report(settings: Settings, kinds: dict[str, list[int]], **more: int) -> list[str]:
    """The lines of a run of one round of a second."""
    measured = Measured([[Histogram(latencies)] for latencies in kinds.values()], 1000 * MS, **more)
    done = Round.of(tuple(kinds), [measured], 100 * MS)
    return text(Result(settings, MACHINE, [Target("/a", "ext4", [done])])).splitlines()


def test_the_table() -> None:
    latencies = [5_000] * 50 + [2 * MS] * 40 + [300 * MS] * 9 + [4_000 * MS]
    lines = report(Settings(seed=3), {"insert": latencies})
    assert lines[0] == (
        "litefs bench insert: WAL, synchronous=NORMAL, pages of 4096, 1 client, as fast as possible, rows of "
        "100 bytes, 5 rounds of 2 s, seed 3"
    )
    assert lines[1] == "Linux 1, 2 CPUs (may sleep) a CPU, load 0.5 0.2 0.1, SQLite 3.1, Python 3, LiteFS 0"
    assert lines[3] == "/a (ext4), not checked, steal ≤ 0.0 %"
    words = ["insert", "100", "(100", "to", "100)", "5.01", "µs", "2", "ms", "301", "ms", "4", "s", "4", "s"]
    assert lines[5].split() == words
    assert len(lines) == 6


def test_rows_and_bytes() -> None:
    batches = report(Settings(workload="batch", batch=50, row_size=2000), {"batch": [MS] * 20})
    assert batches[6:] == ["  batch: 1,000 rows/s, 2 MB/s"]
    scans = report(Settings(workload="scan", rows=1000, row_size=10), {"scan": [MS] * 300})
    assert scans[6:] == ["  scan: 300,000 rows/s, 3 MB/s"]
    assert "1,000 rows," in scans[0]
    large = report(Settings(workload="large", megabytes=6.5536), {"large": [MS] * 10})
    assert large[6:] == ["  large: 65.5 MB/s"]
    assert "transactions of 6.6 MB" in large[0]


def test_what_was_not_done_is_said() -> None:
    settings = Settings(workload="lag", rate=100)
    lines = report(settings, {"commit": [MS] * 90, "visible": [MS] * 90}, unstarted=10, busy=2)
    assert "10 of 100 operations were due but not begun in time" in lines[7]
    assert "2 operations were tried again" in lines[8]
    assert "rate 100/s" in lines[0]
    result = Result(replace(settings, rounds=1), MACHINE, [Target("/a", "?")], interrupted=True)
    assert text(result).endswith("Interrupted: these are the results until then.")
