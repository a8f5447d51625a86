"""HALT: a replica writes in the primary's place, and nothing of it is lost, repeated or half done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing

import httpx
import pytest

from litefs.halt.primary import HALT_SECONDS
from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.stream.handshake import request_headers
from litefs.stream.protocols import Identity
from litefs.types import START
from tests.support.clients.workload import INVARIANT, INVARIANT_HOLDS, schema
from tests.support.node import Node, Which, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, assert_none_hangs, pause, wait_until

ROUNDS = int(os.environ.get("LITEFS_SOAK", "6"))
PROGRESS_SECONDS = 60.0
"""Recovery, the end of a lock that died with its holder (30 s), and a commit."""


def prepared(primary: Node, replica: Node, mode: str, make_client: Callable[..., Client]) -> Client:
    """A client of the primary, with a database in that mode that both nodes have."""
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=primary.path("app.db"))
    sql.call("execute", statement=f"PRAGMA journal_mode={mode}")
    sql.call("execute", statement="CREATE TABLE t(id INTEGER PRIMARY KEY, who, value)")
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 0)")
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    return sql


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_migration_from_the_replica(
    mode: str, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, mode, make_client)
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"))
    assert reader.call("execute", statement="SELECT who FROM t") == [["primary"]]
    halting = make_client("halting")
    path = replica.path("app.db")
    halting.call("halt", 30, path=path)
    halting.call("open", path=path)
    halting.call("execute", statement="BEGIN")
    halting.call("execute", statement="ALTER TABLE t ADD COLUMN more DEFAULT 'x'")
    halting.call("execute", statement="INSERT INTO t(who, value) VALUES('replica', 1)")
    halting.call("execute", statement="COMMIT")
    halting.call("execute", statement="CREATE INDEX i ON t(who)")
    # acknowledged: the primary has it, and the replica
    assert sql.call("execute", statement="SELECT who, more FROM t") == [["primary", "x"], ["replica", "x"]]
    assert primary.position("app.db") == replica.position("app.db")
    assert reader.call("execute", statement="SELECT who, more FROM t") == [["primary", "x"], ["replica", "x"]]
    sql.call("execute", statement="PRAGMA busy_timeout=200")
    with pytest.raises(ClientError, match="database is locked"):
        sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")
    halting.call("unhalt", 30)
    sql.call("execute", statement="PRAGMA busy_timeout=5000")
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 2)")
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    rows = [["primary", 0], ["replica", 1], ["primary", 2]]
    assert reader.call("execute", statement="SELECT who, value FROM t ORDER BY id") == rows
    with pytest.raises(ClientError, match=r"disk I/O error|readonly"):
        halting.call("execute", statement="INSERT INTO t(who, value) VALUES('replica', 3)")
    assert sql.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
    wait_equal(primary, replica, "app.db")


class Writers:
    """A writer on the primary, one on the replica under HALT, and the files of what they were told."""

    def __init__(self, primary: Node, replica: Node, make_client: Callable[..., Client]) -> None:
        self.acks = {name: primary.root / f"{name}.acks" for name in ("there", "here")}
        for path in self.acks.values():
            path.touch()
        self.clients = {
            "there": make_client("ledger", "sqlite3", primary.path("app.db"), self.acks["there"], "there"),
            "here": make_client("halted_ledger", replica.path("app.db"), self.acks["here"], "here"),
        }

    def acknowledged(self, name: str) -> list[int]:
        text = self.acks[name].read_text(encoding="ascii")
        return [int(line) for line in text[: text.rfind("\n") + 1].split()]

    def wait_progress(self) -> None:
        before = {name: len(self.acknowledged(name)) for name in self.acks}
        for name, count in before.items():
            try:
                wait_until(
                    lambda name=name, count=count: len(self.acknowledged(name)) > count + 2,
                    PROGRESS_SECONDS,
                    f"the writer {name} commits",
                )
            except AssertionError as error:
                raise AssertionError(f"{error}: {self.clients[name].call('progress')}") from None

    def pause(self) -> None:
        for client in self.clients.values():
            client.call("pause", PROGRESS_SECONDS)

    def resume(self) -> None:
        for client in self.clients.values():
            client.call("resume")


def check_ledger(primary: Node, replica: Node, writers: Writers, make_client: Callable[..., Client]) -> None:
    """At rest: both nodes are equal, and hold each acknowledged commit."""
    wait_equal(primary, replica, "app.db", PROGRESS_SECONDS)
    pages_equal(primary, replica, "app.db")
    for node in (primary, replica):
        reader = make_client("sql", "sqlite3")
        reader.call("open", path=node.path("app.db"), readonly=True)
        assert reader.call("execute", statement=INVARIANT) == [[INVARIANT_HOLDS]]
        assert reader.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
        for name in writers.acks:
            rows = reader.call("execute", 30, statement=f"SELECT n FROM ledger WHERE writer='{name}'")
            missing = sorted(set(writers.acknowledged(name)) - {row[0] for row in rows})
            assert not missing, f"{name} lost {len(missing)} on {node.name}: {missing[:10]}"
        reader.close()


@pytest.mark.timeout(120 + 40 * ROUNDS)
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_kills_under_halt(
    mode: str, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.SystemRandom().randrange(2**31)))
    print(f"LITEFS_SEED={seed}")
    source = random.Random(seed)
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=primary.path("app.db"))
    ledger = "CREATE TABLE ledger(writer TEXT, n INTEGER, data BLOB, PRIMARY KEY(writer, n))"
    sql.call("script", statements=[f"PRAGMA journal_mode={mode}", *schema(), ledger])
    sql.close()
    wait_present(replica, "app.db")
    writers = Writers(primary, replica, make_client)
    writers.wait_progress()
    kinds: list[Which] = ["fs", "node", "both"]
    plan = [(node, which) for which in kinds for node in (primary, replica)]
    plan += [source.choice(plan) for _ in range(ROUNDS - len(plan))]
    source.shuffle(plan)
    for round_, (node, which) in enumerate(plan[:ROUNDS], 1):
        pause = source.uniform(0.05, 1.0)
        print(f"round {round_}: {which} of {node.name} after {pause:.3f} s")
        time.sleep(pause)
        fs_pid = node.fs_pid()
        node.kill(which)
        if which == "fs":
            node.wait_recovered(fs_pid)
        else:
            node.start()
        writers.wait_progress()
        writers.pause()
        check_ledger(primary, replica, writers, make_client)
        writers.resume()
        assert_none_hangs()
    for name, client in writers.clients.items():
        print(name, client.call("progress"), len(writers.acknowledged(name)))
        client.close()


def test_a_holder_that_was_paused_beyond_its_lock(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """The replica's processes stop in the middle of a transaction; the primary goes on without it."""
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, "WAL", make_client)
    halting = make_client("halting")
    halting.call("halt", 30, path=replica.path("app.db"))
    halting.call("open", path=replica.path("app.db"))
    halting.call("execute", statement="INSERT INTO t(who, value) VALUES('replica', 1)")
    halting.call("execute", statement="BEGIN IMMEDIATE")
    halting.call("execute", statement="INSERT INTO t(who, value) VALUES('late', 1)")
    assert replica.process is not None
    pause(replica.process.pid)
    try:
        begin = time.monotonic()
        sql.call("execute", statement="PRAGMA busy_timeout=45000")
        sql.call("execute", 60, statement="INSERT INTO t(who, value) VALUES('primary', 1)")
        waited = time.monotonic() - begin
    finally:
        replica.process.send_signal(signal.SIGCONT)
    print(f"the primary's writer waited {waited:.1f} s")
    assert waited < HALT_SECONDS + 10
    with pytest.raises(ClientError):
        halting.call("execute", 60, statement="COMMIT")
    halting.call("close", 30)
    with pytest.raises(ClientError, match="HaltLost"):
        halting.call("unhalt", 60)
    wait_equal(primary, replica, "app.db", 60)
    pages_equal(primary, replica, "app.db")
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"), readonly=True)
    rows = reader.call("execute", statement="SELECT who, value FROM t ORDER BY id")
    assert rows == [["primary", 0], ["replica", 1], ["primary", 1]]


def test_who_stays_in_a_transaction_loses_its_connection(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """The lock is given up, the transaction is not: it must not keep the replica from following for ever."""
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, "WAL", make_client)
    halting = make_client("halting")
    halting.call("halt", 30, path=replica.path("app.db"))
    halting.call("open", path=replica.path("app.db"))
    halting.call("execute", statement="BEGIN IMMEDIATE")
    halting.call("execute", statement="INSERT INTO t(who, value) VALUES('never', 1)")
    halting.call("unhalt", 30)
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")
    wait_equal(primary, replica, "app.db", 45)
    with pytest.raises(ClientError):
        halting.call("execute", statement="COMMIT")
    reader = make_client("sql", "sqlite3")
    reader.call("open", path=replica.path("app.db"), readonly=True)
    rows = [["primary", 0], ["primary", 1]]
    assert reader.call("execute", statement="SELECT who, value FROM t ORDER BY id") == rows
    pages_equal(primary, replica, "app.db")


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_long_session_under_halt(
    mode: str, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """More frames than SQLite checkpoints at, transactions beyond what is kept in memory, VACUUM, rollbacks.

    Under a reader that stays, and again after the primary went on.
    """
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, mode, make_client)
    path = replica.path("app.db")
    reader, halting = make_client("sql", "sqlite3"), make_client("halting")
    reader.call("open", path=path, readonly=True)
    reader.call("execute", statement="BEGIN")
    assert reader.call("execute", statement="SELECT count(*) FROM t") == [[1]]
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{}) "
    for round_ in range(2):
        halting.call("halt", 30, path=path)
        halting.call("open", path=path)
        for part in range(4):
            statement = (
                many.format(400) + f"INSERT INTO t(who, value) SELECT 'r{part}', randomblob(3000) FROM n"
            )
            halting.call("execute", 60, statement=statement)
        halting.call("execute", statement="BEGIN")
        halting.call("execute", statement="DELETE FROM t")
        halting.call("execute", statement="ROLLBACK")
        halting.call("execute", statement="BEGIN")
        halting.call("execute", statement="SAVEPOINT s")
        halting.call("execute", statement="UPDATE t SET value=0 WHERE who='r1'")
        halting.call("execute", statement="ROLLBACK TO s")
        halting.call("execute", statement="UPDATE t SET who='kept' WHERE who='r0'")
        halting.call("execute", statement="COMMIT")
        big = many.format(6000) + "INSERT INTO t(who, value) SELECT 'big', randomblob(2000) FROM n"
        halting.call("execute", 60, statement=big)
        halting.call("execute", statement="DELETE FROM t WHERE who='big'")
        halting.call("execute", 60, statement="VACUUM")
        count = halting.call("execute", statement="SELECT count(*) FROM t")[0][0]
        halting.call("close")
        halting.call("unhalt", 30)
        assert count == 1601 * (round_ + 1)
        sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")
        wait_equal(primary, replica, "app.db", 60)
        pages_equal(primary, replica, "app.db")
        if round_ == 0:
            assert reader.call("execute", statement="SELECT count(*) FROM t") == [[1]]
            reader.call("execute", statement="COMMIT")
            assert reader.call("execute", statement="SELECT count(*) FROM t") == [[1602]]
    assert sql.call("execute", 30, statement="PRAGMA integrity_check") == [["ok"]]


def test_two_holders_take_turns_and_what_is_not_allowed(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, "WAL", make_client)
    sql.call("open", path=primary.path("other.db"))
    sql.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE o(a)"])
    wait_present(replica, "other.db")
    path = replica.path("app.db")
    first, second = make_client("halting"), make_client("halting")
    first.call("halt", 30, path=path)
    first.call("open", path=path)
    first.call("execute", statement="INSERT INTO t(who, value) VALUES('first', 1)")
    # another database of this replica is as it was
    other = make_client("sql", "sqlite3")
    other.call("open", path=replica.path("other.db"))
    with pytest.raises(ClientError, match="readonly"):
        other.call("execute", statement="INSERT INTO o VALUES(1)")
    second.send("halt", path=path)
    time.sleep(1)
    first.call("execute", statement="INSERT INTO t(who, value) VALUES('first', 2)")
    first.call("unhalt", 30)
    second.answer(30)
    second.call("open", path=path)
    second.call("execute", statement="INSERT INTO t(who, value) VALUES('second', 1)")
    # a connection from the lock before may go on while the lock is held
    first.call("execute", statement="INSERT INTO t(who, value) VALUES('first', 3)")
    second.call("unhalt", 30)
    for refused in (first, second):
        with pytest.raises(ClientError):
            refused.call("execute", statement="INSERT INTO t(who, value) VALUES('late', 1)")
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    sql.call("open", path=primary.path("app.db"))
    rows = sql.call("execute", statement="SELECT who, value FROM t ORDER BY id")
    assert rows == [["primary", 0], ["first", 1], ["first", 2], ["second", 1], ["first", 3]]
    with pytest.raises(ClientError, match="DatabaseNotFound"):
        first.call("halt", 30, path=replica.path("none.db"))
    # on the primary the lock is nothing
    first.call("halt", 30, path=primary.path("app.db"))
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")
    first.call("unhalt", 30)


SCRIPT = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(sys.argv[2]); db.commit(); db.close()"
)


def litefs_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "litefs.cli.main", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_with_the_lock(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, "WAL", make_client)
    path = replica.path("app.db")
    write = [sys.executable, "-c", SCRIPT, path, "INSERT INTO t(who, value) VALUES('command', 1)"]
    assert "readonly" in litefs_run("--", *write).stderr
    done = litefs_run("-with-halt-lock-on", path, "--", *write)
    assert (done.returncode, done.stderr) == (0, "")
    assert sql.call("execute", statement="SELECT who FROM t") == [["primary"], ["command"]]
    failed = litefs_run("-with-halt-lock-on", path, "--", sys.executable, "-c", "raise SystemExit(7)")
    assert (failed.returncode, failed.stderr) == (1, "ERROR: exit status 7\n")
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")  # the lock is gone
    missing = litefs_run("-with-halt-lock-on", replica.path("none.db"), "--", "true")
    assert (missing.returncode, missing.stderr) == (
        1,
        f"ERROR: database does not exist: {replica.path('none.db')}\n",
    )
    assert litefs_run("-with-halt-lock-on", path).returncode == 2
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")


def test_what_a_stranger_is_refused(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """The primary looks at who ships what: at role, name, id, node, term and position."""
    primary, replica = primary_and_replica
    sql = prepared(primary, replica, "WAL", make_client)
    halting = make_client("halting")
    halting.call("halt", 30, path=replica.path("app.db"))
    record = last_record(primary)
    stranger = request_headers(Identity(7, term=1, cluster_id=DataDir(primary.data).cluster_id() or ""))
    old = stranger | {"Litefs-Term": "0"}
    for method, url, headers, body, status in (
        ("POST", f"{primary.url}/halt?name=none.db&id=1", stranger, b"", 404),
        ("POST", f"{primary.url}/halt?name=../x&id=1", stranger, b"", 400),
        ("POST", f"{primary.url}/halt?name=app.db&id=0", stranger, b"", 400),
        ("POST", f"{primary.url}/halt?name=app.db&id=x", stranger, b"", 400),
        ("POST", f"{primary.url}/halt?name=app.db&id=1", old, b"", 409),
        ("POST", f"{primary.url}/halt?name=app.db&id=1&renew=1", stranger, b"", 409),
        ("POST", f"{replica.url}/halt?name=app.db&id=1", stranger, b"", 503),
        ("POST", f"{primary.url}/tx?name=app.db&lockID=1", {}, record, 400),
        ("POST", f"{primary.url}/tx?name=app.db&lockID=1", stranger, record, 409),
        ("POST", f"{primary.url}/tx?name=app.db&lockID=1", old, record, 409),
        ("POST", f"{replica.url}/tx?name=app.db&lockID=1", stranger, record, 503),
        ("DELETE", f"{primary.url}/halt?name=app.db&id=1", stranger, b"", 200),
        ("DELETE", f"{primary.url}/halt?name=none.db&id=1", stranger, b"", 200),
    ):
        assert httpx.request(method, url, headers=headers, content=body).status_code == status, url
    sql.call("execute", statement="PRAGMA busy_timeout=200")
    with pytest.raises(ClientError, match="database is locked"):  # none of it took the lock away
        sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")
    halting.call("unhalt", 30)
    # who has the lock ships what does not follow, or is damaged
    url = f"{primary.url}/halt?name=app.db&id=9"
    assert httpx.post(url, headers=stranger, timeout=30).json()["pos"]["TXID"] == f"{3:016x}"
    for body, status in ((record, 409), (record[:200], 409), (b"", 400), (bytes(200), 400)):
        ship = f"{primary.url}/tx?name=app.db&lockID=9"
        assert httpx.post(ship, headers=stranger, content=body, timeout=30).status_code == status
    assert httpx.delete(url, headers=stranger).status_code == 200
    sql.call("execute", statement="INSERT INTO t(who, value) VALUES('primary', 1)")
    wait_equal(primary, replica, "app.db")


def last_record(node: Node) -> bytes:
    """The LTX file of the last transaction of app.db."""
    with closing(LogReader(DataDir(node.data).database_dir("app.db").log)) as reader:
        assert reader.seek(START)
        *_, last = reader.read(3, 1 << 20)
        assert last.txid_max == 3
        return bytes(last.body)


def test_nodes_with_tokens(make_node: Callable[..., Node], make_client: Callable[..., Client]) -> None:
    """Clients of a node need no token at its socket; the node shows its own to the primary."""
    token = {"auth-token": "a-token-of-the-cluster"}
    primary = make_node("primary", http=token)
    replica = make_node("replica", primary=primary, http=token)
    for node in (primary, replica):
        node.headers = {"Authorization": f"Bearer {token['auth-token']}"}
        node.start()
    sql = prepared(primary, replica, "WAL", make_client)
    halting = make_client("halting")
    halting.call("halt", 30, path=replica.path("app.db"))
    halting.call("open", path=replica.path("app.db"))
    halting.call("execute", statement="INSERT INTO t(who, value) VALUES('replica', 1)")
    assert sql.call("execute", statement="SELECT who FROM t") == [["primary"], ["replica"]]
    halting.call("unhalt", 30)
    session = make_client("session")
    assert session.call("wait", path=replica.path("app.db"), txid=4, seconds=5).startswith(f"{4:016x}/")
