"""Connections that were open when the role changed: they see what is there, and write only while it may be."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litefs.link.messages import RoleSet
from litefs.store.paths import DataDir
from litefs.types import Role
from tests.fs.harness import Fs, serving
from tests.fs.replay import rebuilt
from tests.support.processes import Client, ClientError

COUNT = "SELECT count(*) FROM t"
INSERT = "INSERT INTO t VALUES(zeroblob(3000))"
EMPTY_WAL = "PRAGMA wal_checkpoint(TRUNCATE)"


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"])
def test_a_connection_from_before_writes_again_when_the_node_is_primary_again(
    tmp_path: Path, mode: str
) -> None:
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    with serving(tmp_path) as fs, Client("sql", "sqlite3") as writer, Client("sql", "apsw") as other:
        path = str(fs.mount / "a.db")
        writer.call("open", path=path)
        setup = [f"PRAGMA journal_mode={mode}", "CREATE TABLE t(a)", INSERT]
        writer.call("script", statements=setup)
        for rows in (1, 3):
            writer.call("execute", statement=EMPTY_WAL)
            writer.call("execute", statement="BEGIN IMMEDIATE")
            writer.call("execute", statement=INSERT)
            fs.fence()
            for statement in ("COMMIT", INSERT):
                with pytest.raises(ClientError):
                    writer.call("execute", statement=statement)
            with pytest.raises(ClientError):  # unless the failed COMMIT rolled it back
                writer.call("script", statements=["ROLLBACK", INSERT])
            fs.expect(RoleSet)
            assert other_reads(other, path) == [[rows]]
            assert writer.call("execute", statement=COUNT) == [[rows]]
            fs.become(Role.PRIMARY)
            writer.call("script", statements=[INSERT, INSERT])
            assert other_reads(other, path) == [[rows + 2]]
        with rebuilt(log, tmp_path / "rebuilt.db") as db:
            assert db.execute(COUNT).fetchone() == (5,)
        db.close()
        assert writer.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
        fs.stop()


def other_reads(client: Client, path: str) -> object:
    """What a new connection that only reads sees."""
    client.call("open", path=path, readonly=True)
    found = client.call("execute", statement=COUNT)
    client.call("close")
    return found


@pytest.mark.parametrize("role", [Role.NONE, Role.REPLICA])
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_connection_from_before_the_node_was_primary_sees_its_writes(
    tmp_path: Path, mode: str, role: Role
) -> None:
    with serving(tmp_path) as fs, Client("sql", "sqlite3") as old, Client("sql", "apsw") as new:
        path = str(fs.mount / "a.db")
        new.call("open", path=path)
        setup = [f"PRAGMA journal_mode={mode}", "CREATE TABLE t(a)", INSERT]
        new.call("script", statements=[*setup, EMPTY_WAL])
        fs.become(role)
        old.call("open", path=path)
        assert old.call("execute", statement=COUNT) == [[1]]
        with pytest.raises(ClientError, match="readonly"):
            old.call("execute", statement=INSERT)
        fs.become(Role.PRIMARY)
        new.call("execute", statement=INSERT)
        assert old.call("execute", statement=COUNT) == [[2]]
        with pytest.raises(ClientError, match="readonly"):  # as it was opened; it has to be opened anew
            old.call("execute", statement=INSERT)
        old.call("open", path=path)
        old.call("execute", statement=INSERT)
        assert new.call("execute", statement=COUNT) == [[3]]
        fs.stop()


def wal_after(fs: Fs, statement: str) -> bytes:
    """What the WAL of ``a.db`` would hold after a statement, were it run now."""
    aside = fs.data.parent / "aside"
    shutil.copytree(DataDir(fs.data).database_dir("a.db").path, aside)
    with closing(sqlite3.connect(aside / "database", isolation_level=None)) as db:
        db.execute(statement)
        return (aside / "database-wal").read_bytes()


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
def test_a_wal_whose_frames_are_in_the_log_is_taken_over(tmp_path: Path, checkpointed: bool) -> None:
    """Readers inside it go on reading what they saw, writers append, checkpoints are told from other writes."""
    with (
        serving(tmp_path) as fs,
        Client("sql", "sqlite3") as client,
        Client("sql", "apsw") as reader,
    ):
        path = str(fs.mount / "a.db")
        client.call("open", path=path)
        client.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", INSERT])
        reader.call("open", path=path, readonly=True)
        reader.call("execute", statement="BEGIN")
        assert reader.call("execute", statement=COUNT) == [[1]]
        client.call("script", statements=[INSERT, "DELETE FROM t WHERE rowid = 1", INSERT])
        if checkpointed:
            client.call("execute", statement="PRAGMA wal_checkpoint(PASSIVE)")
        fs.become(Role.REPLICA)
        fs.become(Role.PRIMARY)
        client.call("execute", statement=INSERT)
        assert reader.call("execute", statement=COUNT) == [[1]]
        reader.call("execute", statement="COMMIT")
        assert client.call("execute", statement=EMPTY_WAL) == [[0, 0, 0]]
        client.call("script", statements=[INSERT, "VACUUM", INSERT])
        assert reader.call("execute", statement=COUNT) == [[5]]
        log = DataDir(fs.data).database_dir("a.db").log
        with closing(rebuilt(log, tmp_path / "rebuilt.db")) as db:
            assert db.execute(COUNT).fetchone() == (5,)
        fs.stop()


@pytest.mark.parametrize(
    ("statement", "complaint"), [(INSERT, "the WAL ends at"), ("UPDATE t SET a = 1", "is not the log's")]
)
def test_a_wal_with_frames_that_are_not_in_the_log_is_not_written(
    tmp_path: Path, statement: str, complaint: str
) -> None:
    """Frames that somebody laid while the node was no primary: reads go on, writes are refused by name."""
    with serving(tmp_path) as fs, Client("sql", "sqlite3") as client:
        client.call("open", path=str(fs.mount / "a.db"))
        client.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", INSERT])
        alien = wal_after(fs, statement)
        fs.become(Role.REPLICA)
        DataDir(fs.data).database_dir("a.db").wal.write_bytes(alien)
        fs.become(Role.PRIMARY)
        with pytest.raises(ClientError, match="disk I/O error"):
            client.call("execute", statement=INSERT)
        assert client.call("execute", statement=COUNT) == [[1]]
        assert complaint in (tmp_path / "fs.log").read_text()
        fs.stop()
