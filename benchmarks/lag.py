"""Milliseconds from a commit's return until its row is visible on the replica, one insert every 10 ms."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    Series,
    arguments,
    awake,
    cluster,
    percentile,
    report,
    steal_recorded,
    wait_for,
    workspace,
)
from tests.support.processes import Client


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round (default %(default)s)")
    parser.add_argument(
        "--interval", type=float, default=10.0, help="ms between inserts (default %(default)s)"
    )
    options = parser.parse_args()
    half, most = Series("lag p50", "ms"), Series("lag p99", "ms")
    samples = 0
    with workspace(options) as root, awake(options), cluster(root, 1) as (primary, replica):
        with Client("sql", "sqlite3") as sql:
            sql.call("open", path=primary.path("lag.db"))
            sql.call("execute", statement="PRAGMA journal_mode=WAL")
            sql.call("execute", statement="CREATE TABLE beat(id INTEGER PRIMARY KEY)")
        wait_for(replica, "lag.db")
        for _ in range(options.rounds):
            words = (primary.path("lag.db"), replica.path("lag.db"), options.interval)
            with Client("lag", *words) as meter, steal_recorded(most):
                time.sleep(options.seconds)
                lags = [1000 * lag for lag in meter.call("stop", 30)]
            samples += len(lags)
            half.values.append(percentile(lags, 0.50))
            most.values.append(percentile(lags, 0.99))
    report(options, f"lag, an insert every {options.interval:g} ms", [half, most], {}, {"inserts": samples})


if __name__ == "__main__":
    main()
