"""Roles that change in running nodes, in place, while applications keep their connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from litefs.cli.main import main
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, spawn, wait_until

COUNT = "SELECT count(*) FROM t"
INSERT = "INSERT INTO t(a) VALUES(randomblob(3000))"
MODES = ["WAL", "DELETE"]
CHANGES = int(os.environ.get("LITEFS_CHANGES", "6"))
"""Of the random test."""


class Steered(Node):
    """A node whose role this test decides (tests/support/steered.py)."""

    def __init__(self, root: Path, name: str, **lease: Any) -> None:
        settings = {"type": "static", "candidate": True, "advertise-url": "http://127.0.0.1:9", **lease}
        super().__init__(root, name, lease=settings)
        self._socket = str(self.root / "steer")

    def launch(self, *command: str) -> subprocess.Popen[Any]:
        line = [sys.executable, "-m", "tests.support.steered", str(self.config), self._socket]
        with self.log.open("ab") as log:
            self.process = spawn(line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        return self.process

    def steer(self, *request: object, timeout: float = 20) -> Any:
        """One step of an election; its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(self._socket)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(connection.makefile().readline())
        assert "error" not in answer, f"{request}: {answer}\n{self.log_tail()}"
        return answer["result"]

    def wait_settled(self, timeout: float = 20) -> None:
        wait_until(
            lambda: self.steer("status")["settled"], timeout, f"{self.name} took its role\n{self.log_tail()}"
        )


class Pair:
    """Two nodes, the first one primary."""

    def __init__(self, one: Steered, other: Steered) -> None:
        self.primary, self.replica = one, other
        self.term = 0
        self.lead()

    def lead(self) -> None:
        """``primary`` leads the next term, ``replica`` follows it."""
        self.term += 1
        self.primary.steer("promote", self.term)
        self.replica.steer("follow", self.primary.url, self.term)

    def swap(self) -> None:
        """The planned change: the primary gives its role up when the replica says that it has everything."""
        target = self.replica.steer("status")["node_id"]
        wait_until(
            lambda: self.primary.steer("status")["successor"] == target, 10, "the replica acknowledges"
        )
        self.primary.steer("freeze")
        self.primary.steer("await", target)
        self.primary.steer("demote")
        self.primary, self.replica = self.replica, self.primary
        self.lead()

    def check(self, rows: int) -> None:
        """Both nodes have the same database, with that many rows."""
        self.replica.wait_settled()
        wait_equal(self.primary, self.replica, "a.db")
        pages_equal(self.primary, self.replica, "a.db")
        for node in (self.primary, self.replica):
            with sql(node, readonly=True) as client:
                assert client.call("execute", statement=COUNT) == [[rows]], node.log_tail()
                assert client.call("execute", statement="PRAGMA integrity_check") == [["ok"]]


@contextlib.contextmanager
def sql(node: Node, readonly: bool = False) -> Iterator[Client]:
    """A connection to ``a.db``."""
    with Client("sql", "sqlite3") as client:
        client.call("open", path=node.path("a.db"), readonly=readonly)
        yield client


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    nodes = [Steered(tmp_path, name, **{"demote-delay": "3s"}) for name in ("a", "b")]
    try:
        for node in nodes:
            node.start()
        yield Pair(*nodes)
        for node in nodes:
            node.stop()
    finally:
        for node in nodes:
            node.discard()


def create(pair: Pair, mode: str) -> None:
    with sql(pair.primary) as client:
        script = [f"PRAGMA journal_mode={mode}", "CREATE TABLE t(id INTEGER PRIMARY KEY, a)", INSERT]
        client.call("script", statements=script)
    wait_present(pair.replica, "a.db")


@pytest.mark.parametrize("mode", MODES)
def test_there_and_back_with_readers_and_writers_that_stay(pair: Pair, mode: str) -> None:
    create(pair, mode)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(sql(node)) for node in (pair.primary, pair.replica))
        readers = [stack.enter_context(sql(node, readonly=True)) for node in (pair.primary, pair.replica)]
        rows = 1
        for change in range(4):
            writer, other = (first, second) if change % 2 == 0 else (second, first)
            # A file of it was opened while its node was a replica, for reading: it has to be opened anew.
            if change == 1 or (change == 2 and mode == "DELETE"):
                with pytest.raises(ClientError, match="readonly"):
                    writer.call("execute", statement=INSERT)
                writer.call("open", path=pair.primary.path("a.db"))
            writer.call("script", statements=[INSERT, INSERT, "UPDATE t SET a = randomblob(2000)"])
            rows += 2
            with pytest.raises(ClientError):
                other.call("execute", statement=INSERT)
            wait_equal(pair.primary, pair.replica, "a.db")
            for reader in readers:
                assert reader.call("execute", statement=COUNT) == [[rows]]
            pair.swap()
        pair.check(rows)
        assert [pair.primary.steer("status")["restarts"], pair.replica.steer("status")["restarts"]] == [0, 0]


def test_a_reader_inside_its_transaction_stays_there(pair: Pair) -> None:
    create(pair, "WAL")
    with sql(pair.primary, readonly=True) as one, sql(pair.replica, readonly=True) as other:
        for reader in (one, other):
            reader.call("script", statements=["BEGIN", COUNT])
        with sql(pair.primary) as client:
            client.call("script", statements=[INSERT] * 5)
        pair.swap()
        with sql(pair.primary) as client:
            client.call("script", statements=[INSERT] * 5)
        pair.check(11)
        for reader in (one, other):
            assert reader.call("execute", statement=COUNT) == [[1]]
            reader.call("execute", statement="COMMIT")
            assert reader.call("execute", statement=COUNT) == [[11]]
        pair.swap()
        pair.check(11)
        assert [pair.primary.steer("status")["restarts"], pair.replica.steer("status")["restarts"]] == [0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_transaction_that_is_open_at_a_demotion_fails_and_leaves_nothing(pair: Pair, mode: str) -> None:
    create(pair, mode)
    with sql(pair.primary) as client:
        client.call("script", statements=["PRAGMA cache_size=5", "BEGIN IMMEDIATE", *[INSERT] * 50])
        old = pair.primary
        pair.swap()
        wait_until(lambda: bool(old.steer("status")["held_up"]), 5, "somebody is named")
        assert f"process {client.process.pid}" in (old.info() or {})["heldUp"][0]
        assert f"waits for a.db: process {client.process.pid}" in old.log.read_text()
        with pytest.raises(ClientError, match="disk I/O error"):
            client.call("execute", statement="COMMIT")
        old.wait_settled()
        with sql(pair.primary) as writer:
            writer.call("execute", statement=INSERT)
        pair.check(2)
        assert client.call("execute", statement=COUNT) == [[2]]
        assert "heldUp" not in (old.info() or {})
        assert old.steer("status")["restarts"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_who_sits_on_a_transaction_loses_its_connection(pair: Pair, mode: str) -> None:
    create(pair, mode)
    with sql(pair.primary) as client:
        client.call("script", statements=["PRAGMA cache_size=5", "BEGIN IMMEDIATE", *[INSERT] * 50])
        old = pair.primary
        pair.swap()
        old.wait_settled()
        assert old.steer("status")["restarts"] == 1
        assert f"because of a.db: process {client.process.pid}" in old.log.read_text()
        with pytest.raises(ClientError):
            client.call("execute", statement="COMMIT")
        pair.check(1)


@pytest.mark.parametrize("mode", MODES)
def test_the_fs_process_dies_in_a_demotion(pair: Pair, mode: str) -> None:
    create(pair, mode)
    victim = pair.primary
    with sql(victim) as client:
        client.call("script", statements=["PRAGMA cache_size=5", "BEGIN IMMEDIATE", *[INSERT] * 50])
        killed = victim.fs_pid()
        pair.swap()
        victim.kill("fs")
        with pytest.raises(ClientError):
            client.call("execute", statement="COMMIT")
    victim.wait_recovered(killed)
    with sql(pair.primary) as client:
        client.call("execute", statement=INSERT)
    pair.check(2)


@pytest.mark.parametrize("mode", MODES)
def test_the_fs_process_dies_in_a_promotion(pair: Pair, mode: str) -> None:
    create(pair, mode)
    victim = pair.replica
    wait_equal(pair.primary, victim, "a.db")
    pair.primary.steer("demote")
    killed = victim.fs_pid()
    killer = threading.Thread(target=victim.kill, args=("fs",))
    killer.start()
    pair.primary, pair.replica = victim, pair.primary
    pair.lead()
    killer.join()
    victim.wait_recovered(killed)
    with sql(victim) as client:
        client.call("execute", statement=INSERT)
    pair.check(2)


@pytest.mark.parametrize("mode", MODES)
def test_what_only_the_old_primary_has_is_kept_aside(
    pair: Pair, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    create(pair, mode)
    wait_equal(pair.primary, pair.replica, "a.db")
    pair.replica.steer("follow", None, pair.term)
    with sql(pair.primary) as client, sql(pair.primary, readonly=True) as reader:
        client.call("script", statements=[INSERT] * 3)
        had = client.call("execute", statement="SELECT id, hex(a) FROM t")
        pair.primary.steer("demote")
        pair.primary, pair.replica = pair.replica, pair.primary
        pair.lead()
        with sql(pair.primary) as writer:
            writer.call("script", statements=[INSERT] * 3)
        pair.check(4)
        assert reader.call("execute", statement=COUNT) == [[4]]
        with pytest.raises(ClientError):
            client.call("execute", statement=INSERT)
    (kept,) = (pair.replica.data / "lost").glob("*-diverged")
    # As docs/disaster-recovery.md says.
    now, old = (str(pair.replica.root / name) for name in ("now.db", "old.db"))
    assert main(["export", "-url", pair.primary.url, "-name", "a.db", now]) == 0
    assert main(["lost", "salvage", "-base", now, str(kept), old]) == 0
    assert "exactly" in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect(old)) as salvaged:
        assert [[*row] for row in salvaged.execute("SELECT id, hex(a) FROM t")] == had


def test_who_begins_a_transaction_on_a_demoted_node_loses_its_connection(pair: Pair) -> None:
    create(pair, "WAL")
    with sql(pair.primary) as client:
        client.call("execute", statement=COUNT)
        pair.swap()
        pair.replica.wait_settled()
        client.call("execute", statement="BEGIN IMMEDIATE")
        with sql(pair.primary) as writer:
            writer.call("execute", statement=INSERT)
        wait_equal(pair.primary, pair.replica, "a.db", timeout=40)
        assert pair.replica.steer("status")["restarts"] == 1
        pair.check(2)


def test_a_stale_primary_is_not_followed(pair: Pair) -> None:
    """Neither by its stream, which ends with its role, nor by a new one, from when a later term is known."""
    create(pair, "WAL")

    def follows() -> bool:
        info = pair.replica.info()
        return info is not None and "primary" in info

    wait_until(follows, 5, "the replica follows")
    pair.replica.steer("follow", pair.primary.url, pair.term + 3)
    wait_until(
        lambda: f"the replica has seen term {pair.term + 3}" in pair.replica.log.read_text(), 5, "a refusal"
    )
    assert not follows()
    pair.primary.steer("promote", pair.term + 3)
    wait_until(follows, 5, "the replica follows again")
    pair.primary.steer("demote")
    wait_until(lambda: not follows(), 2, "the stream ended")


def test_commits_wait_while_frozen(pair: Pair) -> None:
    create(pair, "WAL")
    with sql(pair.primary) as client:
        pair.primary.steer("freeze")
        client.send("execute", statement=INSERT)
        before = wait_equal(pair.primary, pair.replica, "a.db")
        pair.primary.steer("thaw")
        client.answer()
        assert wait_equal(pair.primary, pair.replica, "a.db").txid == before.txid + 1


def test_an_import_that_outlives_its_primary_changes_nothing(pair: Pair) -> None:
    """Its upload begins while the node is primary and ends when it is none any more."""
    create(pair, "WAL")
    source = pair.primary.root / "source.db"
    with contextlib.closing(sqlite3.connect(source)) as db:
        db.execute("CREATE TABLE other(a)")
    body = source.read_bytes()
    node = pair.primary
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)) as upload:
        upload.putrequest("POST", "/import?name=a.db")
        upload.putheader("Content-Length", str(len(body)))
        upload.endheaders(body[:-1])
        wait_until(lambda: any((node.data / "tmp").iterdir()), 5, "the upload begins")
        pair.swap()
        node.wait_settled()
        upload.send(body[-1:])
        answer = upload.getresponse()
        assert (answer.status, answer.read()[:13]) == (503, b"import failed")
    pair.check(1)


class Writer:
    """A connection to each node that stays open as long as it can; counts what was acknowledged."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._clients: dict[str, Client] = {}
        self._number = 0
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()

    def write(self, node: Node, *, patient: bool = True) -> None:
        """One transaction, tried until it is acknowledged if ``patient``. What fails may still exist."""
        deadline = time.monotonic() + 20
        while True:
            self._number += 1
            try:
                self._attempt(node, self._number)
            except ClientError:
                self.unknown.add(self._number)
                self.close(node.name)
                if not patient:
                    return
                assert time.monotonic() < deadline, f"nothing is taken\n{node.log_tail()}"
                time.sleep(0.05)
            else:
                self.acknowledged.add(self._number)
                return

    def _attempt(self, node: Node, number: int) -> None:
        client = self._clients.get(node.name)
        if client is None:
            client = self._clients[node.name] = Client("sql", self._rng.choice(["sqlite3", "apsw"]))
            client.call("open", path=node.path("a.db"), timeout=2)
            client.call("execute", statement=f"PRAGMA cache_size={self._rng.choice([5, 1000])}")
        size = self._rng.choice([10, 3000, 60_000])
        statements = [f"INSERT INTO t(n, a) VALUES({number}, randomblob({size}))"]
        if self._rng.random() < 0.3:
            statements = [
                "BEGIN IMMEDIATE",
                *statements,
                "UPDATE t SET a = randomblob(50) WHERE n % 3 = 0",
                "COMMIT",
            ]
        client.call("script", 30, statements=statements)

    def close(self, name: str) -> None:
        client = self._clients.pop(name, None)
        if client is not None:
            client.close()

    def close_all(self) -> None:
        for name in list(self._clients):
            self.close(name)


@pytest.mark.parametrize("mode", MODES)
def test_random_changes_lose_no_acknowledged_commit(pair: Pair, mode: str) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 32)))
    print(f"LITEFS_SEED={seed}")
    rng = random.Random(seed)
    writer = Writer(rng)
    with sql(pair.primary) as client:
        client.call("script", statements=[f"PRAGMA journal_mode={mode}", "CREATE TABLE t(n INTEGER, a)"])
    wait_present(pair.replica, "a.db")
    with contextlib.ExitStack() as stack:
        stack.callback(writer.close_all)
        holder: Client | None = None
        for _ in range(CHANGES):
            for _ in range(rng.randrange(1, 8)):
                writer.write(pair.primary)
            match rng.choice(["swap", "swap", "open", "read", "kill", "stale"]):
                case "open":
                    holder = stack.enter_context(sql(pair.primary))
                    holder.call("script", statements=["PRAGMA cache_size=5", "BEGIN IMMEDIATE"])
                    holder.call("script", statements=["INSERT INTO t(n, a) VALUES(-1, randomblob(9000))"] * 9)
                    pair.swap()
                    if rng.random() < 0.7:
                        with contextlib.suppress(ClientError):
                            holder.call("execute", statement=rng.choice(["COMMIT", "ROLLBACK"]))
                    holder.close()
                case "read":
                    pair.replica.wait_settled()  # a mount may be made anew until then
                    for node in (pair.primary, pair.replica):
                        stack.enter_context(sql(node, readonly=True)).call(
                            "script", statements=["BEGIN", "SELECT count(*) FROM t"]
                        )
                    pair.swap()
                case "kill":
                    victim = rng.choice([pair.primary, pair.replica])
                    killed = victim.fs_pid()
                    victim.kill("fs")
                    victim.wait_recovered(killed)
                    pair.swap()
                case "stale":
                    pair.swap()
                    writer.write(pair.replica, patient=False)
                case _:
                    pair.swap()
        pair.replica.wait_settled()
        writer.write(pair.primary)
    wait_equal(pair.primary, pair.replica, "a.db", timeout=40)
    pages_equal(pair.primary, pair.replica, "a.db")
    with sql(pair.replica, readonly=True) as client:
        assert client.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
        found = {row[0] for row in client.call("execute", statement="SELECT n FROM t")}
    assert writer.acknowledged <= found, sorted(writer.acknowledged - found)
    assert found <= writer.acknowledged | writer.unknown, sorted(found - writer.acknowledged)
