"""The lease in Consul: a key that a session locks, as in Go LiteFS, and beside it the beat.

::

    [PREFIX/]KEY             {"hostname": TEXT, "advertise-url": TEXT}, locked by the primary's session; empty
                             and unlocked after a release
    [PREFIX/]KEY/beat        the beat (cluster/beats.py); its holder is that session
    [PREFIX/]KEY/clusterid   the cluster's id, plain text

A session lives for 10 s at least, up to twice that if its node died, so what a node may do hangs on the beat:
a renewal is one transaction that fails if the session has lost the lock or the beat has moved. A claim moves
the beat first; from then on no renewal of the old holder succeeds. Then it destroys the old session, waits
until Consul lets the key be locked again, and locks it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import trio

from litefs.clock import boottime_ns
from litefs.cluster.beats import Record, decode, encode
from litefs.cluster.calls import Calls
from litefs.cluster.consul_client import (
    ERRORS,
    Client,
    Entry,
    check_session,
    compare_and_set,
    lock,
    parse_url,
    unlock,
)
from litefs.cluster.lease import Beat, Grant, LeaseLost, LeaseUnavailable, PrimaryInfo, Timing, View
from litefs.config_lease import ConsulConfig

MAX_TRIES = 3
"""Writes of one renewal: each may find that an earlier one, whose answer was lost, had come through."""
WATCH_SECONDS = 2.0
"""Longest single wait for a change; a thread whose waiter was cancelled ends after it."""
FIRST_POLL_SECONDS = 0.5
"""Between looks for the first beat: there is no index yet to wait on."""
LOCK_POLL_SECONDS = 0.1
"""Between tries to lock the key during the lock delay."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Both keys; the beat was read first."""

    beat: Entry
    record: Record | None
    lock: Entry


class ConsulLease:
    """A lease in Consul (the protocol :class:`litefs.cluster.lease.Lease`)."""

    def __init__(self, config: ConsulConfig, timing: Timing | None = None) -> None:
        """Raises ConfigError."""
        self.timing = timing or Timing()
        address = parse_url(config.url, os.environ)
        self._key = f"{address.prefix}/{config.key}" if address.prefix else config.key
        self._beat_key = f"{self._key}/beat"
        # A prefix is what a token of a shared Consul may use; sessions too then need a node below it.
        self._node = f"{address.prefix}/litefs" if address.prefix else ""
        self._ttl = float(config.ttl)
        self._lock_delay = float(config.lock_delay)
        # Half a term, so that a renewal whose answer is lost is followed by another one in time.
        self._seconds = self.timing.term / 2
        self._name = f"consul {address.host}:{address.port} {self._key}"
        self._client = Client(address, self._seconds)
        self._calls = Calls(self._name, self._seconds, ERRORS)
        self._session_renewed = 0.0

    async def observe(self) -> View:
        """See the protocol. The lease counts as held also while only the beat says so: its holder, whose
        session somebody ended, may commit until its deadline."""
        with self._calls.bounded():
            return _view(await self._look())

    async def changed(self, view: View, seconds: float) -> View:
        """See the protocol; a blocking query."""
        end = trio.current_time() + seconds
        index = int(view.version)
        while (left := end - trio.current_time()) > 0:
            wait = min(left, WATCH_SECONDS)
            if index == 0:
                await trio.sleep(min(left, FIRST_POLL_SECONDS))
                present = (await self.observe()).version
            else:
                with self._calls.bounded(wait * 17 / 16 + self._seconds):
                    entry = await self._calls.run(self._client.watch, self._beat_key, index, wait)
                present = str(entry.index)
            if present != view.version:
                break
        return await self.observe()

    async def acquire(self, view: View, beat: Beat) -> Grant | None:
        """See the protocol."""
        _check_term(view, beat)
        with self._calls.bounded():
            session = await self._new_session()
            grant = await self._take(session, int(view.version), beat)
            if grant is None:
                await self._end_session(session)
        return grant

    async def claim(self, view: View, beat: Beat) -> Grant | None:
        """See the protocol. Never from a holder that the beat does not name: a node of another kind, which
        keeps no beat, has the lock then."""
        _check_term(view, beat)
        with self._calls.bounded():
            seen = await self._look()
            if str(seen.beat.index) != view.version or not _is_claimable(seen):
                return None
            session = await self._new_session()
            index = await self._publish(seen.beat.index, Record(beat, session, seen.lock.session))
            if index is not None and seen.lock.session:
                await self._calls.run(self._client.destroy_session, seen.lock.session)
        grant = None
        if index is not None:
            with self._calls.bounded(self._lock_delay + 2 * self._seconds):
                grant = await self._take_when_free(session, index, beat, seen.lock.session)
        if grant is None:
            with contextlib.suppress(LeaseUnavailable), self._calls.bounded():
                await self._end_session(session)
        return grant

    async def renew(self, grant: Grant, beat: Beat) -> Grant:
        """See the protocol."""
        try:
            with self._calls.bounded():
                renewed = await self._write(grant, beat, check_session(self._key, grant.token))
        except LeaseLost:
            # Nobody may displace a session that no beat names, as when the beat was deleted.
            with contextlib.suppress(LeaseUnavailable), self._calls.bounded():
                await self._end_session(grant.token)
            raise
        if trio.current_time() - self._session_renewed >= self._ttl / 2:
            # Best effort: the next transaction tells whether it still holds the lock.
            with contextlib.suppress(LeaseUnavailable), self._calls.bounded():
                if await self._calls.run(self._client.renew_session, grant.token):
                    self._session_renewed = trio.current_time()
        return renewed

    async def release(self, grant: Grant, beat: Beat) -> None:
        """See the protocol."""
        with contextlib.suppress(LeaseLost), self._calls.bounded():
            await self._write(grant, replace(beat, released=True), unlock(self._key, grant.token))
        with self._calls.bounded():
            await self._end_session(grant.token)

    async def cluster_id(self, proposal: str) -> str:
        """See the protocol."""
        key = f"{self._key}/clusterid"
        with self._calls.bounded():
            entry = await self._calls.run(self._client.read, key)
            if not entry.value:
                await self._calls.run(self._client.put_new, key, proposal)
                entry = await self._calls.run(self._client.read, key)
        if not entry.value:
            raise LeaseUnavailable(f"{self._name}: the key {key} is empty; delete it, or put the id there")
        return entry.value.decode("ascii", "replace").strip()

    async def aclose(self) -> None:
        """See the protocol: threads that still wait for an answer end by themselves."""
        self._client.close()

    async def _look(self) -> _Seen:
        beat = await self._calls.run(self._client.read, self._beat_key)
        held = await self._calls.run(self._client.read, self._key)
        return _Seen(beat, decode(beat.value, self._name) if beat.index else None, held)

    async def _new_session(self) -> str:
        session = await self._calls.run(self._client.create_session, self._node, self._ttl, self._lock_delay)
        self._session_renewed = trio.current_time()
        return session

    async def _end_session(self, session: str) -> None:
        await self._calls.run(self._client.destroy_session, session)

    async def _publish(self, index: int, record: Record) -> int | None:
        return await self._calls.run(
            self._client.transact, compare_and_set(self._beat_key, index, encode(record))
        )

    async def _take(self, session: str, index: int, beat: Beat) -> Grant | None:
        """Lock the key and publish the beat over the one at ``index``, or neither."""
        return await self._transact(session, index, beat, lock(self._key, session, _describe(beat.primary)))

    async def _take_when_free(self, session: str, index: int, beat: Beat, displaced: str) -> Grant | None:
        """The same after the lock delay, with a beat that moves meanwhile; None if it was claimed in turn."""
        published = trio.current_time()
        while True:
            grant = await self._take(session, index, beat)
            if grant is not None:
                return grant
            if trio.current_time() - published >= self.timing.renew:
                await self._calls.run(self._client.renew_session, session)
                renewed = await self._publish(index, Record(beat, session, displaced))
                if renewed is not None:
                    index, published = renewed, trio.current_time()
            seen = await self._look()
            if seen.record is None or seen.record.holder != session or seen.lock.session:
                return None
            index = seen.beat.index
            await trio.sleep(LOCK_POLL_SECONDS)

    async def _write(self, grant: Grant, beat: Beat, operation: dict[str, Any]) -> Grant:
        """Publish the beat together with ``operation`` on the locked key. Raises LeaseLost."""
        if beat.term != grant.term:
            raise ValueError(f"beat of term {beat.term} under a grant of term {grant.term}")
        index = int(grant.version)
        for _ in range(MAX_TRIES):
            written = await self._transact(grant.token, index, beat, operation)
            if written is not None:
                return written
            seen = await self._look()
            if seen.record is None or seen.record.holder != grant.token or seen.record.beat.released:
                raise LeaseLost(f"{self._name}: {_who(seen)} has the lease")
            if seen.lock.session != grant.token:
                raise LeaseLost(f"{self._name}: the session ended")
            index = seen.beat.index
        raise LeaseUnavailable(f"{self._name}: {MAX_TRIES} writes failed against our own")

    async def _transact(
        self, session: str, index: int, beat: Beat, operation: dict[str, Any]
    ) -> Grant | None:
        data = encode(Record(beat, session))
        sent = boottime_ns()
        written = await self._calls.run(
            self._client.transact, operation, compare_and_set(self._beat_key, index, data)
        )
        if written is None:
            return None
        return Grant(beat.term, sent + round(self.timing.term * 1e9), str(written), session)


def _check_term(view: View, beat: Beat) -> None:
    if view.beat is not None and beat.term <= view.beat.term:
        raise ValueError(f"term {beat.term} does not follow term {view.beat.term}")


def _view(seen: _Seen) -> View:
    beat = seen.record.beat if seen.record is not None else None
    held = bool(seen.lock.session) or (beat is not None and not beat.released)
    return View(str(seen.beat.index), beat, held)


def _is_claimable(seen: _Seen) -> bool:
    """Nobody has the lock, or the one whose beat it is, or whom that one was about to displace."""
    if seen.record is None:
        return False
    return seen.lock.session in ("", seen.record.holder, seen.record.displaces)


def _describe(primary: PrimaryInfo) -> bytes:
    return msgspec.json.encode({"hostname": primary.hostname, "advertise-url": primary.advertise_url})


def _who(seen: _Seen) -> str:
    return seen.record.beat.primary.hostname if seen.record is not None else "nobody"
