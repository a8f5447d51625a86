"""The lease as one object that only conditional writes change: in an object store, or in a directory.

There are no sessions: whoever wrote the object last without ``released`` holds the lease, until its record
has stood still for so long that somebody else overwrites it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import NamedTuple, Protocol

import trio

from litefs.clock import boottime_ns
from litefs.cluster.beats import Record, decode, encode, new_token
from litefs.cluster.calls import Calls
from litefs.cluster.lease import Beat, Grant, LeaseLost, LeaseUnavailable, Timing, View

MAX_TRIES = 3
"""Writes of one renewal: each may find that an earlier one, whose answer was lost, had come through."""


class Stored(NamedTuple):
    """The object's bytes and their version, which every write changes."""

    version: str
    data: bytes


class ObjectStore(Protocol):
    """An object that is replaced by compare-and-set. Calls block; they run in threads, and raise OSError or
    one of ``errors`` if the store fails."""

    name: str
    """For messages."""
    poll: float
    """Seconds between two looks for a change."""
    errors: tuple[type[Exception], ...]

    def read(self) -> Stored | None:
        """The newest version; None if there is none yet."""

    def swap(self, version: str, term: int, data: bytes) -> str | None:
        """Replace ``version`` ("": nothing is there yet) by ``data``, of ``term``, durably. The new version,
        or None if another writer was quicker."""

    def create(self, name: str, data: bytes) -> bytes:
        """Store a second object unless there is one of that name; what is there then."""


class ObjectLease:
    """A lease in an object store (the protocol :class:`litefs.cluster.lease.Lease`)."""

    def __init__(self, store: ObjectStore, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self._store = store
        # Half a term, so that a renewal whose answer is lost is followed by another one in time.
        self._calls = Calls(store.name, self.timing.term / 2, store.errors)

    async def observe(self) -> View:
        """See the protocol."""
        with self._calls.bounded():
            return self._view(await self._calls.run(self._store.read))

    async def changed(self, view: View, seconds: float) -> View:
        """See the protocol; looks every ``poll`` seconds."""
        end = trio.current_time() + seconds
        while True:
            await trio.sleep(max(0.0, min(self._store.poll, end - trio.current_time())))
            present = await self.observe()
            if present.version != view.version or trio.current_time() >= end:
                return present

    async def acquire(self, view: View, beat: Beat) -> Grant | None:
        """See the protocol."""
        if view.beat is not None and beat.term <= view.beat.term:
            raise ValueError(f"term {beat.term} does not follow term {view.beat.term}")
        with self._calls.bounded():
            return await self._write(view.version, beat, new_token())

    async def claim(self, view: View, beat: Beat) -> Grant | None:
        """See the protocol: without sessions no different from ``acquire``."""
        return await self.acquire(view, beat)

    async def renew(self, grant: Grant, beat: Beat) -> Grant:
        """See the protocol."""
        if beat.term != grant.term:
            raise ValueError(f"beat of term {beat.term} under a grant of term {grant.term}")
        with self._calls.bounded():
            version = grant.version
            for _ in range(MAX_TRIES):
                renewed = await self._write(version, beat, grant.token)
                if renewed is not None:
                    return renewed
                version = await self._own_version(grant)
        raise LeaseUnavailable(f"{self._store.name}: {MAX_TRIES} writes failed against our own")

    async def release(self, grant: Grant, beat: Beat) -> None:
        """See the protocol."""
        with contextlib.suppress(LeaseLost):
            await self.renew(grant, replace(beat, released=True))

    async def cluster_id(self, proposal: str) -> str:
        """See the protocol."""
        with self._calls.bounded():
            data = await self._calls.run(self._store.create, "clusterid", proposal.encode())
        return data.decode("ascii", "replace").strip()

    async def aclose(self) -> None:
        """See the protocol: threads that still wait for an answer end by themselves."""

    async def _write(self, version: str, beat: Beat, token: str) -> Grant | None:
        data = encode(Record(beat, token))
        sent = boottime_ns()
        written = await self._calls.run(self._store.swap, version, beat.term, data)
        if written is None:
            return None
        return Grant(beat.term, sent + round(self.timing.term * 1e9), written, token)

    async def _own_version(self, grant: Grant) -> str:
        """The object's version if it is what this holder wrote. Raises LeaseLost."""
        stored = await self._calls.run(self._store.read)
        if stored is None:
            raise LeaseLost(f"{self._store.name}: the lease was removed")
        record = decode(stored.data, self._store.name)
        if record.holder != grant.token or record.beat.released:
            raise LeaseLost(
                f"{self._store.name}: {record.beat.primary.hostname} took the lease, term {record.beat.term}"
            )
        return stored.version

    def _view(self, stored: Stored | None) -> View:
        if stored is None:
            return View("", None, False)
        beat = decode(stored.data, self._store.name).beat
        return View(stored.version, beat, not beat.released)
