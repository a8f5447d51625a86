"""Transactions over several databases, seen from a replica, which applies each database by itself."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fs.attached import MAKE, MODES, TOTAL, Transfers
from tests.fs.harness import python
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import wait_until

NAMES = ("a.db", "b.db", "c.db")
KILLS = int(os.environ.get("LITEFS_SOAK", "30")) // 15
READ = """
import sqlite3, sys
path = sys.argv[1]
db, last, reads = None, 0, 0
print("ready", flush=True)
while True:
    try:
        db = db or sqlite3.connect("file:%s?mode=ro" % path, uri=True, isolation_level=None, timeout=5)
        query = "SELECT max(n), count(*), (SELECT count(*) FROM t) FROM history"
        newest, count, rows = db.execute(query).fetchone()
    except sqlite3.OperationalError:
        db = None
        continue
    assert ((newest or 0), rows) == (count, 10), (newest, count, rows)
    assert count >= last, (count, last)
    last, reads = count, reads + 1
    print(reads, last, flush=True)
"""


@pytest.mark.timeout(180)
def test_the_replica_follows(primary_and_replica: tuple[Node, Node], tmp_path: Path) -> None:
    """Every database has its own history in order; at rest, and after kills of the primary, all add up."""
    primary, replica = primary_and_replica
    seed = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    paths = [Path(primary.path(name)) for name in NAMES]
    python(MAKE, *(word for pair in zip(paths, MODES, strict=True) for word in pair))
    for name in NAMES:
        wait_present(replica, name)
    readers = [
        subprocess.Popen([sys.executable, "-c", READ, replica.path(name)], stdout=subprocess.PIPE, text=True)
        for name in NAMES
    ]
    transfers = Transfers(paths, rng, tmp_path / "clients.log")
    try:
        for _ in range(KILLS):
            _let_run(transfers, primary)
            time.sleep(rng.random())
            killed = primary.fs_pid()
            primary.kill("fs")
            transfers.kill_all()
            primary.wait_recovered(killed)
            assert python(TOTAL, *paths) == "3000\n"
        _let_run(transfers, primary)
    finally:
        transfers.kill_all()
        for reader in readers:
            reader.kill()
    assert python(TOTAL, *paths) == "3000\n"
    for reader in readers:
        output, _ = reader.communicate(timeout=10)
        assert reader.returncode == -9, "a reader saw what no state of the primary was"
        assert len(output.splitlines()) > 1
    for name in NAMES:
        wait_equal(primary, replica, name)
        pages_equal(primary, replica, name)
    assert python(TOTAL, *(replica.path(name) for name in NAMES)) == "3000\n"


def _let_run(transfers: Transfers, primary: Node) -> None:
    """Four processes, until ten of their transactions changed one of the databases."""
    for _ in range(4):
        transfers.start()
    before = primary.position(NAMES[1])
    assert before is not None
    wait_until(
        lambda: (primary.position(NAMES[1]) or before).txid >= before.txid + 10, 30, "ten transactions", 0.05
    )
