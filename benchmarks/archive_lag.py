"""Milliseconds from a commit until it is in the archive, at a fixed rate of single-row inserts.

A transaction is archived when its bundle can be read: somebody who asks for the next bundle all the time
notes when it comes, and compares that with the times of commit that the node recorded, by the same clock. How
long it takes to look counts as lag.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Series, arguments, awake, cluster, percentile, report, workspace
from litefs import client
from litefs.backup.archive import Archive, timelines
from litefs.backup.target import Target
from litefs.backup.targets import open_target
from litefs.bench.session import NAME, Session
from litefs.bench.settings import Settings
from tests.archive.stores import KINDS, store
from tests.support.processes import MARKER

END_SECONDS = 60.0
"""Bound of the wait for the last transaction."""


class Watch(threading.Thread):
    """Looks for bundles of one database, every ``pause`` seconds."""

    def __init__(self, target: Target, pause: float) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._pause = pause
        self.lags: list[float] = []
        """ms, of each transaction."""
        self.bundles = 0
        self.txid = 0
        self.wanted = True

    def run(self) -> None:
        archive: Archive | None = None
        while self.wanted:
            if archive is None:
                found = [one for one in timelines(self._target, NAME) if one.start() is not None]
                archive = found[-1] if found else None
            elif (bundle := archive.bundle(self.txid + 1)) is not None:
                now = time.time() * 1000
                self.lags += (now - entry.time for entry in bundle.entries)
                self.bundles += 1
                self.txid = bundle.last.txid
                continue
            time.sleep(self._pause)

    def until(self, txid: int) -> None:
        """Wait for a transaction. Raises TimeoutError."""
        deadline = time.monotonic() + END_SECONDS
        while self.txid < txid:
            if not self.is_alive() or time.monotonic() > deadline:
                raise TimeoutError(f"the archive holds TXID {self.txid}, not {txid}")
            time.sleep(0.05)


def measure(root: Path, kind: str, settings: Settings, found: dict[str, Series]) -> int:
    """A round on a node of its own; how many bundles there were."""
    with ExitStack() as stack:
        place = stack.enter_context(store(kind, root))
        os.environ.update(place.environment)
        target = open_target(place.url)
        (node,) = stack.enter_context(cluster(root, 0, backup=place.backup))
        watch = Watch(target, 0.01 if kind == "directory" else 0.05)
        stack.callback(setattr, watch, "wanted", False)
        watch.start()
        with Session(node.mount, settings) as session:
            session.round()
            (done,) = session.target.rounds
            watch.until(client.position(node.path(NAME)).txid)
            session.check()
        lags = sorted(watch.lags)
        for name, value in (
            ("commits/s", done.rate),
            ("p50", percentile(lags, 0.50)),
            ("p99", percentile(lags, 0.99)),
            ("max", lags[-1]),
        ):
            found[f"{kind}, {name}"].values.append(value)
        found[f"{kind}, p99"].steal.append(done.steal)
        return watch.bundles


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round (default %(default)s)")
    parser.add_argument("--rate", type=float, default=1000.0, help="commits a second (default %(default)s)")
    parser.add_argument("--store", choices=KINDS, help="only this one")
    options = parser.parse_args()
    os.environ.setdefault(MARKER, uuid.uuid4().hex)
    settings = Settings(rate=options.rate, seconds=options.seconds, rounds=1)
    kinds = [options.store] if options.store else list(KINDS)
    series = {
        f"{kind}, {name}": Series(f"{kind}, {name}", "commits/s" if name == "commits/s" else "ms")
        for kind in kinds
        for name in ("commits/s", "p50", "p99", "max")
    }
    bundles = dict.fromkeys(kinds, 0)
    with workspace(options) as root, awake(options):
        for number in range(options.rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                directory = root / f"{kind}{number}"
                directory.mkdir()
                bundles[kind] += measure(directory, kind, settings, series)
    notes = {f"{kind}, bundles": count for kind, count in bundles.items()}
    title = f"archive lag at {options.rate:g} commits/s, sync-interval 1s"
    report(options, title, list(series.values()), {}, notes)


if __name__ == "__main__":
    main()
