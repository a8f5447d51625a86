"""Single-row inserts per second on a native directory: ``litefs bench`` beside a client written in C.

Both use the same shared library of SQLite where Python's ``sqlite3`` was built with the system's; the
versions are printed. The load generator must not be what limits a measurement. Needs a C compiler and the
headers of SQLite (Debian: libsqlite3-dev).
"""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    ROOT,
    Series,
    arguments,
    awake,
    report,
    steal_recorded,
    workspace,
)
from litefs.bench.session import Session
from litefs.bench.settings import Settings

CLIENT_SECONDS = 120.0
"""Bound of a round of the C client."""


class System:
    """One of the two: its rates, and its latencies in µs."""

    def __init__(self, name: str) -> None:
        self.rate = Series(name, "inserts/s")
        self.p50 = Series(f"{name}, p50", "µs")
        self.p99 = Series(f"{name}, p99", "µs")
        self.version = sqlite3.sqlite_version

    @property
    def series(self) -> list[Series]:
        return [self.rate, self.p50, self.p99]

    def note(self, rate: float, p50_ns: float, p99_ns: float) -> None:
        """The figures of a round."""
        for series, value in zip(self.series, (rate, p50_ns / 1000, p99_ns / 1000), strict=True):
            series.values.append(value)


def compile_client(directory: Path) -> Path:
    """The C client, optimised, in ``directory``."""
    program = directory / "bench_client"
    source = ROOT / "benchmarks/bench_client.c"
    subprocess.run(["cc", "-O2", "-o", str(program), str(source), "-lsqlite3"], check=True)
    return program


def load_c(system: System, program: Path, directory: Path, settings: Settings) -> None:
    """A round of the C client."""
    words = [str(word) for word in (program, directory / "c.db", settings.seconds, settings.row_size)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=CLIENT_SECONDS, check=True)
    system.version, *figures = done.stdout.split()
    system.note(*map(float, figures))


def load_ours(system: System, directory: Path, settings: Settings) -> None:
    """A round of litefs bench."""
    with Session(directory, settings) as session:
        session.round()
        session.check()
        (kind,) = session.target.rounds[0].kinds
        system.note(kind.rate, kind.latencies.percentile(0.5), kind.latencies.percentile(0.99))


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round (default %(default)s)")
    options = parser.parse_args()
    settings = Settings(seconds=options.seconds)
    ours, theirs = System("litefs bench"), System("C")
    with workspace(options) as root, awake(options):
        program = compile_client(root)
        for number in range(options.rounds):
            # New databases for each round of either, and each goes first in every other one.
            directory = root / str(number)
            directory.mkdir()
            for system in (ours, theirs) if number % 2 else (theirs, ours):
                with steal_recorded(system.rate):
                    if system is ours:
                        load_ours(system, directory, settings)
                    else:
                        load_c(system, program, directory, settings)
            shutil.rmtree(directory)
    pairs = zip(ours.rate.values, theirs.rate.values, strict=True)
    ratios = {
        "litefs bench / C, median of the rounds": statistics.median(mine / other for mine, other in pairs),
        "C / litefs bench, p50": theirs.p50.median / ours.p50.median,
    }
    notes = {"SQLite": f"{ours.version} (litefs bench), {theirs.version} (C)"}
    title = "single-row inserts, WAL, synchronous=NORMAL, native"
    report(options, title, [*ours.series, *theirs.series], ratios, notes)


if __name__ == "__main__":
    main()
