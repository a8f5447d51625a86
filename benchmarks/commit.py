"""Single-row autocommit inserts per second: native, on a mount alone, and with a replica over HTTP/2.

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
p99 = latencies[int(len(latencies) * 0.99)] * 1e6
print(json.dumps({"rate": len(latencies) / (last - start), "p99_us": p99, "rows": rows}))
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


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round (default %(default)s)")
    parser.add_argument("--mode", default="WAL", help="journal mode (default %(default)s)")
    parser.add_argument("--synchronous", default="NORMAL", help="(default %(default)s)")
    options = parser.parse_args()
    native, alone, replicated = (Series(name, "inserts/s") for name in ("native", "mount", "mount + replica"))
    latencies = [Series(f"{one.name}, p99", "µs") for one in (native, alone, replicated)]
    catch_up = Series("replica behind at the end", "ms")

    def measure(series: Series, latency: Series, path: Path) -> int:
        with steal_recorded(series):
            result = client(CLIENT, path, options.mode, options.synchronous, options.seconds)
        series.values.append(result["rate"])
        latency.values.append(result["p99_us"])
        return int(result["rows"])

    with workspace(options) as root, awake(options):
        for number in range(options.rounds):
            name = f"round{number}.db"
            measure(native, latencies[0], root / name)
            # Nodes are started afresh for each round: an idle mount would take CPU time from the other.
            with cluster(root / f"alone{number}", 0) as (node,):
                measure(alone, latencies[1], node.mount / name)
            with cluster(root / f"pair{number}", 1) as (primary, replica):
                rows = measure(replicated, latencies[2], primary.mount / name)
                begin = time.perf_counter()
                wait_for(replica, name)
                client(COUNT, replica.mount / name, rows)
                catch_up.values.append((time.perf_counter() - begin) * 1000)
    ratios = {
        "mount / native": alone.median / native.median,
        "mount + replica / native": replicated.median / native.median,
    }
    title = f"single-row inserts, {options.mode}, synchronous={options.synchronous}"
    report(options, title, [native, alone, replicated, *latencies, catch_up], ratios)


if __name__ == "__main__":
    main()
