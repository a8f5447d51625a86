"""A node's use of a lease, in a process of its own: ``URL KEY HOSTNAME`` name store and node.

It keeps what it saw and holds between operations; a grant's deadline is told in seconds from now.
"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any, TextIO

import trio

from litefs.clock import boottime_ns
from litefs.cluster.lease import Beat, Grant, Lease, LeaseLost, LeaseUnavailable, PrimaryInfo, View
from litefs.types import Position
from tests.support.clients.protocol import serve
from tests.support.leases import open_lease


class Contender:
    """One node that wants the lease."""

    def __init__(self, lease: Lease, hostname: str) -> None:
        self._lease = lease
        self._info = PrimaryInfo(hostname, f"http://{hostname}:20202")
        self._node_id = os.getpid()
        self._view: View | None = None
        self._grant: Grant | None = None

    def _beat(self, term: int, txid: int = 0, released: bool = False) -> Beat:
        positions = {"a.db": Position(txid, txid)} if txid else {}
        return Beat(term, self._node_id, self._info, positions, released=released)

    def _next_term(self) -> int:
        assert self._view is not None
        return self._view.beat.term + 1 if self._view.beat is not None else 1

    def observe(self) -> dict[str, Any]:
        self._view = trio.run(self._lease.observe)
        beat = self._view.beat
        return {
            "version": self._view.version,
            "held": self._view.held,
            "term": beat.term if beat else 0,
            "hostname": beat.primary.hostname if beat else "",
        }

    def acquire(self) -> int | None:
        """The term, or None if another was quicker."""
        assert self._view is not None
        self._grant = trio.run(self._lease.acquire, self._view, self._beat(self._next_term()))
        return self._grant.term if self._grant else None

    def claim(self) -> int | None:
        assert self._view is not None
        self._grant = trio.run(self._lease.claim, self._view, self._beat(self._next_term()))
        return self._grant.term if self._grant else None

    def renew(self, txid: int = 0) -> float:
        """Seconds until the new deadline."""
        assert self._grant is not None
        self._grant = trio.run(self._lease.renew, self._grant, self._beat(self._grant.term, txid))
        return (self._grant.deadline_ns - boottime_ns()) / 1e9

    def release(self) -> None:
        assert self._grant is not None
        trio.run(self._lease.release, self._grant, self._beat(self._grant.term, released=True))

    def cluster_id(self, proposal: str) -> str:
        return trio.run(self._lease.cluster_id, proposal)

    def take_turns(self, seconds: float) -> list[int]:
        """Acquire, renew and release as fast as the store goes. Returns the terms that were won."""
        won = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.observe()["held"] and self.acquire() is not None:
                assert self._grant is not None
                self.renew()
                won.append(self._grant.term)
                self.release()
        return won

    def hold(self, seconds: float, every: float) -> list[float]:
        """Renew ``every`` so many seconds. Returns the deadlines (CLOCK_BOOTTIME, s) up to the loss."""
        assert self._grant is not None
        deadlines = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.renew()
            except LeaseLost:
                break
            except LeaseUnavailable:
                continue  # stopped in the midst of it
            deadlines.append(self._grant.deadline_ns / 1e9)
            time.sleep(every)
        return deadlines

    def take_over(self, seconds: float) -> dict[str, Any] | None:
        """Wait as a candidate does until the beat has stood still, then claim. Returns term and the
        CLOCK_BOOTTIME of the claim in seconds; None if the holder kept alive for ``seconds``, or released."""
        timing = self._lease.timing
        end = time.monotonic() + seconds
        view = trio.run(self._lease.observe)
        since = time.monotonic()
        while time.monotonic() < end and view.held:
            if time.monotonic() - since >= timing.term + timing.margin:
                self._view = view
                claimed_at = boottime_ns()
                term = self.claim()
                if term is not None:
                    return {"term": term, "claimed": claimed_at / 1e9, "had": boottime_ns() / 1e9}
            left = timing.term + timing.margin - (time.monotonic() - since)
            present = trio.run(self._lease.changed, view, max(0.0, left))
            if present.version != view.version:
                since = time.monotonic()
            view = present
        return None

    def campaign(self, record: str) -> None:
        """Be primary whenever possible, for ever. ``record`` gets a line for each grant: term, when it was
        known, when it ends; and before a release: term, and twice the time. CLOCK_BOOTTIME, ns."""
        with open(record, "a", buffering=1) as file:
            while True:
                try:
                    if self._win():
                        self._serve(file)
                except (LeaseLost, LeaseUnavailable):
                    time.sleep(0.05)

    def _win(self) -> bool:
        if self.observe()["held"]:
            return self.take_over(60) is not None
        return self.acquire() is not None

    def _serve(self, file: TextIO) -> None:
        assert self._grant is not None
        for _ in range(random.randrange(12)):
            print(self._grant.term, boottime_ns(), int(self._grant.deadline_ns), file=file)
            time.sleep(random.random() * 2 * self._lease.timing.renew)
            self.renew()
        if random.random() < 0.5:
            now = boottime_ns()
            print(self._grant.term, now, now, file=file)
            self.release()


if __name__ == "__main__":
    url, key, name = sys.argv[1:]
    contender = Contender(open_lease(url, key), name)
    serve({name: getattr(contender, name) for name in dir(contender) if not name.startswith("_")})
