"""Memory of an idle node's processes together: PSS (shared pages divided by their users) and RSS, in MB."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Series, arguments, awake, cluster, report, wait_for, workspace
from tests.support.node import Node
from tests.support.processes import Client, children

MEGABYTE = 1e6


def memory(pid: int) -> tuple[float, float]:
    """PSS and RSS of a process in MB (proc(5), smaps_rollup)."""
    found = {"Pss:": 0.0, "Rss:": 0.0}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if words[0] in found:
                found[words[0]] = int(words[1]) * 1024 / MEGABYTE
    return found["Pss:"], found["Rss:"]


def node_memory(node: Node) -> tuple[float, float]:
    """The same for a node's processes in sum."""
    assert node.process is not None
    parts = [memory(pid) for pid in (node.process.pid, *children(node.process.pid))]
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument(
        "--idle", type=float, default=3.0, help="seconds of rest before (default %(default)s)"
    )
    options = parser.parse_args()
    series = {
        (role, kind): Series(f"{role}, {kind}", "MB")
        for role in ("primary", "replica")
        for kind in ("PSS", "RSS")
    }
    with workspace(options) as root, awake(options):
        for number in range(options.rounds):
            with cluster(root / str(number), 1) as (primary, replica):
                with Client("sql", "sqlite3") as sql:
                    sql.call("open", path=primary.path("app.db"))
                    sql.call("execute", statement="PRAGMA journal_mode=WAL")
                    sql.call("execute", statement="CREATE TABLE t(id INTEGER PRIMARY KEY)")
                wait_for(replica, "app.db")
                time.sleep(options.idle)
                for role, node in (("primary", primary), ("replica", replica)):
                    pss, rss = node_memory(node)
                    series[role, "PSS"].values.append(pss)
                    series[role, "RSS"].values.append(rss)
    report(options, "memory of an idle node, both processes", list(series.values()), {})


if __name__ == "__main__":
    main()
