"""Everything at once that may happen to databases on a mount; then the replica has to hold the same.

``LITEFS_SEED`` repeats a schedule, ``LITEFS_SOAK`` sets its length.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from tests.support.node import Node, pages_equal, wait_equal
from tests.support.processes import ROOT, Client, ClientError, end, spawn, wait_until

SECONDS = 6.0 * int(os.environ.get("LITEFS_SOAK", "30")) / 30
CLIENTS = 4
STUCK_SECONDS = 60.0


def make_sources(directory: Path, rng: random.Random) -> None:
    directory.mkdir()
    for mode, rows in (("DELETE", 30), ("WAL", 200), ("DELETE", 1500)):
        with closing(sqlite3.connect(directory / f"{rows}.db", isolation_level=None)) as db:
            db.execute(f"PRAGMA journal_mode={mode}")
            db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b BLOB)")
            db.execute("BEGIN")
            values = ((rng.random(), rng.randbytes(700)) for _ in range(rows))
            db.executemany("INSERT INTO t(a, b) VALUES (?, ?)", values)
            db.execute("COMMIT")


def finish(process: subprocess.Popen[str]) -> None:
    """A client ends by itself, or by a signal: its own, or SIGBUS from the map of a mount that died."""
    output, _ = process.communicate(timeout=STUCK_SECONDS)
    assert process.returncode in (0, -signal.SIGKILL, -signal.SIGBUS), output
    print(output.strip())


def run_clients(primary: Node, sources: Path, rng: random.Random, *, kills: bool) -> None:
    """Keep some clients at work; now and then end the fs process under them."""
    until = time.monotonic() + SECONDS
    next_kill = time.monotonic() + rng.uniform(1, 3)
    running: list[subprocess.Popen[str]] = []
    try:
        while (left := until - time.monotonic()) > 0:
            for process in [process for process in running if process.poll() is not None]:
                running.remove(process)
                finish(process)
            while len(running) < CLIENTS:
                words = [primary.mount, sources, rng.randrange(1 << 30), left]
                command = [sys.executable, "-m", "tests.support.clients.mixture", *map(str, words)]
                running.append(
                    spawn(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                )
            if kills and time.monotonic() > next_kill:
                next_kill = time.monotonic() + rng.uniform(2, 4)
                if (pid := primary.fs_pid()) is not None:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in running:
            finish(process)
    finally:
        for process in running:
            end(process)


def settle(primary: Node, name: str, sql: Client, source: Path) -> None:
    """Let SQLite roll back what killed clients left. What it cannot write (half a copy, or what a client
    killed with journal_mode=OFF left) is replaced.
    """
    try:
        sql.call("open", path=primary.path(name))
        sql.call("execute", statement="CREATE TABLE IF NOT EXISTS settled(a)")
        sql.call("close")
    except ClientError as error:
        print(f"{name}: {error}")
        sql.call("close")
        primary.files("unlink", path=primary.path(name))
        primary.files("write", path=primary.path(name), content=source.read_bytes().decode("latin-1"))


@pytest.mark.parametrize("kills", [False, True], ids=["in peace", "with kills"])
def test_a_mixture_of_everything(
    make_node: Callable[..., Node], make_client: Callable[..., Client], tmp_path: Path, kills: bool
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    make_sources(tmp_path / "sources", rng)
    primary = make_node("primary").start()
    replica = make_node("replica", primary=primary).start()
    run_clients(primary, tmp_path / "sources", rng, kills=kills)
    primary.wait_ready()
    held = DataDir(primary.data).names()
    sql = make_client("sql", "sqlite3")
    for name in held:
        settle(primary, name, sql, tmp_path / "sources" / "200.db")
        wait_equal(primary, replica, name)
        pages_equal(primary, replica, name)
    wait_until(lambda: set(DataDir(replica.data).names()) <= set(held), 20, "what was removed goes")
    for node in (primary, replica):
        before, _, trace = node.log.read_text().partition("Traceback")
        assert not trace, f"{before[-1000:]}Traceback{trace[:5000]}"
