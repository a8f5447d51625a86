"""Single-row autocommit inserts per second: native, on a mount alone, and with a replica over HTTP/2; with
``--sync`` also with a replica that must have each commit durably before it is answered.

The replica must have every row at the end of a round; how long it then took is reported too.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    Series,
    arguments,
    awake,
    client,
    cluster,
    report,
    steal_recorded,
    wait_for,
    workspace,
)
from tests.support.node import Node
from tests.support.processes import wait_until

CLIENT = """
import apsw, json, sys, time
path, mode, synchronous, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
connection = apsw.Connection(path)
connection.set_busy_timeout(5000)
cursor = connection.cursor()
cursor.execute(f"PRAGMA journal_mode={mode}")
cursor.execute(f"PRAGMA synchronous={synchronous}")
cursor.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, data TEXT)")
insert = "INSERT INTO t(data) VALUES(?)"
row = ("x" * 100,)
for _ in range(100):
    cursor.execute(insert, row)
latencies = []
clock = time.perf_counter
start = last = clock()
while last - start < seconds:
    cursor.execute(insert, row)
    now = clock()
    latencies.append(now - last)
    last = now
latencies.sort()
rows = cursor.execute("SELECT count(*) FROM t").fetchone()[0]
connection.close()
p50, p99 = (latencies[int(len(latencies) * share)] * 1e6 for share in (0.5, 0.99))
print(json.dumps({"rate": len(latencies) / (last - start), "p50_us": p50, "p99_us": p99, "rows": rows}))
"""

COUNT = """
import apsw, json, sys, time
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY)
connection.set_busy_timeout(5000)
deadline = time.monotonic() + 60
while connection.execute("SELECT count(*) FROM t").fetchone()[0] < int(sys.argv[2]):
    assert time.monotonic() < deadline, "the replica does not catch up"
    time.sleep(0.002)
print(json.dumps(True))
"""


def wait_in_sync(primary: Node) -> None:
    """Until the primary has a replica in sync."""
    wait_until(lambda: bool((primary.info() or {}).get("inSync")), 60, "a replica in sync")


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round (default %(default)s)")
    parser.add_argument("--mode", default="WAL", help="journal mode (default %(default)s)")
    parser.add_argument("--synchronous", default="NORMAL", help="(default %(default)s)")
    parser.add_argument("--sync", help="also with one replica and replication.sync of this: any, 1")
    options = parser.parse_args()
    native, alone, replicated, waiting = (
        Series(name, "inserts/s") for name in ("native", "mount", "mount + replica", "in sync")
    )
    measured = [native, alone, replicated, *([waiting] if options.sync else [])]
    latencies = {
        one.name: [Series(f"{one.name}, {which}", "µs") for which in ("p50", "p99")] for one in measured
    }
    catch_up = Series("replica behind at the end", "ms")

    def measure(series: Series, path: Path) -> int:
        with steal_recorded(series):
            result = client(CLIENT, path, options.mode, options.synchronous, options.seconds)
        series.values.append(result["rate"])
        for latency, which in zip(latencies[series.name], ("p50_us", "p99_us"), strict=True):
            latency.values.append(result[which])
        return int(result["rows"])

    with workspace(options) as root, awake(options):
        for number in range(options.rounds):
            name = f"round{number}.db"
            measure(native, root / name)
            # Nodes are started afresh for each round: an idle mount would take CPU time from the other.
            with cluster(root / f"alone{number}", 0) as (node,):
                measure(alone, node.mount / name)
            with cluster(root / f"pair{number}", 1) as (primary, replica):
                rows = measure(replicated, primary.mount / name)
                begin = time.perf_counter()
                wait_for(replica, name)
                client(COUNT, replica.mount / name, rows)
                catch_up.values.append((time.perf_counter() - begin) * 1000)
            if options.sync:
                with cluster(root / f"sync{number}", 1, replication={"sync": options.sync}) as (primary, _):
                    wait_in_sync(primary)
                    measure(waiting, primary.mount / name)
    ratios = {
        "mount / native": alone.median / native.median,
        "mount + replica / native": replicated.median / native.median,
    }
    title = f"single-row inserts, {options.mode}, synchronous={options.synchronous}"
    quantiles = [one for both in latencies.values() for one in both]
    report(options, title, [*measured, *quantiles, catch_up], ratios)


if __name__ == "__main__":
    main()
