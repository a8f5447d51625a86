"""Milliseconds from a commit's return until its row is visible on the replica, one insert every 10 ms, as
``litefs bench lag`` measures it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Series, arguments, awake, cluster, report, workspace
from litefs.bench.replicas import LagSession
from litefs.bench.run import run_rounds
from litefs.bench.settings import Settings


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round (default %(default)s)")
    parser.add_argument(
        "--interval", type=float, default=10.0, help="ms between inserts (default %(default)s)"
    )
    options = parser.parse_args()
    settings = Settings(workload="lag", rate=1000 / options.interval, seconds=options.seconds)
    half, most = Series("lag p50", "ms"), Series("lag p99", "ms")
    with workspace(options) as root, awake(options), cluster(root, 1) as (primary, replica):
        with LagSession(primary.mount, replica.mount, settings) as session:
            run_rounds([session], options.rounds, lambda: False)
            inserts = session.written
        for done in session.target.rounds:
            _, visible = done.kinds
            half.values.append(visible.latencies.percentile(0.50) / 1e6)
            most.values.append(visible.latencies.percentile(0.99) / 1e6)
            most.steal.append(done.steal)
    report(options, f"lag, an insert every {options.interval:g} ms", [half, most], {}, {"inserts": inserts})


if __name__ == "__main__":
    main()
