"""Warm point reads per second: native, on the primary's mount and on the replica's."""

from __future__ import annotations

import sys
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

FILL = """
import apsw, json, sys
connection = apsw.Connection(sys.argv[1])
connection.execute("PRAGMA journal_mode=WAL")
with connection:
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, data TEXT)")
    connection.executemany("INSERT INTO t VALUES(?,?)", ((i, "x" * 100) for i in range(int(sys.argv[2]))))
connection.close()
print(json.dumps(True))
"""

READ = """
import apsw, json, random, sys, time
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY)
count, seconds = int(sys.argv[2]), float(sys.argv[3])
cursor = connection.cursor()
query = "SELECT data FROM t WHERE id=?"
numbers = [(random.randrange(count),) for _ in range(10000)]
for number in numbers:
    cursor.execute(query, number).fetchone()
done = 0
start = time.perf_counter()
while time.perf_counter() - start < seconds:
    for number in numbers[:1000]:
        cursor.execute(query, number).fetchone()
    done += 1000
rate = done / (time.perf_counter() - start)
connection.close()
print(json.dumps(rate))
"""


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=100_000, help="in the table (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round (default %(default)s)")
    options = parser.parse_args()
    series = [Series(name, "reads/s") for name in ("native", "primary's mount", "replica's mount")]
    with workspace(options) as root, awake(options), cluster(root, 1) as (primary, replica):
        paths = [root / "native.db", primary.mount / "app.db", replica.mount / "app.db"]
        client(FILL, paths[0], options.rows)
        client(FILL, paths[1], options.rows)
        wait_for(replica, "app.db")
        for _ in range(options.rounds):
            for one, path in zip(series, paths, strict=True):
                with steal_recorded(one):
                    one.values.append(client(READ, path, options.rows, options.seconds))
    ratios = {f"{one.name} / native": one.median / series[0].median for one in series[1:]}
    report(options, "warm point reads, each a transaction", series, ratios)


if __name__ == "__main__":
    main()
