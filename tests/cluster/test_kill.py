"""``kill -9`` at random moments under load: nothing acknowledged is lost, both nodes converge, nothing hangs.

``LITEFS_SOAK`` sets the number of rounds, ``LITEFS_SEED`` repeats a schedule.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from litefs.fs.session import is_stale
from tests.support.clients.workload import INVARIANT, INVARIANT_HOLDS, schema
from tests.support.node import Node, Which, pages_equal, wait_equal, wait_present
from tests.support.processes import (
    Client,
    ClientError,
    assert_none_hangs,
    end,
    spawn,
    wait_until,
)

ROUNDS = int(os.environ.get("LITEFS_SOAK", "30"))
PROGRESS_SECONDS = 30.0
"""Recovery and the first commit after it; no statement may take more than 10 s of that (see ledger.py)."""
COMPARE_EVERY = 10
DATABASES = {"wal.db": "WAL", "delete.db": "DELETE"}
KINDS = {"wal.db": ("sqlite3", "apsw"), "delete.db": ("sqlite3", "shell")}

Target = Literal["fs", "node", "both", "app"]


@dataclass(slots=True)
class Writer:
    """One application process and the file of what it was told is committed."""

    name: str
    database: str
    kind: str
    acks: Path
    client: Client

    def acknowledged(self) -> set[int]:
        """Complete lines only: the process may be killed while it writes one."""
        text = self.acks.read_text(encoding="ascii")
        return {int(line) for line in text[: text.rfind("\n") + 1].split()}


class Scene:
    """A primary, a replica, writers on the primary, and what must hold after each kill."""

    def __init__(
        self, primary: Node, replica: Node, make_client: Callable[..., Client], random_source: random.Random
    ) -> None:
        self.primary = primary
        self.replica = replica
        self._make_client = make_client
        self._random = random_source
        self.writers: list[Writer] = []
        self.round = 0

    def set_up(self) -> None:
        for database, mode in DATABASES.items():
            sql = self._make_client("sql", "sqlite3")
            sql.call("open", path=self.primary.path(database))
            ledger = "CREATE TABLE ledger(writer TEXT, n INTEGER, data BLOB, PRIMARY KEY(writer, n))"
            marker = "CREATE TABLE marker(round INTEGER PRIMARY KEY)"
            statements = [f"PRAGMA journal_mode={mode}", *schema(), ledger, marker]
            sql.call("script", statements=statements)
            sql.close()
            wait_present(self.replica, database)
        for database, kinds in KINDS.items():
            for number, kind in enumerate(kinds):
                name = f"{database}-{number}"
                acks = self.primary.root / f"{name}.acks"
                acks.touch()
                self.writers.append(
                    Writer(name, database, kind, acks, self._start(kind, database, acks, name))
                )

    def _start(self, kind: str, database: str, acks: Path, name: str) -> Client:
        return self._make_client("ledger", kind, self.primary.path(database), acks, name)

    def open_old(self) -> list[tuple[Node, str, Client]]:
        """Connections on both nodes that have read every database: their caches are warm."""
        old = []
        for node in (self.primary, self.replica):
            for database in DATABASES:
                client = self._make_client("sql", self._random.choice(["sqlite3", "apsw"]))
                client.call("open", path=node.path(database), readonly=node is self.replica)
                client.call("execute", statement="SELECT count(*), max(n) FROM ledger")
                client.call("execute", statement="SELECT max(round) FROM marker")
                old.append((node, database, client))
        return old

    def kill(self, node: Node, target: Target) -> None:
        """Kill, and bring back what does not come back by itself."""
        if target == "app":
            writer = self._random.choice(self.writers)
            writer.client.close()
            writer.client = self._start(writer.kind, writer.database, writer.acks, writer.name)
            return
        which: Which = target
        fs_pid = node.fs_pid()
        node.kill(which)
        if which == "fs":
            node.wait_recovered(fs_pid)
        else:
            node.start()
        assert not is_stale(node.mount)

    def wait_progress(self) -> None:
        """Every writer gets a commit acknowledged that it had not before."""
        waiting = {writer.name: (writer, len(writer.acknowledged())) for writer in self.writers}

        def all_moved() -> bool:
            for writer, before in list(waiting.values()):
                status = writer.client.process.poll()
                assert status is None, f"writer {writer.name} ended with status {status} (3: stuck)"
                if len(writer.acknowledged()) > before:
                    del waiting[writer.name]
            return not waiting

        try:
            wait_until(all_moved, PROGRESS_SECONDS, "every writer commits again")
        except AssertionError as error:
            states = {name: writer.client.call("progress") for name, (writer, _) in waiting.items()}
            raise AssertionError(f"{error}; waiting: {states}") from None

    def check(self, old: list[tuple[Node, str, Client]], compare: bool) -> None:
        """At rest: both nodes hold all that was acknowledged and agree; old connections do not lie."""
        for writer in self.writers:
            writer.client.call("pause", 15)
        for database in DATABASES:
            self._mark(database)
            wait_equal(self.primary, self.replica, database)
            for node in (self.primary, self.replica):
                self._check_content(node, database)
            if compare:
                pages_equal(self.primary, self.replica, database)
        for node, database, client in old:
            self._check_old(node, database, client)
        for writer in self.writers:
            writer.client.call("resume")

    def _mark(self, database: str) -> None:
        with Client("sql", "sqlite3") as client:
            client.call("open", path=self.primary.path(database))
            client.call("execute", statement=f"INSERT INTO marker VALUES({self.round})")

    def _check_content(self, node: Node, database: str) -> None:
        with Client("sql", "sqlite3") as client:
            client.call("open", path=node.path(database), readonly=True)
            assert client.call("execute", statement=INVARIANT) == [[INVARIANT_HOLDS]]
            assert client.call("execute", statement="PRAGMA quick_check") == [["ok"]]
            for writer in self.writers:
                if writer.database != database:
                    continue
                statement = f"SELECT n FROM ledger WHERE writer='{writer.name}'"
                present = {row[0] for row in client.call("execute", 30, statement=statement)}
                missing = sorted(writer.acknowledged() - present)
                assert not missing, f"{writer.name} lost {len(missing)} on {node.name}: {missing[:10]}"

    def _check_old(self, node: Node, database: str, client: Client) -> None:
        """A connection from before the kill fails or sees the present; never the past."""
        try:
            answer = client.call("execute", 10, statement="SELECT max(round) FROM marker")
        except ClientError:
            return
        finally:
            client.close()
        assert answer == [[self.round]], f"old connection to {database} on {node.name} answers {answer}"


@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_killed_processes_lose_nothing(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.SystemRandom().randrange(2**31)))
    print(f"LITEFS_SEED={seed}")
    source = random.Random(seed)
    primary, replica = primary_and_replica
    scene = Scene(primary, replica, make_client, source)
    scene.set_up()
    # Each kind of kill on each node comes up, in a random order; what is over is drawn at random.
    plan: list[tuple[Node, Target]] = [
        (node, target) for target in ("fs", "node", "both") for node in (primary, replica)
    ]
    plan.append((primary, "app"))
    plan += [source.choice(plan) for _ in range(ROUNDS - len(plan))]
    source.shuffle(plan)
    for scene.round, (node, target) in enumerate(plan[:ROUNDS], 1):
        pause = source.uniform(0.02, 0.4)
        print(f"round {scene.round}: {target} of {node.name} after {pause:.3f} s")
        old = scene.open_old()
        time.sleep(pause)
        scene.kill(node, target)
        scene.wait_progress()
        scene.check(old, compare=scene.round % COMPARE_EVERY == 0 or scene.round == ROUNDS)
        assert_none_hangs()
    for writer in scene.writers:
        assert writer.client.call("progress")["acknowledged"] > 0
        writer.client.close()


def test_writer_is_told_apart_from_a_stuck_one(tmp_path: Path, make_client: Callable[..., Client]) -> None:
    """What the kill test relies on, on a plain directory: a held lock is an error to the writer, no hang."""
    database = tmp_path / "plain.db"
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=str(database))
    ledger = "CREATE TABLE ledger(writer TEXT, n INTEGER, data BLOB, PRIMARY KEY(writer, n))"
    sql.call("script", statements=["PRAGMA journal_mode=WAL", *schema(), ledger])
    acks = tmp_path / "acks"
    writer = make_client("ledger", "apsw", database, acks, "w")
    wait_until(lambda: acks.exists() and len(acks.read_text().split()) > 5, 10, "the writer commits")
    writer.call("pause")
    count = len(acks.read_text().split())
    assert sql.call("execute", statement="SELECT count(*) FROM ledger") == [[count]]
    writer.call("resume")
    sql.call("execute", statement="BEGIN IMMEDIATE")
    wait_until(
        lambda: int(writer.call("progress")["errors"]) > 0, 10, "a busy database is an error, not a hang"
    )
    sql.call("execute", statement="COMMIT")
    wait_until(lambda: len(acks.read_text().split()) > count, 10, "the writer goes on")


def test_process_ends_with_its_group() -> None:
    process = spawn(["sh", "-c", "sleep 60 & wait"])
    end(process)
    assert process.returncode == -9
    assert_none_hangs(0.1)
