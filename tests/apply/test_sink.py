"""The replica's end of the stream, on a directory instead of a mount."""

from __future__ import annotations

import errno
import sqlite3
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from litefs.apply import pagesize
from litefs.apply import sink as sink_module
from litefs.apply.sink import ReplicaSink
from litefs.apply.wal import WalAppend
from litefs.errors import ChecksumMismatch, FormatError, InvalidName, LiteFSError, PositionMismatch
from litefs.sqlite.wal import HEADER_SIZE
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.paths import DataDir
from litefs.store.recovery import recover
from litefs.store.snapshot import SnapshotTarget
from litefs.store.sums import SumsFile
from litefs.types import Point, Position
from tests.apply.conftest import ClientMaker, SourceMaker
from tests.apply.support import Source


class Replica:
    """A sink over a data directory whose databases are opened where they lie."""

    def __init__(self, path: Path) -> None:
        self.data = DataDir(path)
        self.shown: list[str] = []
        self.recoveries: list[str] = []
        self.damages: list[dict[str, Point]] = []
        """The positions whenever the primary was to be told them anew."""
        self.applied: list[tuple[str, Position]] = []
        self.sink = self.make()

    def make(self) -> ReplicaSink:
        return ReplicaSink(
            self.data,
            self.data.path,
            on_database_ready=self._show,
            on_applied=lambda name, position: self.applied.append((name, position)),
            on_recovery_needed=self.recoveries.append,
            on_damage=lambda: self.damages.append(dict(self.sink.positions())),
            locate=self.path,
        )

    def path(self, name: str) -> Path:
        return self.data.database_dir(name).database

    async def _show(self, name: str) -> None:
        # A client that opens it at once must find a WAL that SQLite takes notice of.
        assert self.path(name).with_name("database-wal").stat().st_size >= HEADER_SIZE
        self.shown.append(name)

    def steps(self, name: str) -> int:
        connection = sqlite3.connect(f"{self.path(name).as_uri()}?mode=ro", uri=True)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return int(connection.execute("SELECT n FROM step").fetchone()[0])
        finally:
            connection.close()


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Replica]:
    replica = Replica(path)
    await replica.sink.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replica.sink.run)
        yield replica
        nursery.cancel_scope.cancel()
    await replica.sink.close()


def run(test: Callable[..., Awaitable[None]], *args: object) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await test(*args)

    trio.run(bounded)


def stepped(source: Source, count: int) -> list[bytes]:
    for _ in range(count):
        source.step()
    return source.take()


async def send_snapshot(sink: ReplicaSink, source: Source, name: str, at: Point, pages: list[bytes]) -> None:
    await sink.snapshot_begin(name, source.page_size, len(pages), at, 0)
    for first in range(0, len(pages), 50):
        some = pages[first : first + 50]
        numbers = struct.pack(f"={len(some)}I", *range(first + 1, first + 1 + len(some)))
        await sink.snapshot_pages(name, numbers, b"".join(some))


def test_a_database_begins_with_its_first_record(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        primary = source(seed=21)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            assert sink.positions() == {}
            with pytest.raises(InvalidName):
                await sink.records("../app.db", [b""])
            bodies = stepped(primary, 3)
            with pytest.raises(PositionMismatch, match="nothing of it is here"):
                await sink.records("dir/app.db", bodies[1:])
            assert await sink.records("dir/app.db", bodies) == primary.position
            assert replica.shown == ["dir/app.db"]
            assert replica.applied == [("dir/app.db", primary.position)]
            assert replica.steps("dir/app.db") == 3
            await sink.records("dir/app.db", stepped(primary, 3))
            assert sink.positions() == {"dir/app.db": primary.point}
            assert replica.steps("dir/app.db") == 6
        assert replica.path("dir/app.db").read_bytes() == primary.body()

    run(scenario)


def test_a_snapshot_with_a_tail_becomes_a_database(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        primary = source(seed=22)
        stepped(primary, 10)
        at, pages = primary.point, list(primary.pages)
        tail = stepped(primary, 5)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            with pytest.raises(PositionMismatch, match="without the beginning"):
                await sink.snapshot_pages("app.db", b"", b"")
            await send_snapshot(sink, primary, "app.db", at, pages)
            assert replica.shown == [], "it appears whole or not at all"
            await sink.records("app.db", tail)
            await sink.snapshot_end("app.db", primary.point)
            assert replica.shown == ["app.db"]
            assert replica.steps("app.db") == primary.steps
            await sink.records("app.db", stepped(primary, 5))
            assert replica.steps("app.db") == primary.steps
        assert replica.path("app.db").read_bytes() == primary.body()

    run(scenario)


def test_a_wrong_or_given_up_snapshot_leaves_nothing(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        primary = source(seed=23)
        stepped(primary, 10)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            spoiled = [*primary.pages[:-1], bytes(4096)]
            await send_snapshot(sink, primary, "app.db", primary.point, spoiled)
            with pytest.raises(ChecksumMismatch):
                await sink.snapshot_end("app.db", primary.point)
            await sink.snapshot_abort("app.db")
            await sink.snapshot_abort("app.db")
            assert replica.shown == []
            assert sink.positions() == {}
            assert not replica.path("app.db").exists()
            await send_snapshot(sink, primary, "app.db", primary.point, primary.pages)
            await sink.snapshot_end("app.db", primary.point)
            assert replica.steps("app.db") == primary.steps

    run(scenario)


def test_a_snapshot_over_a_database_is_one_more_transaction(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        old, new = source(seed=24), source(seed=25)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            await sink.records("app.db", stepped(old, 20))
            stepped(new, 7)
            new.take()
            await send_snapshot(sink, new, "app.db", new.point, new.pages)
            assert replica.steps("app.db") == 20
            await sink.snapshot_end("app.db", new.point)
            assert replica.shown == ["app.db"], "it was there all the time"
            assert replica.steps("app.db") == 7
            await sink.drop("app.db")
            assert await sink.records("app.db", stepped(new, 3)) == new.position
            assert sink.positions() == {"app.db": new.point}
        assert replica.path("app.db").read_bytes() == new.body()
        assert list((tmp_path / "data" / "lost").iterdir())

    run(scenario)


def test_nobody_looks_at_a_database_while_it_is_replaced(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sink_module, "TICK", 0.01)
    real_close = Database.close

    def close(db: Database) -> None:
        real_close(db)
        time.sleep(0.2)

    async def scenario() -> None:
        old, new = source(seed=32), source(seed=33)
        async with running(tmp_path / "data") as replica:
            await replica.sink.records("app.db", stepped(old, 5))
            stepped(new, 5)
            await send_snapshot(replica.sink, new, "app.db", new.point, new.pages)
            with monkeypatch.context() as patch:
                patch.setattr(Database, "close", close)
                await replica.sink.snapshot_end("app.db", new.point)
            assert replica.steps("app.db") == 5

    run(scenario)
    assert "unexpected" not in caplog.text


def test_a_restarted_sink_goes_on(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        primary = source(seed=26)
        async with running(tmp_path / "data") as replica:
            await replica.sink.records("app.db", stepped(primary, 5))
        async with running(tmp_path / "data") as replica:
            assert replica.sink.positions() == {"app.db": primary.point}
            assert replica.shown == []
            with pytest.raises(FormatError):
                await replica.sink.records("app.db", [b"rubbish" * 100])
            assert await replica.sink.records("app.db", stepped(primary, 5)) == primary.position
            assert replica.steps("app.db") == 10

    run(scenario)


def test_an_idle_database_is_checkpointed_and_made_durable(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "TICK", 0.01)
    monkeypatch.setattr(sink_module, "IDLE", 0.05)

    async def scenario() -> None:
        primary = source(seed=27)
        async with running(tmp_path / "data") as replica:
            await replica.sink.records("app.db", stepped(primary, 5))
            await replica.sink.records("app.db", stepped(primary, 5))
            while replica.path("app.db").read_bytes() != primary.body():
                await trio.sleep(0.01)
            state = replica.sink._states["app.db"].applier
            assert state is not None
            while state.database.sums.durable_txid != primary.position.txid:
                await trio.sleep(0.01)
            assert state.database.sums.synced_txid == primary.position.txid
            replica.sink.primary_time(123)
            replica.sink.ready()
            await replica.sink.caught_up.wait()
            assert replica.sink.primary_time_ms == 123

    run(scenario)


def test_databases_do_not_wait_for_each_other(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        slow, quick = source(seed=28), source(seed=29)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            await sink.records("slow.db", stepped(slow, 2))
            await sink.records("quick.db", stepped(quick, 2))
            async with sink._states["slow.db"].lock, trio.open_nursery() as nursery:
                nursery.start_soon(partial(sink.records, "slow.db", stepped(slow, 1)))
                for _ in range(5):
                    await sink.records("quick.db", stepped(quick, 1))
                assert replica.steps("quick.db") == 7
                assert replica.steps("slow.db") == 2
                nursery.cancel_scope.cancel()

    run(scenario)


def test_a_file_without_a_history_is_set_aside(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        primary = source(seed=30)
        async with running(tmp_path / "data") as replica:
            directory = replica.data.database_dir("app.db")
            directory.create()
            directory.database.write_bytes(b"something of the user's")
            await replica.sink.records("app.db", stepped(primary, 1))
            assert replica.steps("app.db") == 1
        (lost,) = (tmp_path / "data" / "lost").iterdir()
        assert (lost / "database").read_bytes() == b"something of the user's"

    run(scenario)


def full_disk_once(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> list[int]:
    """The next call of a method fails as on a full disk; the list holds 1 once it did."""
    real, failed = getattr(owner, method), []

    def once(*arguments: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(owner, method, once)
    return failed


def test_what_is_logged_but_not_shown_is_shown_without_another_record(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "TICK", 0.1)

    async def scenario() -> None:
        primary = source(seed=31)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            await sink.records("app.db", stepped(primary, 5))
            sink.primary_time(1)
            monkeypatch.setattr(sink_module, "TICK", 1000.0)
            await trio.sleep(0.3)
            full_disk_once(monkeypatch, WalAppend, "add")
            with pytest.raises(OSError, match="No space"):
                await sink.records("app.db", stepped(primary, 1))
            assert sink.positions() == {"app.db": primary.point}, "it is in the log"
            assert replica.steps("app.db") == 5
            sink.primary_time(2)
            assert sink.primary_time_ms == 1, "readers do not see yet what the primary has committed"
            monkeypatch.setattr(sink_module, "TICK", 0.1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sink.run)
                with trio.fail_after(5):
                    while replica.applied[-1] != ("app.db", primary.position):
                        await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
            assert replica.steps("app.db") == 6
            sink.primary_time(3)
            assert sink.primary_time_ms == 3

    run(scenario)


@pytest.mark.parametrize("step", ["room", "copy", "seal", "write"])
def test_a_snapshot_that_the_disk_has_no_room_for_changes_nothing(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def scenario() -> None:
        old, new = source(seed=34), source(seed=35)
        stepped(new, 7)
        new.take()
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            await sink.records("app.db", stepped(old, 20))
            await send_snapshot(sink, new, "app.db", new.point, new.pages)
            with monkeypatch.context() as patch:
                if step == "room":
                    patch.setattr(replica.sink._states["app.db"].applier, "_room", 0)
                    full_disk_once(patch, SumsFile, "ensure")
                elif step == "copy":
                    full_disk_once(patch, fileops, "copy_file")  # type: ignore[arg-type]
                elif step == "seal":
                    full_disk_once(patch, SnapshotTarget, "seal")
                else:
                    full_disk_once(patch, WalAppend, "add")
                with pytest.raises(OSError, match="No space"):
                    await sink.snapshot_end("app.db", new.point)
            lost = tmp_path / "data" / "lost"
            assert not lost.exists() or not list(lost.iterdir()), "a copy of the log for each attempt"
            directory = replica.data.database_dir("app.db")
            assert not directory.incoming.exists()
            assert not directory.install.exists()
            assert replica.recoveries == []
            assert replica.steps("app.db") == 20
            await sink.records("app.db", stepped(old, 1))
            assert replica.steps("app.db") == 21
            await send_snapshot(sink, new, "app.db", new.point, new.pages)
            await sink.snapshot_end("app.db", new.point)
            assert replica.steps("app.db") == 7
        assert replica.path("app.db").read_bytes() == new.body()

    run(scenario)


@pytest.mark.parametrize("hidden", [True, False])
def test_a_snapshot_of_another_page_size_is_put_in_place_by_recovery(
    tmp_path: Path, source: SourceMaker, hidden: bool
) -> None:
    """At once, while the mount does not show the database; if it does not answer, before the next mount."""

    async def hide(name: str, readers: bool) -> None:
        assert readers
        dropped.append(name)
        if not hidden:
            raise LiteFSError("no answer from the fs process")

    async def scenario() -> None:
        old, new = source(seed=36), source(seed=37, page_size=8192)
        stepped(new, 3)
        new.take()
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            sink._on_drop = hide
            await sink.records("app.db", stepped(old, 5))
            await send_snapshot(sink, new, "app.db", new.point, new.pages)
            if hidden:
                await sink.snapshot_end("app.db", new.point)
                assert replica.shown == ["app.db", "app.db"]
                assert replica.recoveries == []
            else:
                with pytest.raises(LiteFSError, match="no answer"):
                    await sink.snapshot_end("app.db", new.point)
                assert len(replica.recoveries) == 1
                with pytest.raises(LiteFSError, match="could not be made anew"):
                    await sink.records("app.db", stepped(old, 1))
                assert replica.steps("app.db") == 5
        assert dropped == ["app.db"]
        if not hidden:
            recover(replica.data.database_dir("app.db"))
        async with running(tmp_path / "data") as replica:
            assert replica.sink.positions() == {"app.db": new.point}
            await replica.sink.records("app.db", stepped(new, 2))
            assert replica.steps("app.db") == 5
        assert replica.path("app.db").read_bytes() == new.body()
        assert list((tmp_path / "data" / "lost").iterdir())

    dropped: list[str] = []
    run(scenario)


@pytest.mark.parametrize("split", [False, True])
def test_a_change_of_page_size_under_a_reader_that_stays(
    tmp_path: Path, source: SourceMaker, client: ClientMaker, monkeypatch: pytest.MonkeyPatch, split: bool
) -> None:
    """The database is shown anew, with all records, also those that came in the same batch."""
    monkeypatch.setattr(pagesize, "READERS_WAIT", 0.1)

    async def scenario() -> None:
        primary = source(seed=39)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            await sink.records("app.db", stepped(primary, 5))
            reader = client(replica.path("app.db"), "ask")
            reader.ask("BEGIN")
            assert reader.ask("SELECT n FROM step") == [5]
            bodies = stepped(primary, 2)
            for size in (512, 8192):
                primary.vacuum(size)
                bodies += stepped(primary, 2)
            for batch in [[body] for body in bodies] if split else [bodies]:
                await sink.records("app.db", batch)
            assert sink.positions() == {"app.db": primary.point}
            assert replica.shown == ["app.db"] * 2
            assert replica.applied[-1] == ("app.db", primary.position)
            assert replica.steps("app.db") == 11
            assert replica.recoveries == []
        assert replica.path("app.db").read_bytes() == primary.body()

    run(scenario)


def test_a_database_that_could_not_be_shown_waits_for_recovery(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        primary = source(seed=38)
        stepped(primary, 3)

        async def fail(name: str) -> None:
            raise LiteFSError("no answer from the fs process")

        replica = Replica(tmp_path / "data")
        replica.sink._on_ready = fail
        await send_snapshot(replica.sink, primary, "app.db", primary.point, primary.pages)
        with pytest.raises(LiteFSError, match="no answer"):
            await replica.sink.snapshot_end("app.db", primary.point)
        assert len(replica.recoveries) == 1
        inode = replica.path("app.db").stat().st_ino
        with pytest.raises(LiteFSError, match="could not be shown"):
            await send_snapshot(replica.sink, primary, "app.db", primary.point, primary.pages)
        assert replica.path("app.db").stat().st_ino == inode
        await replica.sink.close()
        recover(replica.data.database_dir("app.db"))
        async with running(tmp_path / "data") as replica:
            assert replica.sink.positions() == {"app.db": primary.point}
            await replica.sink.records("app.db", stepped(primary, 2))

    run(scenario)


def test_a_close_that_cannot_wait_leaves_files_to_the_thread_that_works_with_them(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    real = WalAppend.add

    def slow(append: WalAppend, *arguments: Any) -> None:
        began.set()
        assert go_on.wait(20)
        real(append, *arguments)

    async def scenario() -> None:
        primary = source(seed=39)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            await sink.records("app.db", stepped(primary, 2))
            monkeypatch.setattr(WalAppend, "add", slow)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sink.records, "app.db", stepped(primary, 1))
                await trio.to_thread.run_sync(began.wait, 10)
                with trio.move_on_after(0.2) as scope:
                    await sink.close()
                assert scope.cancelled_caught
                go_on.set()
            assert sink.positions() == {"app.db": primary.point}
            assert replica.steps("app.db") == 3

    run(scenario)
