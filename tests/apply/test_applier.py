"""Records are checked before they are logged, and what is logged is applied in the end, whatever happens
between."""

from __future__ import annotations

import errno
import random
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs.apply import applier as applier_module
from litefs.apply.applier import Applier
from litefs.apply.checkpoint import Checkpointer, CheckpointPolicy
from litefs.apply.records import merge
from litefs.apply.wal import WalAppend
from litefs.errors import ChecksumMismatch, FormatError, LiteFSError, NotSupported, PositionMismatch
from litefs.ltx import Header, Record, Trailer, decode, encode
from litefs.store import fileops
from litefs.store.log import Log
from litefs.store.recovery import recover
from litefs.store.snapshot import SnapshotTarget
from litefs.types import START, Position
from tests.apply.conftest import SourceMaker, replica_of
from tests.apply.support import Source


def steps_seen(applier: Applier) -> int:
    connection = sqlite3.connect(f"{applier.dir.database.as_uri()}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute("SELECT n FROM step").fetchone()[0])
    finally:
        connection.close()


def records(source: Source, count: int) -> list[bytes]:
    for _ in range(count):
        source.step()
    return source.take()


def forged(body: bytes, change: Callable[[Header], Header], post: int | None = None) -> bytes:
    record = decode(body)
    return encode(change(record.header), record.pgnos, record.images, post or record.trailer.post_apply)


def flipped(body: bytes) -> bytes:
    return body[:120] + bytes([body[120] ^ 4]) + body[121:]


BAD = {
    "gap": (
        PositionMismatch,
        lambda b: forged(b, lambda h: replace(h, min_txid=h.min_txid + 1, max_txid=h.max_txid + 1)),
    ),
    "fork": (PositionMismatch, lambda b: forged(b, lambda h: replace(h, pre_apply=h.pre_apply ^ 2))),
    "post": (ChecksumMismatch, lambda b: forged(b, lambda h: h, decode(b).trailer.post_apply ^ 2)),
    "bit": (FormatError, flipped),
    "cut": (FormatError, lambda b: b[:-1]),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("big", [False, True])
def test_a_bad_record_stops_there(
    tmp_path: Path, source: SourceMaker, kind: str, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if big:
        monkeypatch.setattr(applier_module, "BIG_RECORD", 0)
    primary = source(seed=11)
    applier = replica_of(primary, tmp_path / "replica")
    bodies = [records(primary, 1)[0] for _ in range(5)]
    error, damage = BAD[kind]
    before = Position(decode(bodies[1]).header.max_txid, decode(bodies[1]).trailer.post_apply)
    with pytest.raises(error):
        applier.apply([bodies[0], bodies[1], damage(bodies[2]), *bodies[3:]])
    assert applier.position == applier.database.position == before
    assert steps_seen(applier) == primary.steps - 3
    assert applier.apply(bodies[2:]) == primary.position
    assert steps_seen(applier) == primary.steps
    applier.close()


def test_no_pages_are_not_supported(tmp_path: Path, source: SourceMaker) -> None:
    primary = source(seed=12)
    applier = replica_of(primary, tmp_path / "replica")
    (body,) = records(primary, 1)
    header = decode(body).header
    with pytest.raises(NotSupported, match="no pages"):
        applier.apply([encode(replace(header, commit=0), b"", b"", 1 << 63)])
    assert applier.apply([body]) == primary.position
    applier.close()


@pytest.mark.parametrize("big", [False, True])
def test_what_was_logged_is_applied_by_the_next_call(
    tmp_path: Path, source: SourceMaker, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if big:
        monkeypatch.setattr(applier_module, "BIG_RECORD", 0)
    primary = source(seed=13)
    applier = replica_of(primary, tmp_path / "replica")
    first, second = records(primary, 3), records(primary, 3)
    applier.attach()
    whole = WalAppend.add

    def full_disk(self: WalAppend, pgnos: bytes, images: bytes, commit: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(WalAppend, "add", full_disk)
    with pytest.raises(OSError, match="no space"):
        applier.apply(first)
    assert applier.position.txid > applier.database.position.txid
    assert steps_seen(applier) == 0
    monkeypatch.setattr(WalAppend, "add", whole)
    logged = applier.position
    rest = [body for body in [*first, *second] if decode(body).header.min_txid > logged.txid]
    assert applier.apply(rest) == primary.position
    assert steps_seen(applier) == primary.steps
    applier.close()


def test_a_record_that_could_not_be_logged_leaves_no_trace(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = source(seed=14)
    applier = replica_of(primary, tmp_path / "replica")
    bodies = records(primary, 2)
    at = applier.position
    applier.attach()

    def refused(body: bytes, txid: int, post: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(applier.database.log, "append", refused)
    with pytest.raises(OSError, match="input/output"):
        applier.apply(bodies)
    assert applier.position == applier.database.position == at
    monkeypatch.undo()
    assert applier.apply(bodies) == primary.position
    applier.close()


def test_a_detached_applier_attaches_again(tmp_path: Path, source: SourceMaker) -> None:
    primary = source(seed=15)
    applier = replica_of(primary, tmp_path / "replica")
    applier.apply(records(primary, 20))
    applier.detach()
    assert applier.pending_frames == 0
    applier.apply(records(primary, 20))
    assert steps_seen(applier) == 40
    applier.finish()
    assert applier.dir.database.read_bytes() == primary.body()
    applier.close()
    applier.close()


@pytest.mark.parametrize("mended", [True, False])
def test_durable_txid_follows_checkpoint_and_sync(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch, mended: bool
) -> None:
    primary = source(seed=16)
    applier = replica_of(primary, tmp_path / "replica")
    base = applier.position.txid
    applier.apply(records(primary, 10))
    applier.sync_database()
    assert applier.database.sums.durable_txid == base, "nothing was checkpointed"
    assert applier.checkpoint()
    assert applier.database.sums.durable_txid == base, "nothing was synced"
    assert applier.database.sums.synced_txid == primary.position.txid, "the log goes before the database"

    def failing(path: Path) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(fileops, "sync_file", failing)
        with pytest.raises(OSError, match="input/output"):
            applier.sync_database()
    for _ in range(2):  # what a second sync says of the same pages means nothing
        with pytest.raises(LiteFSError, match="sync of the database file failed"):
            applier.sync_database()
    assert applier.database.sums.durable_txid == base
    if mended:
        applier.make_good()
        applier.sync_database()
        assert applier.database.sums.durable_txid == primary.position.txid
    applier.close()
    assert recover(applier.dir).position == primary.position
    again = Applier(applier.dir, applier.dir.database)
    assert again.database.sums.durable_txid == primary.position.txid
    again.apply(records(primary, 1))
    again.finish()
    assert again.database.sums.durable_txid == primary.position.txid
    again.close()


def test_a_snapshot_replaces_what_readers_have_open(tmp_path: Path, source: SourceMaker) -> None:
    one, two = source(seed=17), source(seed=18)
    applier = replica_of(one, tmp_path / "replica")
    applier.apply(records(one, 40))
    connection = sqlite3.connect(f"{applier.dir.database.as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.execute("BEGIN")
    assert connection.execute("SELECT n FROM step").fetchone() == (40,)
    kept = connection.execute("SELECT count(*), total(length(data)) FROM junk").fetchone()
    target = SnapshotTarget(applier.dir, 4096, 1, START, 0)
    for body in records(two, 12):
        target.record(body)
    target.verify(two.point)
    inode = applier.dir.database.stat().st_ino
    applier.replace(target)
    assert applier.position == applier.database.position == two.position
    assert connection.execute("SELECT count(*), total(length(data)) FROM junk").fetchone() == kept
    connection.execute("COMMIT")
    assert connection.execute("SELECT n FROM step").fetchone() == (12,)
    (lost,) = (tmp_path / "replica" / "lost").iterdir()
    assert list(lost.glob("*.seg")), "its own transactions were set aside"
    applier.apply(records(two, 5))
    assert steps_seen(applier) == 17
    applier.finish()
    assert applier.database.sums.durable_txid == two.position.txid
    assert not applier.dir.install.exists()
    assert applier.dir.database.read_bytes() == two.body()
    assert applier.dir.database.stat().st_ino == inode
    connection.close()
    applier.close()


def test_a_snapshot_that_failed_half_way_blocks_until_recovery(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = source(seed=19), source(seed=20)
    applier = replica_of(one, tmp_path / "replica")
    target = SnapshotTarget(applier.dir, 4096, 1, START, 0)
    for body in records(two, 12):
        target.record(body)
    target.verify(two.point)

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Log, "create", full_disk)
        with pytest.raises(OSError, match="no space"):
            applier.replace(target)
    assert applier.needs_recovery
    with pytest.raises(LiteFSError, match="only in part"):
        applier.apply(records(one, 1))
    applier.close()
    recover(applier.dir)
    again = Applier(applier.dir, applier.dir.database)
    assert again.position == two.position, "what was received is complete"
    assert steps_seen(again) == 12
    again.close()


def test_a_long_reader_costs_no_sync_per_attempt(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = source(seed=41)
    base = replica_of(primary, tmp_path / "replica")
    base.close()
    policy = CheckpointPolicy(start_frames=10, retry_frames=1)
    applier = Applier(base.dir, base.dir.database, sync_interval=1000, policy=policy)
    applier.apply(records(primary, 5))
    applier.checkpoint()
    reader = sqlite3.connect(f"{applier.dir.database.as_uri()}?mode=ro", uri=True)
    reader.execute("BEGIN")
    reader.execute("SELECT n FROM step").fetchone()
    applier.apply(records(primary, 3))
    applier.checkpoint()
    synced: list[int] = []
    sync = applier.sync_log
    monkeypatch.setattr(applier._checkpointer, "_before_write", lambda: (synced.append(1), sync()))
    for _ in range(20):
        applier.apply(records(primary, 2))
    assert len(synced) <= 1, "the log was synced for checkpoints that could do nothing"
    reader.close()
    assert applier.checkpoint()
    assert synced
    applier.close()


def test_a_checkpoint_that_fails_does_not_fail_what_was_applied(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = source(seed=42)
    base = replica_of(primary, tmp_path / "replica")
    base.close()
    policy = CheckpointPolicy(start_frames=10)
    applier = Applier(base.dir, base.dir.database, policy=policy)

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_copy", full_disk)
        for _ in range(10):
            assert applier.apply(records(primary, 2)) == primary.position
        assert steps_seen(applier) == 20
    assert applier.checkpoint()
    assert applier.dir.database.read_bytes() == primary.body()
    applier.close()


PAGE = 512
CHANGE = st.tuples(st.dictionaries(st.integers(1, 12), st.binary(min_size=4, max_size=4)), st.integers(1, 12))


@given(st.lists(CHANGE, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_merging_records_equals_applying_them_one_by_one(changes: list[tuple[dict[int, bytes], int]]) -> None:
    state: dict[int, bytes] = {}
    made = []
    for pages, commit in changes:
        # A transaction holds every page that the database grows by.
        size = max(state, default=0)
        pages = {n: pages.get(n, b"new!") for n in {*pages, *range(size + 1, commit + 1)} if n <= commit}
        state = {n: page for n, page in {**state, **pages}.items() if n <= commit}
        numbers = sorted(pages)
        images = bytearray(b"".join(pages[n].ljust(PAGE, b"\0") for n in numbers))
        header = Header(0, PAGE, commit, 2, 2, 0, 1 << 63)
        made.append(Record(header, struct.pack(f"={len(numbers)}I", *numbers), images, Trailer(1, 1)))
    pgnos, images_left, commit_left = merge(made)
    numbers = list(memoryview(pgnos).cast("I")) if pgnos else []
    assert commit_left == changes[-1][1]
    assert numbers == sorted(set(numbers))
    written = {n for pages, _ in changes for n in pages}
    for at, number in enumerate(numbers):
        assert bytes(images_left[at * PAGE : (at + 1) * PAGE]) == state[number].ljust(PAGE, b"\0")
    assert {n for n in state if n in written} <= set(numbers)


def test_random_batches_of_big_and_small_records_converge(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    monkeypatch.setattr(applier_module, "BIG_RECORD", 40_000)
    monkeypatch.setattr(applier_module, "MERGE_BYTES", 100_000)
    primary = source(seed=seed)
    applier = replica_of(primary, tmp_path / "replica")
    for _ in range(15):
        applier.apply(records(primary, rng.randrange(1, 20)))
        assert applier.position == primary.position
    assert steps_seen(applier) == primary.steps
    applier.finish()
    assert applier.dir.database.read_bytes() == primary.body()
    applier.close()
