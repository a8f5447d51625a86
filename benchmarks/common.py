"""What all benchmarks share: CPUs kept awake, steal time, nodes on loopback, clients in other processes.

Waking a halted virtual CPU costs more than a FUSE request, and other tenants steal time. So every benchmark
holds ``/dev/cpu_dma_latency`` (unless ``--default-latency``), records the steal of each round, interleaves
what it compares, and reports medians and ratios within one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from litefs.bench import machine  # noqa: E402
from tests.support.node import Node, wait_present  # noqa: E402
from tests.support.processes import MARKER  # noqa: E402

CLIENT_SECONDS = 120.0
"""Bound of one client run."""


@dataclass(slots=True)
class Series:
    """The rounds of one system: figures, and the steal percentage of each round."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    steal: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--dir", type=Path, help="where to work: decides which disk is measured")
    parser.add_argument("--default-latency", action="store_true", help="let idle CPUs sleep as usual")
    return parser


def awake(options: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Keep idle CPUs from sleeping meanwhile, unless told not to or that cannot be had here."""
    return machine.awake(not options.default_latency and machine.LATENCY_DEVICE.exists())


@contextlib.contextmanager
def workspace(options: argparse.Namespace) -> Iterator[Path]:
    """A directory that is removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="litefs-bench-", dir=options.dir))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def cluster(root: Path, replicas: int, **settings: Any) -> Iterator[list[Node]]:
    """A running primary and its replicas (first the primary); ended and unmounted afterwards. ``settings``
    are sections of the primary's litefs.yml."""
    os.environ.setdefault(MARKER, uuid.uuid4().hex)
    nodes: list[Node] = []
    try:
        nodes.append(Node(root, "primary", **settings))
        nodes[0].start()
        for number in range(replicas):
            nodes.append(Node(root, f"replica{number + 1}", primary=nodes[0]))
            nodes[-1].start()
        yield nodes
    finally:
        for node in reversed(nodes):
            node.discard()


def wait_for(node: Node, name: str) -> None:
    """Until a database is on a node."""
    wait_present(node, name, 60)


@contextlib.contextmanager
def steal_recorded(series: Series) -> Iterator[None]:
    """Append to a series the percentage of CPU time that was stolen meanwhile."""
    before = machine.cpu_times()
    yield
    series.steal.append(machine.stolen(before, machine.cpu_times()))


def client(source: str, *words: object) -> Any:
    """Run Python source in a process of its own and return the JSON that it prints."""
    command = [sys.executable, "-c", source, *map(str, words)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=CLIENT_SECONDS, check=True, cwd=ROOT
    )
    return json.loads(done.stdout)


def percentile(ordered: list[float], share: float) -> float:
    """Nearest-rank percentile of sorted values."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def report(
    options: argparse.Namespace,
    title: str,
    series: Sequence[Series],
    ratios: Mapping[str, float],
    notes: Mapping[str, object] | None = None,
) -> None:
    """Print the result, as a table or as JSON."""
    if options.json:
        document = {
            "benchmark": title,
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "cpus_awake": not options.default_latency,
            "series": {
                one.name: {"unit": one.unit, "median": one.median, "values": one.values, "steal": one.steal}
                for one in series
            },
            "ratios": dict(ratios),
            "notes": dict(notes or {}),
        }
        print(json.dumps(document, indent=2))
        return
    print(f"{title} ({os.cpu_count()} CPUs, {'default' if options.default_latency else 'kept awake'})")
    width = max(len(one.name) for one in series)
    for one in series:
        rounds = " ".join(f"{value:,.4g}" if value < 100 else f"{value:,.0f}" for value in one.values)
        steal = max(one.steal, default=0.0)
        median = f"{one.median:,.4g}" if one.median < 100 else f"{one.median:,.0f}"
        print(f"  {one.name:<{width}}  {median:>10} {one.unit}   rounds: {rounds}   steal ≤ {steal:.1f} %")
    for name, value in ratios.items():
        print(f"  {name}: {value:.3f}")
    for note, content in (notes or {}).items():
        print(f"  {note}: {content}")
