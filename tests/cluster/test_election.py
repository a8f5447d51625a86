"""Elections between processes that are killed and stopped, with a lease in a directory and one in Consul.

The members are small (tests/support/members.py), so that what is measured is the election.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from litefs.clock import boottime_ns
from litefs.cluster.lease import Timing
from tests.support.consul import Consul, running
from tests.support.leases import TIMING
from tests.support.members import TOKEN, Ack, read_acks
from tests.support.processes import end, pause, spawn, wait_until

NAMES = ("a", "b", "c")


class Electors:
    """Three nodes in processes of their own. ``stopped``: those under SIGSTOP."""

    def __init__(self, directory: Path, url: str, timing: Timing) -> None:
        self.directory = directory
        self._url = url
        self._timing = timing
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: set[str] = set()
        for name in NAMES:
            self.start(name)

    def start(self, name: str) -> None:
        timing = map(str, (self._timing.term, self._timing.renew, self._timing.margin))
        arguments = [self._url, self.directory, name, *timing]
        command = [sys.executable, "-m", "tests.support.clients.elector", *arguments]
        with open(self.directory / f"{name}.out", "ab") as log:
            self.processes[name] = spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def send(self, name: str, number: signal.Signals) -> None:
        if number == signal.SIGSTOP:
            pause(self.processes[name].pid)
            self.stopped.add(name)
            return
        self.processes[name].send_signal(number)
        if number == signal.SIGCONT:
            self.stopped.discard(name)

    def kill(self, name: str) -> None:
        end(self.processes[name])
        self.stopped.discard(name)

    def acks(self) -> list[Ack]:
        return read_acks(self.directory)

    def newest(self) -> int:
        """The term of the last acknowledged commit, 0 without one."""
        acks = self.acks()
        return acks[-1].term if acks else 0

    def primary(self) -> str:
        """Who acknowledged last."""
        last = self.acks()[-1]
        for name in NAMES:
            path = self.directory / f"{name}.acks"
            if path.exists() and last.token in path.read_text():
                return name
        raise AssertionError(f"nobody has {last}")

    def await_progress(self, seconds: float, *, beyond: int = 0) -> Ack:
        """The first commit that is acknowledged from now on in a term above ``beyond``."""
        now = boottime_ns()
        found: list[Ack] = []

        def look() -> bool:
            found[:] = [ack for ack in self.acks() if ack.at > now and ack.term > beyond]
            return bool(found)

        wait_until(look, seconds, f"a commit in a term above {beyond}: {self.logs()}")
        return found[0]

    def logs(self) -> str:
        return "\n".join(f"-- {name}\n{(self.directory / f'{name}.out').read_text()}" for name in NAMES)

    def check(self) -> None:
        """No acknowledgement after the first one of a higher term."""
        for before, after in itertools.pairwise(self.acks()):
            assert after.term >= before.term, f"{after} after {before}: {self.logs()}"


@dataclass
class Store:
    """Where the lease is; ``consul`` if it is there."""

    url: str
    consul: Consul | None


@pytest.fixture(params=["directory", "consul"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "directory":
        yield Store(f"file://{tmp_path}/lease", None)
        return
    with running(tmp_path / "consul") as consul:
        yield Store(consul.url, consul)


@contextmanager
def electors(directory: Path, store: Store, timing: Timing = TIMING) -> Iterator[Electors]:
    nodes = Electors(directory, store.url, timing)
    try:
        nodes.await_progress(20)
        yield nodes
    finally:
        for process in nodes.processes.values():
            end(process)


def test_failover_after_kill_9(tmp_path: Path, store: Store) -> None:
    """The default timing: 3 s and a half from the last renewal on, at most."""
    timing = Timing()
    took = []
    with electors(tmp_path, store, timing) as nodes:
        for _ in range(int(os.environ.get("LITEFS_FAILOVERS", "3"))):
            primary, term = nodes.primary(), nodes.newest()
            time.sleep(random.random())
            killed = boottime_ns()
            nodes.kill(primary)
            first = nodes.await_progress(15, beyond=term)
            took.append((first.at - killed) / 1e9)
            nodes.start(primary)
            time.sleep(1.5)
        nodes.check()
    print(
        "seconds from kill -9 to the next acknowledged commit:", ", ".join(f"{value:.2f}" for value in took)
    )
    assert max(took) < 8


def test_planned_changes_are_quick(tmp_path: Path, store: Store) -> None:
    """A handoff and a SIGTERM: the time without an acknowledged commit."""
    gaps = {}
    with electors(tmp_path, store) as nodes:
        time.sleep(1.5)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            primary, term = nodes.primary(), nodes.newest()
            nodes.send(primary, number)
            first = nodes.await_progress(10, beyond=term)
            last = [ack for ack in nodes.acks() if ack.term == term][-1]
            gaps[number.name] = (first.at - last.at) / 1e9
            acknowledged = {ack.token for ack in nodes.acks()}
            log = (tmp_path / f"{nodes.primary()}.log").read_bytes()
            held = {log[at : at + TOKEN].hex() for at in range(0, len(log), TOKEN)}
            assert held >= acknowledged, "an acknowledged commit was lost"
            if number == signal.SIGTERM:
                nodes.processes[primary].wait(10)
            time.sleep(1.5)
        nodes.check()
    print("seconds without a commit:", {name: round(gap, 3) for name, gap in gaps.items()})
    assert max(gaps.values()) < TIMING.term, "it waited until the lease ended"


@pytest.mark.timeout(600)
def test_a_schedule_of_faults(tmp_path: Path, store: Store) -> None:
    """kill -9, SIGSTOP for up to three terms, handoffs and restarts at random; Consul is stopped too."""
    seed = int(os.environ.get("LITEFS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print(f"LITEFS_SEED={seed}")
    rng = random.Random(seed)
    faults: list[str] = []
    with electors(tmp_path, store) as nodes:
        for _ in range(int(os.environ.get("LITEFS_FAULTS", "8"))):
            name = nodes.primary() if rng.random() < 0.6 else rng.choice(NAMES)
            fault = rng.choice(["kill", "stop", "stop", "handoff", "term"] + ["store"] * bool(store.consul))
            faults.append(f"{fault} {name}")
            if fault == "store" and store.consul is not None:
                store.consul.pause()
                time.sleep(rng.uniform(0, 3 * TIMING.term))
                store.consul.signal(signal.SIGCONT)
            _strike(nodes, name, fault, rng)
        for name in list(nodes.stopped):
            nodes.send(name, signal.SIGCONT)
        nodes.await_progress(20)
        nodes.check()
        acks = nodes.acks()
    print(f"{len(acks)} commits in {len({ack.term for ack in acks})} terms; {', '.join(faults)}")


def _strike(nodes: Electors, name: str, fault: str, rng: random.Random) -> None:
    if fault == "kill":
        nodes.kill(name)
        time.sleep(rng.uniform(0, 2))
        nodes.start(name)
    elif fault == "stop":
        nodes.send(name, signal.SIGSTOP)
        time.sleep(rng.uniform(0, 3 * TIMING.term))
        nodes.send(name, signal.SIGCONT)
    elif fault == "handoff":
        nodes.send(name, signal.SIGUSR1)
    elif fault == "term":
        nodes.send(name, signal.SIGTERM)
        nodes.processes[name].wait(20)
        nodes.start(name)
    time.sleep(rng.uniform(0, TIMING.term))
