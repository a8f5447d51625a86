"""Single-row autocommit inserts per second, as ``litefs bench insert`` makes them: native, on a mount alone,
and with a replica over HTTP/2; with ``--sync`` also with a replica that must have each commit durably before
it is answered.

The replica must have every row at the end of a round; how long it then took is reported too.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Series, arguments, awake, cluster, report, wait_for, workspace
from litefs import client
from litefs.bench.session import NAME, Session
from litefs.bench.settings import Settings
from tests.support.node import Node
from tests.support.processes import wait_until


class Place:
    """A directory under load: its rates, and its latencies in µs."""

    def __init__(self, name: str) -> None:
        self.rate = Series(name, "inserts/s")
        self.p50, self.p99 = (Series(f"{name}, {which}", "µs") for which in ("p50", "p99"))

    def load(self, session: Session) -> None:
        """One round."""
        session.round()
        (done,) = session.target.rounds
        latencies = done.kinds[0].latencies
        self.rate.values.append(done.rate)
        self.rate.steal.append(done.steal)
        self.p50.values.append(latencies.percentile(0.50) / 1000)
        self.p99.values.append(latencies.percentile(0.99) / 1000)

    def measure(self, directory: Path, settings: Settings) -> None:
        """One round on a database of its own."""
        with Session(directory, settings) as session:
            self.load(session)
            session.check()


def wait_in_sync(primary: Node) -> None:
    """Until the primary has a replica in sync."""
    wait_until(lambda: bool((primary.info() or {}).get("inSync")), 60, "a replica in sync")


def measure_pair(place: Place, behind: Series, primary: Node, replica: Node, settings: Settings) -> None:
    """One round on a primary with a replica, which has to have it all in the end."""
    with Session(primary.mount, settings) as session:
        place.load(session)
        begin = time.perf_counter()
        wait_for(replica, NAME)
        client.wait(replica.path(NAME), client.position(primary.path(NAME)), client.LONGEST_WAIT)
        behind.values.append((time.perf_counter() - begin) * 1000)
        session.check(Path(replica.path(NAME)))


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round (default %(default)s)")
    parser.add_argument("--mode", default="WAL", help="journal mode (default %(default)s)")
    parser.add_argument("--synchronous", default="NORMAL", help="(default %(default)s)")
    parser.add_argument("--sync", help="also with one replica and replication.sync of this: any, 1")
    options = parser.parse_args()
    settings = Settings(
        journal_mode=options.mode, synchronous=options.synchronous, seconds=options.seconds, rounds=1
    )
    native, alone, replicated, waiting = map(Place, ("native", "mount", "mount + replica", "in sync"))
    behind = Series("replica behind at the end", "ms")
    with workspace(options) as root, awake(options):
        for number in range(options.rounds):
            native.measure(root, settings)
            # Nodes are started afresh for each round: an idle mount would take CPU time from the other.
            with cluster(root / f"alone{number}", 0) as (node,):
                alone.measure(node.mount, settings)
            with cluster(root / f"pair{number}", 1) as (primary, replica):
                measure_pair(replicated, behind, primary, replica, settings)
            if options.sync:
                with cluster(root / f"sync{number}", 1, replication={"sync": options.sync}) as (primary, _):
                    wait_in_sync(primary)
                    waiting.measure(primary.mount, settings)
    places = [native, alone, replicated, *([waiting] if options.sync else [])]
    ratios = {
        f"{place.rate.name} / native": place.rate.median / native.rate.median for place in (alone, replicated)
    }
    title = f"single-row inserts, {options.mode}, synchronous={options.synchronous}"
    latencies = [one for place in places for one in (place.p50, place.p99)]
    report(options, title, [*(place.rate for place in places), *latencies, behind], ratios)


if __name__ == "__main__":
    main()
