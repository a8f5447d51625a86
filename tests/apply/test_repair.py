"""A replica that cannot trust its files keeps them and takes a snapshot; what is fine goes on meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from litefs.apply import sink as sink_module
from litefs.errors import LiteFSError, PositionMismatch
from litefs.store import fileops
from litefs.store.lost import keep_file
from litefs.store.paths import DatabaseDir
from litefs.store.recovery import recover
from litefs.store.segments import list_segments
from litefs.store.snapshot import SnapshotTarget
from litefs.store.sums import SumsFile
from litefs.types import START
from tests.apply.conftest import SourceMaker
from tests.apply.test_sink import Replica, full_disk_once, run, running, send_snapshot, stepped


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


def kept(replica: Replica) -> list[str]:
    """What lies under ``lost/``: the reason and the files of each directory."""
    lost = replica.data.path / "lost"
    return sorted(f"{file.parent.name.split('-')[2]}/{file.name}" for file in lost.glob("*/*"))


async def heal(replica: Replica, directory: DatabaseDir) -> None:
    """What the node does when recovery is needed: no mount serves, recovery runs, and another sink starts."""
    await replica.sink.close()
    assert recover(directory).installed
    replica.sink = replica.make()
    await replica.sink.start()


def test_a_log_that_cannot_be_read(tmp_path: Path, source: SourceMaker) -> None:
    async def scenario() -> None:
        good, bad = source(seed=32), source(seed=33)
        async with running(tmp_path / "data") as replica:
            await replica.sink.records("good.db", stepped(good, 2))
            await replica.sink.records("bad.db", stepped(bad, 2))
            directory = replica.data.database_dir("bad.db")
        (_, segment), *_ = list_segments(directory.log)
        segment.write_bytes(b"rubbish" * 1000)
        before = directory.database.read_bytes()
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            assert sink.positions() == {"good.db": good.point, "bad.db": START}
            assert await sink.records("good.db", stepped(good, 2)) == good.position
            bodies = stepped(bad, 3)
            with pytest.raises(PositionMismatch):
                await sink.records("bad.db", bodies)
            await send_snapshot(sink, bad, "bad.db", bad.point, bad.pages)
            assert directory.database.read_bytes() == before, "it may be shown"
            with pytest.raises(LiteFSError, match="takes the place"):
                await sink.snapshot_end("bad.db", bad.point)
            assert len(replica.recoveries) == 1
            assert kept(replica) == [f"damaged/{segment.name}", "damaged/database"]
            await heal(replica, directory)
            assert replica.sink.positions() == {"good.db": good.point, "bad.db": bad.point}
            assert await replica.sink.records("bad.db", stepped(bad, 2)) == bad.position
            assert replica.steps("bad.db") == 7

    run(scenario)


@pytest.mark.parametrize(
    ("header", "same_position"), [("zeros", True), ("zeros", False), ("page size", True)]
)
def test_a_header_that_is_wrong(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch, header: str, same_position: bool
) -> None:
    """Nothing can be attached to it. The snapshot may be of the very position at which the log begins."""

    async def scenario() -> None:
        primary = source(seed=36)
        stepped(primary, 3)
        primary.take()
        async with running(tmp_path / "data") as replica:
            await send_snapshot(replica.sink, primary, "app.db", primary.point, primary.pages)
            await replica.sink.snapshot_end("app.db", primary.point)
            directory = replica.data.database_dir("app.db")
        ((_, segment),) = list_segments(directory.log)
        with directory.database.open("r+b") as file:
            if header == "zeros":
                file.write(bytes(4096))
            else:
                file.seek(16)
                file.write((primary.page_size * 2).to_bytes(2, "big"))
        assert recover(directory).damaged
        async with running(tmp_path / "data") as replica:
            assert replica.sink.positions() == {"app.db": START}
            if not same_position:
                stepped(primary, 1)
            for step in (SnapshotTarget, "seal"), (SumsFile, "flush"):
                await send_snapshot(replica.sink, primary, "app.db", primary.point, primary.pages)
                with monkeypatch.context() as patch:
                    full_disk_once(patch, *step)
                    with pytest.raises(OSError, match="No space"):
                        await replica.sink.snapshot_end("app.db", primary.point)
                assert [path.split("/")[1] for path in kept(replica)] == ["database"]
                assert not replica.recoveries
            await send_snapshot(replica.sink, primary, "app.db", primary.point, primary.pages)
            with pytest.raises(LiteFSError, match="takes the place"):
                await replica.sink.snapshot_end("app.db", primary.point)
            await heal(replica, directory)
            assert replica.sink.positions() == {"app.db": primary.point}
            assert await replica.sink.records("app.db", stepped(primary, 1)) == primary.position
            assert replica.steps("app.db") == (4 if same_position else 5)
            assert [path.split("/")[1] for path in kept(replica)] == [segment.name, "database"]

    run(scenario)


def test_a_file_that_changed_behind_its_back_is_found_by_reading_it(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        primary, other = source(seed=37), source(seed=38)
        async with running(tmp_path / "data") as replica:
            sink = replica.sink
            await sink.records("other.db", stepped(other, 2))
            await sink.records("app.db", stepped(primary, 20))
            directory = replica.data.database_dir("app.db")
            with trio.fail_after(10):
                applier = sink._states["app.db"].applier
                assert applier is not None
                while applier.pending_frames:
                    await trio.sleep(0.05)
            await sink.records("app.db", stepped(primary, 1))  # the WAL begins anew
            victim = next(
                pgno
                for pgno in range(2, applier.database.sums.page_count + 1)
                if applier.writer is not None and not applier.writer.has_frame(pgno)
            )
            offset = (victim - 1) * primary.page_size + 50
            flip(directory.database, offset)
            with trio.fail_after(20):
                while not replica.damages:
                    await trio.sleep(0.05)
            assert replica.damages == [{"app.db": START, "other.db": other.point}]
            assert await sink.records("app.db", stepped(primary, 1)) == primary.position, (
                "it goes on meanwhile"
            )
            sink.primary_time(7)
            assert sink.primary_time_ms == 0, "but it has not all that the primary has"
            await send_snapshot(sink, primary, "app.db", primary.point, primary.pages)
            with monkeypatch.context() as patch:

                def full(*args: object) -> None:
                    raise OSError(28, "No space left on device")

                patch.setattr(fileops, "copy_file", full)
                with pytest.raises(OSError, match="No space"):
                    await sink.snapshot_end("app.db", primary.point)
            assert sink.positions()["app.db"] == START
            assert sink.held("app.db") is None, "a primary must not count on it"
            await send_snapshot(sink, primary, "app.db", primary.point, primary.pages)
            await sink.snapshot_end("app.db", primary.point)
            assert sink.positions()["app.db"] == primary.point
            assert replica.recoveries == []
            assert replica.steps("app.db") == 22
            assert "damaged/database" in kept(replica)
            (copy,) = (replica.data.path / "lost").glob("*-damaged/database")
            assert copy.read_bytes()[offset] != primary.pages[victim - 1][50]
            sink.primary_time(8)
            assert sink.primary_time_ms == 8
        assert not recover(directory).damaged

    run(scenario)


def test_a_whole_file_is_never_accused(
    tmp_path: Path, source: SourceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While records come, pages lie in the WAL, in the file, or in both."""

    async def scenario() -> None:
        monkeypatch.setattr(sink_module, "TICK", 0.005)
        monkeypatch.setattr(sink_module, "IDLE", 0.02)
        primary = source(seed=39)
        async with running(tmp_path / "data") as replica:
            for round_ in range(60):
                await replica.sink.records("app.db", stepped(primary, 1 + round_ % 3))
                await trio.sleep(0.03 if round_ % 5 == 0 else 0.002)
            assert replica.damages == []
            assert replica.sink.positions() == {"app.db": primary.point}

    run(scenario)


def test_the_copy_of_a_missing_file_is_none(tmp_path: Path) -> None:
    directory = DatabaseDir("app.db", tmp_path / "app.db")
    assert keep_file(directory.database, directory, "damaged") is None
