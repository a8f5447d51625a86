"""Nodes that are killed and stopped at random: never may two of them believe to be primary at a time.

``LITEFS_SOAK`` sets how often (4 by default), ``LITEFS_SEED`` repeats the faults of that seed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from tests.support.leases import TIMING
from tests.support.processes import Client, pause

NODES = 3
FAULTS = int(os.environ.get("LITEFS_SOAK", "4"))
START_SECONDS = 20.0


class Contenders:
    """Nodes that campaign, each with a record of its grants (tests/support/clients/lease.py)."""

    def __init__(self, stack: ExitStack, store: str, root: Path) -> None:
        self._stack = stack
        self._store = store
        self._root = root
        self._nodes = [self._start(number) for number in range(NODES)]

    def _start(self, number: int) -> Client:
        log = self._root / f"node{number}.log"
        node = self._stack.enter_context(Client("lease", self._store, "key", f"node{number}", log=log))
        node.send("campaign", record=str(self._root / f"node{number}.grants"))
        return node

    def stop(self, number: int, seconds: float) -> None:
        """SIGSTOP, SIGCONT."""
        pause(self._nodes[number].process.pid)
        time.sleep(seconds)
        os.kill(self._nodes[number].process.pid, signal.SIGCONT)

    def kill(self, number: int) -> None:
        """kill -9, and a new process in its place."""
        self._nodes[number].close()
        self._nodes[number] = self._start(number)

    def grants(self) -> list[tuple[int, int, int, int]]:
        """(term, known at, ends at, node) of all whole lines so far; of a release both times are the same."""
        found = []
        for number in range(NODES):
            path = self._root / f"node{number}.grants"
            for line in path.read_text().splitlines(True) if path.exists() else []:
                if line.endswith("\n"):
                    term, known, ends = map(int, line.split())
                    found.append((term, known, ends, number))
        return sorted(found)


def last_holder(contenders: Contenders) -> int | None:
    grants = contenders.grants()
    return grants[-1][3] if grants else None


def test_never_two_primaries(store: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"LITEFS_SEED={seed}")
    rng = random.Random(seed)
    with ExitStack() as stack:
        contenders = Contenders(stack, store, tmp_path)
        deadline = time.monotonic() + START_SECONDS
        while last_holder(contenders) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(FAULTS):
            time.sleep(rng.random() * TIMING.term)
            holder = last_holder(contenders)
            assert holder is not None
            victim = holder if rng.random() < 0.7 else rng.randrange(NODES)
            if rng.random() < 0.5:
                contenders.kill(victim)
            else:
                contenders.stop(victim, rng.random() * 2 * TIMING.term)
        # The time in which another one takes over, whatever happened last.
        time.sleep(2 * (TIMING.term + TIMING.margin) + 2)
        grants = contenders.grants()
    check(grants)
    assert len({term for term, *_ in grants}) > FAULTS / 3, f"seed {seed}: too few terms: {grants}"


def check(grants: list[tuple[int, int, int, int]]) -> None:
    """Of two terms the later one was known only after the earlier one had ended: by its last deadline, or by
    the release that came after it."""
    ends: dict[int, int] = {}
    starts: dict[int, int] = {}
    holders: dict[int, set[int]] = {}
    for term, known, end, node in grants:
        ends[term] = end if known == end else max(ends.get(term, 0), end)
        starts.setdefault(term, known)
        holders.setdefault(term, set()).add(node)
    assert all(len(nodes) == 1 for nodes in holders.values()), f"a term of two nodes: {grants}"
    for earlier, later in pairwise(sorted(starts)):
        assert ends[earlier] <= starts[later], f"terms {earlier} and {later} overlap: {grants}"
