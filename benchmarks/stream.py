"""Throughput of the replication stream on loopback: real Hypercorn, real httpx, memory at both ends.

Two processes, as two nodes are. Rows: one big snapshot (MB/s of page images, incompressible), a catch-up of
small records (records/s), and live single commits (notify to sink, latency in ms, one commit every 10 ms).
With --tls both nodes show certificates.

    python benchmarks/stream.py [--tls] [--json] [--megabytes 256] [--records 100000]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, cast

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from litefs.cluster.follow import Callbacks, follow
from litefs.cluster.peer import PeerSettings
from litefs.cluster.replicas import Replicas
from litefs.config_http import TLSConfig
from litefs.link.rules import SyncRules
from litefs.stream.memory import MemoryCatalog, MemorySource
from litefs.stream.protocols import Buffer, Identity
from litefs.tls import ClientTLS, ServerTLS
from litefs.types import Point, Position
from tests.support.certificates import Authority, settings

if TYPE_CHECKING:
    from litefs.server.view import NodeView

CLUSTER = "LFSC0123456789ABCDEF"
PAGE = 4096


class BenchNode:
    """The least of a NodeView that /stream needs."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self.identity = Identity(1, CLUSTER, 1, "bench")
        self.is_primary = True
        self.candidate = True
        self.mountpoint = ""
        self.primary_hostname = None
        self.held_up: list[str] = []
        self.catalog = catalog
        self.snapshot_seconds = math.inf
        self.replicas = Replicas(catalog, SyncRules(), lambda: self.identity, lambda message: None)

    async def before_stream(self) -> None:
        pass


def primary(pipe: Connection, megabytes: int, records: int, tls: TLSConfig | None) -> None:
    """The serving process: builds its databases, then commits when told."""
    from litefs.server.app import create_app
    from litefs.server.serve import bind, serve

    rng = random.Random(1)
    block = rng.randbytes(PAGE * 256)
    big = MemorySource("big", PAGE)
    big.commit({n: block[n % 256 * PAGE :][:PAGE] for n in range(1, megabytes * 256 + 1)})
    small = MemorySource("small", PAGE)
    base = small.commit({1: block[:PAGE]})
    for n in range(records):
        small.commit({1: (b"%08d" % n).ljust(200, b"x").ljust(PAGE, b"\0")[:PAGE]})
    live = MemorySource("live", PAGE)
    start = live.commit({1: block[:PAGE]})
    catalog = MemoryCatalog(big, small, live)

    async def main() -> None:
        sockets = bind("127.0.0.1:0")
        async with trio.open_nursery() as nursery:
            secure = ServerTLS(tls) if tls is not None else None
            await nursery.start(
                serve, create_app(cast("NodeView", BenchNode(catalog))), sockets, trio.Event(), secure
            )
            pipe.send((sockets[0].getsockname()[1], base, start, small.position(), big.position()))
            await trio.to_thread.run_sync(pipe.recv)
            for _ in range(300):
                await trio.sleep(0.01)
                live.commit({1: time.time_ns().to_bytes(8, "big").ljust(PAGE, b"\0")})
                catalog.notify()
            await trio.to_thread.run_sync(pipe.recv)
            nursery.cancel_scope.cancel()

    trio.run(main)


class CountingSink:
    """Counts and throws away."""

    def __init__(self, at: Mapping[str, Point], targets: Mapping[str, Position]) -> None:
        self.at = dict(at)
        self.targets = targets
        self.finished: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.batches = 0
        self.records_seen = 0
        self.lags: list[float] = []
        self.changed = trio.Event()

    def positions(self) -> Mapping[str, Point]:
        return self.at

    async def records(self, name: str, bodies: Sequence[Buffer]) -> Position:
        self.first.setdefault(name, time.perf_counter())
        if name == "live":
            now = time.time_ns()
            self.lags += [(now - int.from_bytes(bytes(body[28:36]), "big")) / 1e6 for body in bodies]
        else:
            self.batches += 1
            self.records_seen += len(bodies)
        last = int.from_bytes(bytes(bodies[-1][:8]), "little")
        if name == "small" and last == self.targets[name].txid:
            self._finish(name)
        return Position(last)

    def _finish(self, name: str) -> None:
        self.finished[name] = time.perf_counter()
        self.changed.set()

    async def snapshot_begin(self, name: str, *args: object) -> None:
        self.first[name] = time.perf_counter()

    async def snapshot_pages(self, name: str, pgnos: bytes, images: bytes) -> None:
        pass

    async def snapshot_end(self, name: str, point: Point) -> None:
        self._finish(name)

    async def snapshot_abort(self, name: str) -> None:
        pass

    async def drop(self, name: str, *, deliberate: bool = False) -> None:
        pass

    def primary_time(self, timestamp_ms: int) -> None:
        pass

    def ready(self) -> None:
        pass


async def measure(pipe: Connection, megabytes: int, records: int, tls: TLSConfig | None) -> dict[str, float]:
    """Three streams, one after the other; returns the figures."""
    port, base, start, small, big = pipe.recv()
    url, identity = f"http{'s' if tls else ''}://127.0.0.1:{port}", Identity(2, CLUSTER, 1)
    peer = PeerSettings(tls=ClientTLS(tls or TLSConfig()))

    async def adopt(cluster_id: str) -> None:
        raise AssertionError(cluster_id)

    async def run(at: dict[str, Point], wait_for: str) -> CountingSink:
        sink = CountingSink(at, {"small": small, "big": big})
        async with trio.open_nursery() as nursery:
            callbacks = Callbacks(adopt)
            nursery.start_soon(partial(follow, url, sink, lambda: identity, callbacks, settings=peer))
            with trio.fail_after(120):
                if wait_for:
                    while wait_for not in sink.finished:
                        sink.changed = trio.Event()
                        await sink.changed.wait()
                else:
                    await trio.sleep(0.3)
                    pipe.send("go")
                    await trio.sleep(3.8)
            nursery.cancel_scope.cancel()
        return sink

    snapshot = await run({"live": start, "small": small}, "big")
    catchup = await run({"live": start, "small": base, "big": big}, "small")
    live = await run({"live": start, "small": small, "big": big}, "")
    pipe.send("stop")
    lags = sorted(live.lags)
    return {
        "snapshot_mb_per_s": megabytes * 1.048576 / (snapshot.finished["big"] - snapshot.first["big"]),
        "catchup_records_per_s": records / (catchup.finished["small"] - catchup.first["small"]),
        "catchup_records_per_batch": catchup.records_seen / max(1, catchup.batches),
        "live_commits": len(lags),
        "live_p50_ms": statistics.median(lags),
        "live_p99_ms": lags[int(len(lags) * 0.99)],
    }


def run(arguments: argparse.Namespace, directory: Path) -> dict[str, float]:
    """The figures; certificates go into ``directory``."""
    ours = theirs = None
    if arguments.tls:
        authority = Authority(directory)
        ours, theirs = (settings(authority.issue(name), authority.ca) for name in ("replica", "primary"))
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    size = arguments.megabytes, arguments.records
    process = context.Process(target=primary, args=(there, *size, theirs), daemon=True)
    process.start()
    figures = trio.run(measure, here, *size, ours)
    process.join(10)
    return figures


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--tls", action="store_true", help="mutual TLS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = run(arguments, Path(directory))
    steal = Path("/proc/stat").read_text().split()[8]
    if arguments.json:
        print(json.dumps(figures | {"steal_ticks": int(steal)}))
        return
    for name, value in figures.items():
        print(f"{name:28}{value:12.1f}")


if __name__ == "__main__":
    main()
