"""Full records on a replica: the page size changes under readers that follow, wait, or stay."""

from __future__ import annotations

import errno
import random
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from litefs.apply import applier as applier_module
from litefs.apply import locks, pagesize
from litefs.apply.applier import Applier
from litefs.apply.wal import seed_wal
from litefs.errors import ChecksumMismatch, FormatError, PositionMismatch
from litefs.ltx import decode, encode
from litefs.sqlite.locks import SHM_READ0
from litefs.store import fileops
from litefs.store.recovery import recover
from tests.apply.conftest import ClientMaker, SourceMaker, replica_of
from tests.apply.support import Source

SIZES = (512, 1024, 4096, 65536)


def steps_seen(path: Path) -> int:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute("SELECT n FROM step").fetchone()[0])


def some(source: Source, count: int, size: int | None = None) -> list[bytes]:
    for _ in range(count):
        source.step()
    if size is not None:
        source.vacuum(size)
        source.step()
    return source.take()


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("big", [False, True])
def test_readers_follow(
    tmp_path: Path,
    source: SourceMaker,
    client: ClientMaker,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    big: bool,
) -> None:
    """Busy ones, idle ones, with and without a map of the file: each transaction whole, none goes back."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    if big:
        monkeypatch.setattr(applier_module, "BIG_RECORD", 0)
    monkeypatch.setattr(pagesize, "READERS_WAIT", 20.0)
    primary = source(rng.choice(SIZES), mode, seed)
    applier = replica_of(primary, tmp_path / "replica")
    seed_wal(applier.dir.database)
    applier.attach()
    path = applier.dir.database
    readers = [client(path, kind, size) for kind, size in (("sum", 0), ("reopen", 0), ("sum", 1 << 30))]
    idle = [client(path, "ask"), client(path, "ask", 1 << 30)]
    size = primary.page_size
    for _ in range(8):
        size = rng.choice([other for other in SIZES if other != size])
        applier.apply(some(primary, rng.randrange(8), size))
        assert not applier.must_reopen
        for one in idle:
            assert one.ask("SELECT n, (SELECT sum(balance) FROM account) FROM step") == [
                primary.steps,
                10_000,
            ]
            assert one.ask("PRAGMA page_size") == [size]
        applier.apply(some(primary, rng.randrange(30)))
        if rng.random() < 0.5:
            applier.checkpoint()
    for reader in readers:
        report = reader.report()
        assert report["last"] == primary.steps
        assert report["rounds"] > 8
    assert applier.checkpoint()
    assert path.read_bytes() == primary.body()
    applier.finish()
    assert applier.database.sums.durable_txid == primary.position.txid
    applier.close()


def test_the_file_is_durable_without_another_record(tmp_path: Path, source: SourceMaker) -> None:
    primary = source(seed=2)
    applier = replica_of(primary, tmp_path / "replica")
    applier.apply(some(primary, 3))
    primary.vacuum(512)
    applier.apply(primary.take())
    applier.finish()
    assert applier.database.sums.durable_txid == primary.position.txid
    applier.close()
    assert recover(applier.dir).restored == 0


@pytest.mark.parametrize("stays", [False, True])
def test_the_log_is_durable_before_the_file_is_overwritten(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """Record and name of its segment: else a power failure might leave the file new and the log old."""
    primary = source(seed=6)
    applier = replica_of(primary, tmp_path / "replica")
    applier.apply(some(primary, 3))
    primary.vacuum(512)
    done: list[str] = []
    for name in ("rename", "sync_dir"):
        monkeypatch.setattr(fileops, name, noting(done, name, getattr(fileops, name)))
    in_place = pagesize.write_in_place
    written = noting(done, "write", (lambda *_: False) if stays else in_place)
    monkeypatch.setattr(applier_module, "write_in_place", written)
    applier.apply(primary.take()[:2])
    assert applier.must_reopen == stays
    assert done[-3:] == ["rename", "sync_dir", "write"]
    applier.close()


def noting(done: list[str], name: str, real: Callable[..., object]) -> Callable[..., object]:
    def call(*args: object) -> object:
        done.append(name)
        return real(*args)

    return call


def test_a_reader_that_stays_makes_it_reopen(
    tmp_path: Path, source: SourceMaker, client: ClientMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads is not touched; the record is logged, and recovery has it."""
    monkeypatch.setattr(pagesize, "READERS_WAIT", 0.1)
    primary = source(seed=3)
    applier = replica_of(primary, tmp_path / "replica")
    applier.apply(some(primary, 3))
    reader = client(applier.dir.database, "ask")
    reader.ask("BEGIN")
    before = reader.ask("SELECT n, (SELECT total(length(data)) FROM junk) FROM step")
    bodies = some(primary, 2, 512)
    applier.apply(bodies)
    assert applier.must_reopen
    assert applier.position.txid == decode(bodies[-1]).header.max_txid - 2 + (primary.mode != "wal")
    assert reader.ask("SELECT n, (SELECT total(length(data)) FROM junk) FROM step") == before
    assert reader.ask("PRAGMA integrity_check") == ["ok"]
    applier.close()
    reader.close()
    report = recover(applier.dir)
    again = Applier(applier.dir, applier.dir.database)
    again.apply([body for body in bodies if decode(body).header.min_txid > report.position.txid])
    assert steps_seen(applier.dir.database) == primary.steps
    again.close()


def kept_out(path: Path, *, wait: bool) -> bool:
    """Whether no reader gets in; ``wait`` for SQLite to say so, which takes 10 s."""
    if wait:
        with pytest.raises(sqlite3.OperationalError, match="lock"):
            steps_seen(path)
    with path.with_name(path.name + "-shm").open("r+b") as shm:
        return not any(locks.is_free(shm.fileno(), lock) for lock in range(SHM_READ0, SHM_READ0 + 5))


@pytest.mark.parametrize("operation", ["write_zeros", "pwrite_all", "truncate"])
def test_a_failure_at_any_call_shows_nothing_half_way(
    tmp_path: Path,
    source: SourceMaker,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    """Either nothing changed, and the next call makes up for it, or readers are kept out until recovery."""
    primary = source(512, seed=4)
    applier = replica_of(primary, tmp_path / "replica")
    path = applier.dir.database
    applier.attach()
    real = getattr(fileops, operation)
    outcomes = set()
    for allowed in range(12):
        applier.apply(some(primary, 3))
        seen = steps_seen(path)
        primary.vacuum(8192 if primary.page_size == 512 else 512)
        bodies = primary.take()
        with monkeypatch.context() as patch:
            patch.setattr(pagesize, "fileops", _Failing(operation, real, allowed))
            try:
                applier.apply(bodies)
            except OSError:
                outcomes.add("refused")
                assert steps_seen(path) == seen
                assert applier.is_behind
            if applier.must_reopen:
                outcomes.add("half-way")
                assert kept_out(path, wait=allowed == 3)
        if applier.must_reopen:
            applier.finish()
            applier.close()
            recover(applier.dir)
            applier = Applier(applier.dir, path)
        applier.apply([body for body in bodies if decode(body).header.min_txid > applier.position.txid])
        assert applier.database.position == primary.position
        assert steps_seen(path) == primary.steps
    assert outcomes == {"refused" if operation == "write_zeros" else "half-way"}
    applier.close()


class _Failing:
    """The real file operations, one of which fails from some call on."""

    def __init__(self, operation: str, real: Callable[..., object], allowed: int) -> None:
        self._operation, self._real, self._left = operation, real, allowed

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name == self._operation:
            return self._count
        found: Callable[..., object] = getattr(fileops, name)
        return found

    def _count(self, *args: object) -> object:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        return self._real(*args)


def test_what_is_no_full_record_is_not_logged(tmp_path: Path, source: SourceMaker) -> None:
    primary = source(seed=5)
    applier = replica_of(primary, tmp_path / "replica")
    applier.apply(some(primary, 3))
    primary.vacuum(512)
    bodies = primary.take()
    full = next(body for body in bodies if decode(body).header.page_size == 512)
    record = decode(full)
    missing = encode(record.header, record.pgnos[4:], record.images[512:], record.trailer.post_apply)
    wrong = encode(record.header, record.pgnos, record.images, record.trailer.post_apply ^ 2)
    fork = replace(record.header, pre_apply=record.header.pre_apply ^ 2)
    huge = full[:12] + struct.pack(">I", 0xFFFFFFFF) + full[16:]
    forked = encode(fork, record.pgnos, record.images, record.trailer.post_apply)
    noise = struct.pack(">4sII", b"LTX1", 0, 600) + full[12:]
    before = bodies[: bodies.index(full)]
    applier.apply(before)
    at = applier.position
    for bad, error in (
        (missing, FormatError),
        (wrong, ChecksumMismatch),
        (forked, PositionMismatch),
        (huge, FormatError),
        (noise, FormatError),
        (full[:-1], FormatError),
        (full[:300], FormatError),
        (b"", FormatError),
    ):
        with pytest.raises(error):
            applier.apply([bad])
        assert applier.position == applier.database.position == at
    applier.apply(bodies[len(before) :])
    assert applier.position == primary.position
    assert steps_seen(applier.dir.database) == primary.steps
    applier.close()
