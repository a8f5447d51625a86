"""A full disk and a disk whose syncs fail, for real, under a primary and under a replica.

The application gets an error, the mount survives, and replication goes on once there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.disks import fill_up, forget_cache, small_disk, thin_disk
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, wait_until

MakeNode = Callable[..., Node]
MakeClient = Callable[..., Client]
FULL = ("FullError: database or disk is full", "IOError: disk I/O error", "FullError: disk I/O error")
SMALL_MEGABYTES = 24


@pytest.fixture
def disks() -> Iterator[ExitStack]:
    """What is mounted for a test and taken away after it, last first; nodes end before."""
    with ExitStack() as stack:
        yield stack


def prepare(client: Client, node: Node, name: str, mode: str) -> None:
    client.call("open", path=node.path(name))
    statements = [f"PRAGMA journal_mode={mode}", "PRAGMA synchronous=FULL", "PRAGMA cache_size=-100000"]
    statements += [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a BLOB)",
        "INSERT INTO t(a) VALUES(randomblob(50000))",
    ]
    client.call("script", statements=statements)


def insert(client: Client, size: int = 100_000) -> None:
    client.call("execute", 30, statement=f"INSERT INTO t(a) VALUES(randomblob({size}))")


def until_it_fails(client: Client, limit: int) -> tuple[int, str]:
    """(rows that were acknowledged, the error that ended it)."""
    for row in range(limit):
        try:
            insert(client)
        except ClientError as error:
            return row, str(error)
    raise AssertionError(f"{limit} rows fit")


def works(client: Client) -> bool:
    try:
        insert(client)
    except ClientError:
        return False
    return True


def count(client: Client) -> int:
    return int(client.call("execute", statement="SELECT count(*) FROM t")[0][0])


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_the_disk_of_the_primary_is_full(
    mode: str, disks: ExitStack, tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    disk = disks.enter_context(small_disk(tmp_path / "disk", SMALL_MEGABYTES))
    primary = make_node("primary", data={"dir": str(disk / "data")}).start()
    replica = make_node("replica", primary=primary).start()
    writer, reader = make_client("sql", "apsw"), make_client("sql", "sqlite3")
    prepare(writer, primary, "app.db", mode)
    wait_present(replica, "app.db")
    fs, process = primary.fs_pid(), primary.process
    filler = fill_up(disk, 1 << 20)
    rows, error = until_it_fails(writer, 40)
    assert error.startswith(FULL), error
    reader.call("open", path=primary.path("app.db"), readonly=True)
    assert count(reader) == 1 + rows, "what was acknowledged is there, and nothing else"
    with pytest.raises(ClientError):
        insert(writer, 2_000_000)
    wait_equal(primary, replica, "app.db")
    filler.unlink()
    insert(writer)
    assert count(reader) == 2 + rows
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    assert (primary.fs_pid(), primary.process) == (fs, process)
    assert primary.stop() == 0


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_the_disk_of_a_replica_is_full(
    mode: str, disks: ExitStack, tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    """The primary does not notice; the replica serves what it has, and follows when there is room."""
    disk = disks.enter_context(small_disk(tmp_path / "disk", SMALL_MEGABYTES))
    primary = make_node("primary").start()
    replica = make_node("replica", primary=primary, data={"dir": str(disk / "data")}).start()
    writer, reader = make_client("sql", "apsw"), make_client("sql", "sqlite3")
    prepare(writer, primary, "app.db", mode)
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    fs, process = replica.fs_pid(), replica.process
    reader.call("open", path=replica.path("app.db"), readonly=True)
    filler = fill_up(disk)
    for _ in range(20):
        insert(writer)
    wait_until(lambda: "No space left" in replica.log.read_text(), 20, "the replica says so")
    assert 1 <= count(reader) < 21
    filler.unlink()
    wait_equal(primary, replica, "app.db", 60)
    assert count(reader) == 21
    pages_equal(primary, replica, "app.db")
    assert (replica.fs_pid(), replica.process) == (fs, process)
    assert replica.stop() == 0


def test_a_new_database_that_a_replica_has_no_room_for(
    disks: ExitStack, tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    """Its snapshot is tried again until there is room; the other database goes on meanwhile."""
    disk = disks.enter_context(small_disk(tmp_path / "disk", SMALL_MEGABYTES))
    primary = make_node("primary").start()
    writer, other = make_client("sql", "apsw"), make_client("sql", "apsw")
    prepare(writer, primary, "big.db", "WAL")
    insert(writer, 12_000_000)
    prepare(other, primary, "small.db", "WAL")
    (disk / "data").mkdir()
    filler = fill_up(disk, 7 << 20)
    replica = make_node("replica", primary=primary, data={"dir": str(disk / "data")}).start()
    wait_present(replica, "small.db")
    wait_until(lambda: "No space left" in replica.log.read_text(), 20, "the replica says so")
    insert(other)
    wait_equal(primary, replica, "small.db", 60)
    assert replica.position("big.db") is None
    filler.unlink()
    wait_present(replica, "big.db", 60)
    wait_equal(primary, replica, "big.db", 60)
    pages_equal(primary, replica, "big.db")


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_syncs_fail_under_the_primary(
    mode: str, disks: ExitStack, tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    """What the log lacks on the disk is put into a new segment when there is room: nothing has to be started
    again, and nothing that was acknowledged is missing, also after a kill.
    """
    disk = disks.enter_context(thin_disk(tmp_path / "disk", tmp_path / "below", SMALL_MEGABYTES))
    primary = make_node("primary", data={"dir": str(disk / "data")}).start()
    replica = make_node("replica", primary=primary).start()
    writer, reader = make_client("sql", "apsw"), make_client("sql", "sqlite3")
    prepare(writer, primary, "app.db", mode)
    wait_present(replica, "app.db")
    fs = primary.fs_pid()
    filler = fill_up(tmp_path / "below", 1 << 20)
    rows, error = until_it_fails(writer, 60)
    assert error.startswith(FULL), error
    assert "sync" in primary.log.read_text()
    assert primary.fs_pid() == fs, "the mount survives"
    with pytest.raises(ClientError, match="disk I/O error"):
        insert(writer)
    filler.unlink()
    wait_until(lambda: works(writer), 20, "the primary goes on")
    wait_equal(primary, replica, "app.db", 60)
    pages_equal(primary, replica, "app.db")
    reader.call("open", path=primary.path("app.db"))
    before = count(reader)
    assert before >= 1 + rows + 1, "what was acknowledged; of those that failed the outcome is unknown"
    writer.close()
    reader.close()
    primary.kill("both")
    forget_cache(disk)
    primary.start()
    again = make_client("sql", "apsw")
    again.call("open", path=primary.path("app.db"))
    assert again.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
    assert count(again) == before
    insert(again)
    wait_equal(primary, replica, "app.db", 60)
    pages_equal(primary, replica, "app.db")
