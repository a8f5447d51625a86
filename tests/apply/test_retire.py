"""A dead mount must not answer: a real FUSE mount whose process is killed under its clients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litefs.apply.applier import Applier
from litefs.apply.retire import DEAD, MountGuard, retire_stale
from litefs.apply.stale import mounts
from litefs.store.paths import DataDir
from litefs.store.recovery import recover
from tests.apply.conftest import ClientMaker, SourceMaker, replica_of
from tests.apply.support import WAIT, Client
from tests.support.processes import pause

ROWS = 500
COUNT = "SELECT count(*) FROM t"
ALL = "SELECT total(length(data)) FROM t"


class Mount:
    """The passthrough file system, over ``backing``, at ``point``."""

    def __init__(self, backing: Path, point: Path) -> None:
        self.backing, self.point = backing, point
        backing.mkdir()
        point.mkdir()
        self.start()

    def start(self) -> None:
        script = Path(__file__).with_name("passthrough_fs.py")
        command = [sys.executable, str(script), str(self.backing), str(self.point)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WAIT)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def unmount(self) -> None:
        subprocess.run(
            ["umount", "-l", str(self.point)], check=False, timeout=WAIT, stderr=subprocess.DEVNULL
        )


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    mount = Mount(tmp_path / "backing", tmp_path / "mount")
    yield mount
    mount.unmount()
    mount.kill()


def filled(client: ClientMaker, mount: Mount, mode: str, mmap_size: int) -> list[Client]:
    """A writer, an idle reader and a reader inside a transaction, all with warm caches."""
    path = mount.point / "app.db"
    writer = client(path, "ask", mmap_size, writable=True)
    assert writer.ask(f"PRAGMA journal_mode={mode}") == [mode]
    writer.ask("CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB)")
    writer.ask(
        f"INSERT INTO t WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) "
        "SELECT i, randomblob(500) FROM n"
    )
    idle, inside = client(path, "ask", mmap_size), client(path, "ask", mmap_size)
    inside.ask("BEGIN")
    for one in (writer, idle, inside):
        assert one.ask(ALL) == [500.0 * ROWS]
    return [writer, idle, inside]


def fails(answer: object) -> bool:
    return answer in ("disk I/O error", "file is not a database", "database disk image is malformed")


def assert_retired(connections: list[Client]) -> None:
    writer, idle, inside = connections
    for one in (writer, idle):
        for statement in (COUNT, ALL):
            assert fails(one.ask(statement))
    inside.ask("ROLLBACK")
    assert fails(inside.ask(COUNT)), "its next transaction fails at the latest"


@pytest.mark.parametrize("mmap_size", [0, 1 << 30])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_without_help_old_connections_answer_from_the_past(
    mount: Mount, client: ClientMaker, mode: str, mmap_size: int
) -> None:
    _, idle, _ = filled(client, mount, mode, mmap_size)
    mount.kill()
    assert idle.ask(COUNT) == [ROWS], "what the rest of this file is about"


@pytest.mark.parametrize("mmap_size", [0, 1 << 30])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_the_guard_makes_old_connections_fail(
    mount: Mount, client: ClientMaker, mode: str, mmap_size: int
) -> None:
    guard = MountGuard(mount.point)
    connections = filled(client, mount, mode, mmap_size)
    guard.watch("app.db")
    guard.refresh()
    mount.kill()
    assert guard.retire() == ["app.db"]
    assert guard.retire() == []
    mount.unmount()
    mount.start()
    assert_retired(connections)
    fresh = client(mount.point / "app.db", "ask")
    assert fresh.ask(ALL) == [500.0 * ROWS], "nothing of it reached the disk"
    assert fresh.ask("PRAGMA integrity_check") == ["ok"]


@pytest.mark.parametrize("page_size", [0, 512])
def test_a_database_smaller_than_a_page_of_memory(mount: Mount, client: ClientMaker, page_size: int) -> None:
    """It may even be empty; its pages are all in the WAL then."""
    path = mount.point / "app.db"
    one = client(path, "ask", writable=True)
    if page_size:
        one.ask(f"PRAGMA page_size={page_size}")
        one.ask("PRAGMA journal_mode=WAL")
        one.ask("CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB)")
        assert one.ask(COUNT) == [0]
    assert (mount.backing / "app.db").stat().st_size == page_size
    guard = MountGuard(mount.point)
    guard.watch("app.db")
    mount.kill()
    assert guard.retire() == ["app.db"]
    mount.unmount()
    mount.start()
    if page_size:
        assert fails(one.ask(COUNT))


def test_the_guard_spares_a_mount_that_answers(mount: Mount, client: ClientMaker) -> None:
    guard = MountGuard(mount.point)
    writer, idle, _ = filled(client, mount, "wal", 0)
    guard.watch("app.db")
    assert guard.retire() == []
    assert idle.ask(COUNT) == [ROWS]
    writer.ask("DELETE FROM t WHERE id = 1")
    assert idle.ask(COUNT) == [ROWS - 1]


def test_the_guard_follows_files_that_come_and_go(mount: Mount, client: ClientMaker) -> None:
    guard = MountGuard(mount.point)
    path = mount.point / "app.db"
    with pytest.raises(FileNotFoundError):
        guard.watch("app.db")
    one = client(path, "ask", writable=True)
    one.ask("PRAGMA journal_mode=DELETE")
    one.ask("CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB)")
    guard.watch("app.db")
    one.ask("PRAGMA journal_mode=WAL")
    one.ask("INSERT INTO t VALUES(1, 'x')")
    guard.refresh()
    assert one.ask(COUNT) == [1]
    mount.kill()
    guard.retire()
    assert fails(one.ask(COUNT))
    guard.close()


@pytest.mark.parametrize("mmap_size", [0, 1 << 30])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_the_next_start_retires_what_both_processes_left(
    mount: Mount, client: ClientMaker, mode: str, mmap_size: int
) -> None:
    connections = filled(client, mount, mode, mmap_size)
    mount.kill()
    time.sleep(1.1)  # attributes are no longer cached, so that stat fails too
    holders = retire_stale(mount.point)
    assert {holder.pid for holder in holders} == {one.process.pid for one in connections}
    for holder in holders:
        assert holder.retired
        assert str(mount.point / "app.db") in holder.paths
        assert "clients.py" in holder.command
    assert_retired(connections)


def test_a_live_mount_and_no_mount_are_left_alone(mount: Mount, client: ClientMaker, tmp_path: Path) -> None:
    _, idle, _ = filled(client, mount, "wal", 0)
    assert not any(holder.retired for holder in retire_stale(mount.point))
    assert idle.ask(COUNT) == [ROWS]
    assert retire_stale(tmp_path) == []


def test_looking_at_a_mount_that_hangs_is_bounded(mount: Mount, client: ClientMaker) -> None:
    filled(client, mount, "wal", 0)
    pause(mount.process.pid)  # every call into the mount blocks
    try:
        begun = time.monotonic()
        assert retire_stale(mount.point, timeout=1.0) == []
        assert time.monotonic() - begun < 10
    finally:
        os.kill(mount.process.pid, 18)


def test_mount_points_with_blanks_are_understood(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "backing", tmp_path / "a mount\tpoint")
    try:
        assert str(mount.point) in {point for _, _, point in mounts("self")}
    finally:
        mount.unmount()
        mount.kill()


def test_an_applier_whose_mount_died_says_so_and_lets_go(
    mount: Mount, source: SourceMaker, tmp_path: Path
) -> None:
    primary = source(seed=41)
    replica_of(primary, tmp_path / "replica").close()
    directory = DataDir(tmp_path / "replica").database_dir("app.db")
    shutil.copy(directory.database, mount.backing / "app.db")
    applier = Applier(directory, mount.point / "app.db")
    for _ in range(20):
        primary.step()
    assert applier.apply(primary.take()) == primary.position
    mount.kill()
    primary.step()
    gone = "|".join(os.strerror(number) for number in DEAD)
    with pytest.raises(OSError, match=gone):
        applier.apply(primary.take())
    assert applier.position == primary.position, "it is in the log, and recovery applies it"
    with pytest.raises(OSError, match=gone):
        applier.finish()
    applier.close()
    mount.unmount()
    shutil.copy(mount.backing / "app.db", directory.database)
    recover(directory)
    assert directory.database.read_bytes() == primary.body()
