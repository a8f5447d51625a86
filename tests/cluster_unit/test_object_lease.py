"""The lease in an object: lost answers, locks that are held, objects that are no beats."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio

from litefs.cluster.beats import MAX_BYTES, Record, decode, encode
from litefs.cluster.directory import DirectoryStore
from litefs.cluster.lease import Beat, Grant, Lease, LeaseUnavailable, PrimaryInfo, View
from litefs.cluster.object import ObjectLease
from litefs.store import fileops
from litefs.types import Point
from tests.support.leases import TIMING, open_lease

INFO = PrimaryInfo("a", "http://a:20202")


class Deaf(DirectoryStore):
    """Loses the answers of its next ``losses`` writes."""

    losses = 0

    def swap(self, version: str, term: int, data: bytes) -> str | None:
        written = super().swap(version, term, data)
        if self.losses:
            self.losses -= 1
            raise ConnectionResetError("answer lost")
        return written


def acquire(lease: Lease, term: int = 1) -> Grant:
    async def take() -> Grant | None:
        return await lease.acquire(await lease.observe(), Beat(term, 1, INFO))

    grant = trio.run(take)
    assert grant is not None
    return grant


def test_a_renewal_goes_on_after_a_lost_answer(tmp_path: Path) -> None:
    store = Deaf(tmp_path, "key")
    lease = ObjectLease(store, TIMING)
    grant = acquire(lease)
    store.losses = 1
    with pytest.raises(LeaseUnavailable, match="answer lost"):
        trio.run(lease.renew, grant, Beat(1, 1, INFO))
    renewed = trio.run(lease.renew, grant, Beat(1, 1, INFO))
    assert renewed.deadline_ns > grant.deadline_ns
    assert renewed.version == trio.run(lease.observe).version


def test_a_lost_answer_to_an_acquire_leaves_a_lease_that_stands_still(tmp_path: Path) -> None:
    store = Deaf(tmp_path, "key")
    lease = ObjectLease(store, TIMING)
    store.losses = 1
    with pytest.raises(LeaseUnavailable):
        acquire(lease)
    view = trio.run(lease.observe)
    assert view.held
    assert view.beat is not None
    assert view.beat.node_id == 1


def test_a_directory_that_is_locked_is_not_waited_for(tmp_path: Path) -> None:
    lease = open_lease(f"file://{tmp_path}", "key")
    grant = acquire(lease)
    fd = fileops.open_file(tmp_path / "key" / "lock", os.O_RDWR)
    try:
        assert fileops.try_lock(fd)
        before = time.monotonic()
        with pytest.raises(LeaseUnavailable):
            trio.run(lease.renew, grant, Beat(1, 1, INFO))
        assert time.monotonic() - before < TIMING.term
    finally:
        os.close(fd)
    assert trio.run(lease.renew, grant, Beat(1, 1, INFO)).deadline_ns > grant.deadline_ns


def test_what_is_no_beat_is_not_taken_over(tmp_path: Path) -> None:
    lease = open_lease(f"file://{tmp_path}", "key")
    acquire(lease)
    (tmp_path / "key" / f"{1:016x}").write_bytes(b'{"format": 2}')
    with pytest.raises(LeaseUnavailable, match="not a beat"):
        trio.run(lease.observe)


def test_a_view_is_changed_at_once_or_after_the_time(tmp_path: Path) -> None:
    lease = open_lease(f"file://{tmp_path}", "key")
    grant = acquire(lease)

    async def watch() -> None:
        view = await lease.observe()
        before = trio.current_time()
        assert (await lease.changed(view, 0.6)).version == view.version
        assert 0.6 <= trio.current_time() - before < 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.renew, grant, Beat(1, 1, INFO))
            assert (await lease.changed(view, 30)).version != view.version
        assert trio.current_time() - before < 5

    trio.run(watch)


def test_the_directory_does_not_grow(tmp_path: Path) -> None:
    lease = open_lease(f"file://{tmp_path}", "key")

    async def run() -> None:
        for term in range(1, 6):
            view: View = await lease.observe()
            assert await lease.claim(view, Beat(term, 1, INFO))

    left = tmp_path / "key" / "dead.tmp"
    left.parent.mkdir()
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    trio.run(run)
    assert sorted(os.listdir(tmp_path / "key")) == [f"{4:016x}", f"{5:016x}", "lock"]


def test_a_term_is_never_used_again(tmp_path: Path) -> None:
    lease = open_lease(f"file://{tmp_path}", "key")
    acquire(lease, term=3)
    view = trio.run(lease.observe)
    with pytest.raises(ValueError, match="does not follow"):
        trio.run(lease.claim, view, Beat(3, 2, INFO))


def test_a_beat_comes_back_as_it_was() -> None:
    positions = {"b.db": Point(2, 1 << 63 | 5, 77), "a/ü.db": Point()}
    beat = Beat(9, (1 << 64) - 1, INFO, positions, in_sync=(1, 2), released=True, successor=2)
    record = Record(beat, "holder", "old")
    assert decode(encode(record), "here") == record
    assert encode(record) != encode(record)
    assert decode(encode(Record(Beat(1, 1, INFO), "h")), "here").beat.in_sync is None


@pytest.mark.parametrize("name", ["n{}.db", 'quoted"\\{}', "ü{}"])
def test_of_too_many_positions_the_last_stay(name: str) -> None:
    positions = {name.format(number): Point(number, number, number) for number in range(10_000)}
    data = encode(Record(Beat(1, 1, INFO, positions), "h"))
    kept = list(decode(data, "here").beat.positions.items())
    assert MAX_BYTES - 100 < len(data) <= MAX_BYTES
    assert kept == list(positions.items())[-len(kept) :]
    assert kept
