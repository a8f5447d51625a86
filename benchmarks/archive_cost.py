"""Commit latency of a primary with and without an archive in a directory: single-row inserts at a fixed rate.

Nodes are started afresh for each round, in turn, and whoever was first in one is second in the next.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.commit import Place
from benchmarks.common import arguments, awake, cluster, report, workspace
from litefs.bench.settings import Settings


def measure(place: Place, root: Path, settings: Settings, **sections: Any) -> None:
    """A round on a node of its own."""
    root.mkdir()
    with cluster(root, 0, **sections) as (node,):
        place.measure(node.mount, settings)
    shutil.rmtree(root, ignore_errors=True)


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each round (default %(default)s)")
    parser.add_argument(
        "--rate",
        type=float,
        default=1000.0,
        help="commits a second, 0: as many as it takes (default %(default)s)",
    )
    options = parser.parse_args()
    settings = Settings(rate=options.rate, seconds=options.seconds, rounds=1)
    without, archived = Place("without an archive"), Place("with an archive")
    with workspace(options) as root, awake(options):
        for number in range(options.rounds):
            places = [without, archived]
            for place in places if number % 2 == 0 else reversed(places):
                sections: dict[str, Any] = {}
                if place is archived:
                    sections["backup"] = {"type": "file", "path": str(root / f"archive{number}")}
                measure(place, root / f"node{number}{place is archived}", settings, **sections)
    ratios = {}
    for name, pairs in (
        (
            "p50, with / without, median of the rounds",
            zip(archived.p50.values, without.p50.values, strict=True),
        ),
        (
            "p99, with / without, median of the rounds",
            zip(archived.p99.values, without.p99.values, strict=True),
        ),
        ("rate, with / without, median", zip(archived.rate.values, without.rate.values, strict=True)),
    ):
        ratios[name] = statistics.median(one / other for one, other in pairs)
    rate = f"at {options.rate:g} a second" if options.rate else "one after the other"
    series = [one for place in (without, archived) for one in (place.rate, place.p50, place.p99)]
    report(options, f"single-row inserts {rate}, with and without an archive", series, ratios)


if __name__ == "__main__":
    main()
