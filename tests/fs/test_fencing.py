"""A primary that gives its role up, or whose lease is late: what open transactions, and new ones, are told."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from litefs.clock import boottime_ns
from litefs.link.messages import Deadline, Freeze, Frozen, HeldUp, Message, RoleSet, SetRole, Thaw
from litefs.store.paths import DataDir
from litefs.types import Role
from tests.fs.harness import Fs, serving
from tests.fs.replay import rebuilt
from tests.support.clients.failing import LATE_SECONDS
from tests.support.processes import Client, ClientError, ClientStuck

COUNT = "SELECT count(*) FROM t"
INSERT = "INSERT INTO t VALUES(zeroblob(3000))"
MANY = (
    "INSERT INTO t SELECT zeroblob(3000) FROM (WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 300) "
)
MANY += "SELECT i FROM n)"
"""More than the page cache below holds: pages are written before the commit."""
GRACE = 1.5


def begun(client: Client, fs: Fs, mode: str, statement: str = MANY) -> None:
    """A table with one row, and a transaction that has written to the files."""
    client.call("open", path=str(fs.mount / "a.db"))
    setup = ["PRAGMA cache_size=10", f"PRAGMA journal_mode={mode}", "CREATE TABLE t(a)", INSERT]
    client.call("script", statements=[*setup, "BEGIN IMMEDIATE", statement])


def as_logged(fs: Fs, tmp_path: Path, rows: int) -> None:
    """The database is what its log says, with that many rows."""
    with Client("sql", "sqlite3") as client:
        client.call("open", path=str(fs.mount / "a.db"), readonly=True)
        assert client.call("execute", statement=COUNT) == [[rows]]
        assert client.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
    with closing(rebuilt(DataDir(fs.data).database_dir("a.db").log, tmp_path / "rebuilt.db")) as db:
        assert db.execute(COUNT).fetchone() == (rows,)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"])
def test_an_open_transaction_ends_before_the_logs_change_hands(tmp_path: Path, mode: str, end: str) -> None:
    with serving(tmp_path) as fs, Client("sql", "sqlite3") as client:
        begun(client, fs, mode)
        fs.fence()
        held = fs.expect(HeldUp).by
        assert [line.partition(" (")[0] for line in held] == [f"a.db: process {client.process.pid}"]
        if end == "COMMIT":
            with pytest.raises(ClientError, match="disk I/O error"):
                client.call("execute", statement="COMMIT")
        else:
            client.call("execute", statement="ROLLBACK")
        assert fs.expect(HeldUp).by == []
        assert fs.expect(RoleSet) == RoleSet(1, Role.REPLICA)
        with pytest.raises(ClientError):
            client.call("execute", statement=INSERT)
        client.close()
        as_logged(fs, tmp_path, rows=1)
        assert fs.become(Role.PRIMARY).failed == {}
        as_logged(fs, tmp_path, rows=1)
        fs.stop()


def test_a_transaction_that_nobody_will_end_takes_a_recovery(tmp_path: Path) -> None:
    with serving(tmp_path) as fs, Client("sql", "sqlite3") as client:
        begun(client, fs, "DELETE")
        client.close()
        fs.fence()
        assert list(fs.expect(RoleSet).failed) == ["a.db"]
    with serving(tmp_path) as fs:
        as_logged(fs, tmp_path, rows=1)
        fs.stop()


def test_a_role_that_comes_back_while_the_logs_wait_to_change_hands(tmp_path: Path) -> None:
    with serving(tmp_path) as fs, Client("sql", "sqlite3") as client:
        begun(client, fs, "DELETE")
        fs.fence()
        fs.expect(HeldUp)
        assert fs.become(Role.PRIMARY) == RoleSet(1, Role.PRIMARY)
        client.call("execute", statement="COMMIT")
        client.close()
        as_logged(fs, tmp_path, rows=301)
        fs.stop()


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "MEMORY"])
def test_a_commit_waits_while_the_lease_is_handed_over(tmp_path: Path, mode: str) -> None:
    with serving(tmp_path, grace=GRACE) as fs, Client("sql", "sqlite3") as client:
        begun(client, fs, mode, INSERT)
        fs.send(Freeze(1))
        fs.expect(Frozen)
        client.send("execute", statement="COMMIT")
        with pytest.raises(ClientStuck):
            client.answer(GRACE / 3)
        fs.send(Thaw())
        client.answer()
        client.close()
        as_logged(fs, tmp_path, rows=2)
        fs.stop()


@pytest.mark.parametrize("end", [SetRole(Role.REPLICA, term=1), None], ids=["demoted", "forgotten"])
@pytest.mark.parametrize("mode", ["WAL", "DELETE", "MEMORY"])
def test_a_commit_that_waited_is_refused_at_last(tmp_path: Path, mode: str, end: Message | None) -> None:
    with serving(tmp_path, grace=GRACE) as fs, Client("sql", "sqlite3") as client:
        begun(client, fs, mode, INSERT)
        fs.send(Freeze(1))
        fs.expect(Frozen)
        client.send("execute", statement="COMMIT")
        if end is not None:
            time.sleep(GRACE / 5)
            fs.send(end)
        with pytest.raises(ClientError, match=r"disk I/O error|readonly"):
            client.answer()
        client.close()
        as_logged(fs, tmp_path, rows=1)
        fs.stop()


@pytest.mark.parametrize("late", [GRACE / 3, 2 * GRACE], ids=["within", "beyond"])
def test_a_commit_after_the_deadline_waits_for_it_to_move(tmp_path: Path, late: float) -> None:
    with serving(tmp_path, grace=GRACE) as fs, Client("sql", "sqlite3") as client:
        begun(client, fs, "WAL", INSERT)
        client.call("script", statements=["COMMIT", "BEGIN IMMEDIATE", INSERT])
        fs.become(Role.PRIMARY, boottime_ns() + 10**8)
        time.sleep(0.2)
        began = time.monotonic()
        client.send("execute", statement="COMMIT")
        with pytest.raises(ClientStuck):
            client.answer(min(late, GRACE / 2))
        if late < GRACE:
            fs.send(Deadline(boottime_ns() + 10**11))
            client.answer()
        else:
            with pytest.raises(ClientError, match="disk I/O error"):
                client.answer()
            assert time.monotonic() - began < GRACE + 1
            fs.become(Role.PRIMARY)
        client.close()
        as_logged(fs, tmp_path, rows=3 if late < GRACE else 2)
        fs.stop()


@pytest.mark.parametrize("end", ["demoted", "deadline", "moved"])
def test_a_sync_after_the_role_does_not_confirm_a_commit(tmp_path: Path, end: str) -> None:
    """The last frame was answered in time, but COMMIT returns only after the sync that follows."""
    with serving(tmp_path, grace=GRACE) as fs, Client("failing") as client:
        client.call("open", path=str(fs.mount / "a.db"))
        script = ["PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE t(a)", INSERT]
        client.call("script", statements=[*script, "BEGIN IMMEDIATE", INSERT])
        client.call("break_next", cause="late")
        client.send("execute", statement="COMMIT")
        time.sleep(LATE_SECONDS / 2)
        if end == "demoted":
            fs.send(SetRole(Role.REPLICA, term=1))
        else:
            fs.become(Role.PRIMARY, boottime_ns())
        if end == "moved":
            time.sleep(LATE_SECONDS)
            fs.send(Deadline(boottime_ns() + 10**11))
            client.answer()
        else:
            with pytest.raises(ClientError, match="disk I/O error"):
                client.answer()
        client.close()
        as_logged(fs, tmp_path, rows=2)  # it is in the log: its outcome was open
        fs.stop()
