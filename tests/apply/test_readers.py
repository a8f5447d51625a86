"""Readers in other processes while transactions are applied: their snapshots hold, and replication does not
wait."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path

import pytest

from litefs.apply.applier import Applier
from litefs.apply.checkpoint import CheckpointPolicy
from litefs.apply.wal import seed_wal
from tests.apply.conftest import ClientMaker, SourceMaker, replica_of
from tests.apply.support import Source

SUM = "SELECT sum(balance) FROM account"
STEP = "SELECT n FROM step"
BUSY_POLICY = CheckpointPolicy(start_frames=100, retry_frames=20)


def feed(source: Source, applier: Applier, steps: int, batch: int = 1) -> None:
    for number in range(steps):
        source.step()
        if number % batch == batch - 1:
            assert applier.apply(source.take()) == source.position
    bodies = source.take()
    if bodies:
        applier.apply(bodies)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_readers_see_whole_transactions_only(
    tmp_path: Path, source: SourceMaker, client: ClientMaker, page_size: int, mode: str
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    primary = source(page_size, mode, seed)
    applier = replica_of(primary, tmp_path / "replica", BUSY_POLICY)
    seed_wal(applier.dir.database)
    applier.attach()
    path = applier.dir.database
    readers = [client(path, "sum"), client(path, "reopen"), client(path, "sum", 1 << 30)]
    feed(primary, applier, 60 if page_size > 4096 else 200)
    feed(primary, applier, 100, batch=25)
    for reader in readers:
        report = reader.report()
        assert report["last"] == primary.steps
        assert report["rounds"] > 0
        reader.close()
    assert applier.checkpoint()
    assert path.read_bytes() == primary.body()
    assert applier.database.sums.recompute_total() == primary.position.checksum
    applier.finish()
    assert applier.database.sums.durable_txid == primary.position.txid
    applier.close()


def test_a_long_reader_keeps_its_snapshot_and_delays_nobody(
    tmp_path: Path, source: SourceMaker, client: ClientMaker
) -> None:
    primary = source(seed=7)
    policy = CheckpointPolicy(100, 20, limit_bytes=2 << 20, limit_step_bytes=1 << 20, limit_wait=0.05)
    applier = replica_of(primary, tmp_path / "replica", policy)
    feed(primary, applier, 20)
    holder, other = client(applier.dir.database, "ask"), client(applier.dir.database, "ask")
    holder.ask("BEGIN")
    before = holder.ask(
        "SELECT n, (SELECT count(*) FROM junk), (SELECT total(length(data)) FROM junk) FROM step"
    )
    slowest = 0.0
    for _ in range(400):
        primary.step()
        bodies = primary.take()
        begun = time.perf_counter()
        applier.apply(bodies)
        slowest = max(slowest, time.perf_counter() - begun)
    assert other.ask(STEP) == [primary.steps]
    assert not applier.checkpoint()
    assert slowest < 1.0
    wal = applier.dir.wal
    assert wal.stat().st_size > policy.limit_bytes
    again = holder.ask(
        "SELECT n, (SELECT count(*) FROM junk), (SELECT total(length(data)) FROM junk) FROM step"
    )
    assert again == before
    assert holder.ask("PRAGMA integrity_check") == ["ok"]
    holder.ask("COMMIT")
    assert holder.ask(STEP) == [primary.steps]
    assert applier.checkpoint()
    assert applier.pending_frames == 0
    feed(primary, applier, 1)
    assert applier.pending_frames < 100, "the WAL has started again"
    assert other.ask(STEP) == [primary.steps]
    applier.close()


def test_nothing_is_checkpointed_under_a_reader_from_before_the_wal(
    tmp_path: Path, source: SourceMaker, client: ClientMaker
) -> None:
    primary = source(mode="delete", seed=3)
    applier = replica_of(primary, tmp_path / "replica", CheckpointPolicy(10, 10))
    path = applier.dir.database
    before = path.read_bytes()
    old, idle = client(path, "ask"), client(path, "ask")
    old.ask("BEGIN")
    assert old.ask(STEP) == [0]
    assert idle.ask(STEP) == [0]
    applier.attach()
    feed(primary, applier, 60)
    assert path.read_bytes() == before
    assert not applier.checkpoint()
    assert old.ask(STEP) == [0]
    assert old.ask("PRAGMA integrity_check") == ["ok"]
    old.ask("COMMIT")
    feed(primary, applier, 1)
    assert old.ask(STEP) == [primary.steps], "the connection went over to the WAL"
    assert idle.ask(STEP) == [primary.steps]
    assert applier.checkpoint()
    assert path.read_bytes() == primary.body()
    applier.close()


def test_a_seeded_wal_takes_in_rollback_readers_from_the_start(
    tmp_path: Path, source: SourceMaker, client: ClientMaker
) -> None:
    primary = source(mode="delete", seed=4)
    applier = replica_of(primary, tmp_path / "replica", CheckpointPolicy(10, 10))
    assert seed_wal(applier.dir.database)
    assert not seed_wal(applier.dir.database)
    reader = client(applier.dir.database, "ask")
    reader.ask("BEGIN")
    assert reader.ask(STEP) == [0]
    feed(primary, applier, 60)
    assert reader.ask(STEP) == [0]
    reader.ask("COMMIT")
    assert reader.ask(STEP) == [primary.steps]
    assert applier.checkpoint()
    assert applier.dir.database.read_bytes() == primary.body()
    applier.close()


def test_a_client_never_closes_the_last_connection(tmp_path: Path, source: SourceMaker) -> None:
    primary = source(seed=5)
    applier = replica_of(primary, tmp_path / "replica")
    feed(primary, applier, 5)
    connection = sqlite3.connect(applier.dir.database)
    assert connection.execute(STEP).fetchone() == (5,)
    connection.close()
    assert applier.dir.wal.stat().st_size > 32
    feed(primary, applier, 5)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(applier.dir.database, timeout=0).execute("PRAGMA journal_mode=DELETE")
    applier.close()
    assert os.listdir(applier.dir.path)
