"""MB/s of every kernel, beside its plain-Python reference and beside memcpy of as many bytes.

    python benchmarks/kernels.py [--json] [--seconds S] [--only WORD]

Kernel, reference and memcpy take turns, so that a busy machine slows all of them; the figure is the median of
the turns, by CPU time, so that it does not count what other processes took. Exit status 1 if a kernel misses
its bar. The rows come from ``rows() -> list[Row]`` of each module ``kernel_rows_*`` beside this one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.kernel_row import Row  # noqa: E402  (needs the path above)

MODULES = sorted(f"benchmarks.{path.stem}" for path in Path(__file__).parent.glob("kernel_rows_*.py"))
TURNS = 7


class Result(TypedDict):
    """One measured row; speeds in MB/s (10^6 bytes)."""

    name: str
    kernel: float
    reference: float
    memcpy: float
    times_reference: float
    share_of_memcpy: float
    bar: float | None
    passed: bool


def speed(work: Callable[[], object], size: int, seconds: float) -> float:
    """MB/s of CPU time, of calls for about ``seconds``, at least one."""
    calls, batch, start = 0, 1, time.thread_time()
    while True:
        for _ in range(batch):
            work()
        calls += batch
        spent = time.thread_time() - start
        if spent >= seconds:
            return calls * size / spent / 1e6
        # Reading the clock costs as much as a small kernel: read it seldom.
        if spent < seconds / 4:
            batch = calls


def copier(size: int) -> Callable[[], object]:
    """memcpy of ``size`` bytes between buffers that exist already."""
    source, target = memoryview(bytes(size)), memoryview(bytearray(size))

    def copy() -> None:
        target[:] = source

    return copy


def measure(row: Row, seconds: float) -> Result:
    """Kernel, reference and memcpy in turns."""
    copy = copier(row.size)
    each = seconds / TURNS / 3
    turns = [
        (
            speed(row.kernel, row.size, each),
            speed(row.reference, row.reference_size, each / 4),
            speed(copy, row.size, each / 4),
        )
        for _ in range(TURNS)
    ]
    kernel, reference, memcpy = (statistics.median(column) for column in zip(*turns, strict=True))
    return Result(
        name=row.name,
        kernel=round(kernel, 1),
        reference=round(reference, 3),
        memcpy=round(memcpy, 1),
        times_reference=round(kernel / reference, 1),
        share_of_memcpy=round(kernel / memcpy, 3),
        bar=row.bar,
        passed=row.bar is None or kernel >= row.bar,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time per row")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose name contains it")
    options = parser.parse_args()
    rows = [row for module in MODULES for row in importlib.import_module(module).rows()]
    results = []
    if not options.json:
        print(f"{'kernel':34} {'MB/s':>9} {'bar':>6} {'reference':>10} {'memcpy':>8} {'of memcpy':>9}")
    for row in rows:
        if options.only not in row.name:
            continue
        result = measure(row, options.seconds)
        results.append(result)
        if not options.json:
            bar = "" if row.bar is None else f"{row.bar:.0f}"
            missed = "" if result["passed"] else "  MISSED"
            print(
                f"{row.name:34} {result['kernel']:9.0f} {bar:>6} {result['reference']:10.2f} "
                f"{result['memcpy']:8.0f} {result['share_of_memcpy']:9.2f}{missed}",
                flush=True,
            )
    if options.json:
        print(json.dumps(results, indent=2))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
