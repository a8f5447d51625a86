"""Seconds from the cause of a change of primary to a client's next acknowledged write, on three nodes.

Killed: both processes of the primary, kill -9, from before the kill. Handed off: ``POST /handoff``, with the
client writing all the time; the longest write is tried again wherever it was refused.
"""

from __future__ import annotations

import os
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Series, arguments, percentile, report, steal_recorded, workspace
from tests.support.elected import LEASES, Elected, lease_settings
from tests.support.node import Node
from tests.support.processes import MARKER


def main() -> None:
    parser = arguments(__doc__, rounds=20)
    parser.add_argument("--lease", choices=LEASES, default="consul", help="(default %(default)s)")
    options = parser.parse_args()
    options.default_latency = True  # nothing here is short enough to be measured with CPUs kept awake
    os.environ.setdefault(MARKER, uuid.uuid4().hex)
    killed, handed, longest = (Series(name, "s") for name in ("kill -9", "handoff", "longest write in it"))
    with ExitStack() as stack:
        root = stack.enter_context(workspace(options))
        lease = stack.enter_context(lease_settings(options.lease, root))

        def make_node(name: str, **sections: Any) -> Node:
            node = Node(root, name, **sections)
            stack.callback(node.discard)
            return node

        elected = Elected(make_node, lease)
        stack.callback(elected.close)
        elected.write()
        elected.await_rows()
        for _ in range(options.rounds):
            with steal_recorded(killed):
                killed.values.append(elected.kill().seconds)
            with steal_recorded(handed):
                change = elected.hand_off()
            handed.values.append(change.seconds)
            longest.values.append(change.longest_row)
        elected.check()
        rows = len(elected.rows())
    notes: dict[str, object] = {"rows acknowledged, all of them there": rows}
    for one in (killed, handed, longest):
        ordered = sorted(one.values)
        p50, p99 = percentile(ordered, 0.5), percentile(ordered, 0.99)
        notes[one.name] = f"p50 {p50:.2f} s, p99 {p99:.2f} s, max {ordered[-1]:.2f} s of {len(ordered)}"
    notes["load at the end"] = f"{os.getloadavg()[0]:.1f}"
    report(options, f"change of primary, lease in {options.lease}", [killed, handed, longest], {}, notes)


if __name__ == "__main__":
    main()
