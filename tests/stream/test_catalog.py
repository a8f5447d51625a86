"""The stream over the real store: what a primary logs arrives in a replica's data directory."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litefs.errors import DatabaseNotFound, PositionMismatch
from litefs.ltx.decoder import decode
from litefs.store.database import Database
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.snapshot import SnapshotTarget
from litefs.stream.catalog import StoreCatalog
from litefs.stream.protocols import Buffer, Identity
from litefs.stream.receiver import Receiver
from litefs.stream.sender import Sender
from litefs.stream.wakeup import Wakeup
from litefs.types import Point, Position
from tests.store.support import Writer

IDENTITY = Identity(1, "LFSC0123456789ABCDEF", 1, "primary")
SEED = random.SystemRandom().randrange(1 << 32)


class StoreSink:
    """A replica's store without a mount: snapshots are installed, records appended to its own log."""

    def __init__(self, datadir: DataDir) -> None:
        self._datadir = datadir
        self._targets: dict[str, SnapshotTarget] = {}
        self.databases: dict[str, Database] = {}
        self.changed = Wakeup()
        self.snapshots = 0
        self.largest = 0
        self.ready_count = 0

    def positions(self) -> Mapping[str, Point]:
        return {name: database.point for name, database in self.databases.items()}

    async def records(self, name: str, bodies: Sequence[Buffer]) -> Position:
        for body in bodies:
            self.largest = max(self.largest, len(body))
            if name in self._targets:
                self._targets[name].record(body)
                continue
            record, database = decode(body), self.databases[name]
            prepared = database.prepare(
                record.pgnos, record.images, record.header.commit, record.header.timestamp
            )
            if prepared.position != Position(record.header.max_txid, record.trailer.post_apply):
                raise PositionMismatch(f"{name}: {prepared.position}")
            database.append(prepared)
        self.changed.notify()
        return self.databases[name].position if name in self.databases else Position()

    async def snapshot_begin(self, name: str, page_size: int, commit: int, at: Point, timestamp: int) -> None:
        self._targets[name] = SnapshotTarget(
            self._datadir.database_dir(name), page_size, commit, at, timestamp
        )

    async def snapshot_pages(self, name: str, pgnos: bytes, images: bytes) -> None:
        self._targets[name].pages(pgnos, images)
        self.changed.notify()
        await trio.sleep(0.001)

    async def snapshot_end(self, name: str, point: Point) -> None:
        target = self._targets.pop(name)
        target.verify(point)
        if name in self.databases:
            self.databases.pop(name).close()
        target.install()
        self.databases[name] = Database.open(self._datadir.database_dir(name))
        self.snapshots += 1
        self.changed.notify()

    async def snapshot_abort(self, name: str) -> None:
        self._targets.pop(name).abort()

    async def drop(self, name: str) -> None:
        self.changed.notify()

    def primary_time(self, timestamp_ms: int) -> None:
        self.changed.notify()

    def ready(self) -> None:
        self.ready_count += 1
        self.changed.notify()

    async def wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed.wait_change(self.changed.revision)

    def close(self) -> None:
        for database in self.databases.values():
            database.close()


@pytest.fixture
def primary(tmp_path: Path) -> DataDir:
    print(f"seed {SEED}")
    return DataDir(tmp_path / "primary")


def writer(datadir: DataDir, name: str) -> Writer:
    directory: DatabaseDir = datadir.database_dir(name)
    directory.create()
    return Writer(directory, datadir.path / (name.replace("/", "_") + ".source"))


@asynccontextmanager
async def replicating(catalog: StoreCatalog, sink: StoreSink) -> AsyncIterator[None]:
    async def run() -> None:
        async with Sender(catalog, IDENTITY, sink.positions()) as chunks:
            await Receiver(sink).run(chunks)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield
            nursery.cancel_scope.cancel()


def content(sink: StoreSink, tmp_path: Path, name: str) -> list[tuple[object, ...]]:
    """Rows of the replica: its file with its logged pages laid over, as recovery would."""
    from litefs.store.recovery import recover

    sink.databases.pop(name).close()
    directory = DataDir(tmp_path / "replica").database_dir(name)
    report = recover(directory)
    assert not report.damaged
    with sqlite3.connect(directory.database) as connection:
        return connection.execute("SELECT id, hex(v) FROM t ORDER BY id").fetchall()


def test_snapshot_then_live_records_then_catch_up(primary: DataDir, tmp_path: Path) -> None:
    async def main() -> None:
        source = writer(primary, "dir/app.db")
        source.fill(20)
        source.checkpoint()
        source.run("INSERT INTO t (v) VALUES (randomblob(100))")  # its page images are in the log only
        catalog, sink = StoreCatalog(primary), StoreSink(DataDir(tmp_path / "replica"))
        catalog.rescan()
        async with replicating(catalog, sink):
            await sink.wait(lambda: sink.ready_count == 1)
            assert sink.positions() == {"dir/app.db": source.db.point}
            for _ in range(20):
                source.run("UPDATE t SET v = randomblob(900) WHERE id % 7 = abs(random()) % 7")
                catalog.notify()
                await sink.wait(lambda: sink.positions() == {"dir/app.db": source.db.point})
        for _ in range(100):
            source.run("INSERT INTO t (v) VALUES (randomblob(700))")
        async with replicating(catalog, sink):
            await sink.wait(lambda: sink.positions() == {"dir/app.db": source.db.point})
        assert sink.snapshots == 1
        expected = source.sql.execute("SELECT id, hex(v) FROM t ORDER BY id").fetchall()
        assert content(sink, tmp_path, "dir/app.db") == expected
        catalog.close()
        source.close()
        sink.close()

    trio.run(main)


def test_commits_during_a_snapshot_and_a_big_record(primary: DataDir, tmp_path: Path) -> None:
    async def main() -> None:
        source = writer(primary, "app.db")
        source.fill(2)
        source.run("INSERT INTO t (v) VALUES (randomblob(3000000))")
        source.checkpoint()
        catalog, sink = StoreCatalog(primary), StoreSink(DataDir(tmp_path / "replica"))
        catalog.add("app.db")
        async with replicating(catalog, sink):
            commits = 0
            while not sink.snapshots:
                source.run(f"UPDATE t SET v = randomblob({500 + commits}) WHERE id < 4")
                catalog.notify()
                commits += 1
                await sink.changed.wait_change(sink.changed.revision)
            assert commits > 3
            source.run("INSERT INTO t (v) VALUES (randomblob(9500000))")
            catalog.notify()
            await sink.wait(lambda: sink.positions() == {"app.db": source.db.point})
        assert sink.largest > 9_500_000
        expected = source.sql.execute("SELECT id, hex(v) FROM t ORDER BY id").fetchall()
        assert content(sink, tmp_path, "app.db") == expected
        catalog.close()
        source.close()
        sink.close()

    trio.run(main)


def test_a_running_snapshot_pins_the_log(primary: DataDir, tmp_path: Path) -> None:
    source = writer(primary, "app.db")
    source.fill(5)
    source.checkpoint()
    catalog = StoreCatalog(primary)
    catalog.rescan()
    assert catalog.pinned_txid("app.db") is None
    first = catalog.sources()["app.db"].snapshot()
    source.run("INSERT INTO t (v) VALUES (1)")
    second = catalog.sources()["app.db"].snapshot()
    assert catalog.pinned_txid("app.db") == first.at.txid
    first.close()
    first.close()
    assert catalog.pinned_txid("app.db") == second.at.txid
    second.close()
    assert catalog.pinned_txid("app.db") is None
    catalog.close()
    source.close()


def test_the_catalog_follows_the_directory(primary: DataDir) -> None:
    catalog = StoreCatalog(primary)
    primary.database_dir("empty.db").create()
    source = writer(primary, "app.db")
    source.fill(1)
    catalog.rescan()
    assert list(catalog.sources()) == ["app.db"]
    assert catalog.position("app.db") == source.db.position
    assert catalog.position("other.db") == Position()
    generation = catalog.generation
    catalog.rescan()
    assert catalog.generation == generation
    with pytest.raises(DatabaseNotFound):
        catalog.add("empty.db")
    catalog.remove("app.db")
    assert catalog.sources() == {}
    assert catalog.generation == generation + 1
    catalog.close()
    source.close()


def test_a_database_made_anew_is_another_source(primary: DataDir) -> None:
    """Also if it is at the same position: who follows the old one has to be told that it went."""
    catalog = StoreCatalog(primary)
    found = []
    for _ in range(2):
        source = writer(primary, "app.db")
        source.fill(1)
        for _ in range(2):
            catalog.refresh("app.db")
        found.append(catalog.sources()["app.db"])
        source.close()
        source.source.unlink()
        shutil.rmtree(primary.database_dir("app.db").path)
    assert found[0] is not found[1]
    assert catalog.generation == 2
    catalog.refresh("app.db")
    assert catalog.sources() == {}
    catalog.close()


def test_a_damaged_sums_file_leaves_the_other_databases(
    primary: DataDir, caplog: pytest.LogCaptureFixture
) -> None:
    bad = primary.database_dir("bad.db")
    bad.create()
    bad.sums.write_bytes(b"nonsense")
    source = writer(primary, "good.db")
    source.fill(1)
    catalog = StoreCatalog(primary)
    catalog.rescan()
    assert list(catalog.sources()) == ["good.db"]
    assert "bad.db: not replicated" in caplog.text
    catalog.close()
    source.close()


def test_a_notification_between_look_and_wait_is_not_lost() -> None:
    async def main() -> None:
        wakeup = Wakeup()
        calls: list[int] = []
        unlisten = wakeup.listen(lambda: calls.append(wakeup.revision))
        seen = wakeup.revision
        wakeup.notify()
        wakeup.notify()
        with trio.fail_after(1):
            assert await wakeup.wait_change(seen) == 2
        unlisten()
        unlisten()
        wakeup.notify()
        assert calls == [1, 2]
        with trio.move_on_after(0.05) as scope:
            await wakeup.wait_change(wakeup.revision)
        assert scope.cancelled_caught

    trio.run(main)
