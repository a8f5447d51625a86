"""Warm point reads per second, as ``litefs bench read`` makes them: native, on the primary's mount and on the
replica's."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Series, arguments, awake, cluster, report, wait_for, workspace
from litefs import client
from litefs.bench.run import run_rounds
from litefs.bench.session import NAME, Session
from litefs.bench.settings import Settings


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=100_000, help="in the table (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round (default %(default)s)")
    options = parser.parse_args()
    settings = Settings(workload="read", rows=options.rows, seconds=options.seconds)
    names = ("native", "primary's mount", "replica's mount")
    with workspace(options) as root, awake(options), cluster(root, 1) as (primary, replica):
        with contextlib.ExitStack() as stack:
            sessions = [
                stack.enter_context(Session(directory, settings)) for directory in (root, primary.mount)
            ]
            wait_for(replica, NAME)
            client.wait(replica.path(NAME), client.position(primary.path(NAME)), client.LONGEST_WAIT)
            sessions.append(stack.enter_context(Session(replica.mount, settings, reuse=True)))
            run_rounds(sessions, options.rounds, lambda: False)
        series = [
            Series(
                name,
                "reads/s",
                [done.rate for done in session.target.rounds],
                [done.steal for done in session.target.rounds],
            )
            for name, session in zip(names, sessions, strict=True)
        ]
    ratios = {f"{one.name} / native": one.median / series[0].median for one in series[1:]}
    report(options, "warm point reads, each a transaction", series, ratios)


if __name__ == "__main__":
    main()
