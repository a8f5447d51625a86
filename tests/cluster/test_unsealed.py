"""A client dies on a WAL whose chain SQLite broke (litefs/capture/unsealed.py): the log has lost nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.fs.test_unsealed import ROWS, WORKLOAD
from tests.support.node import Node, wait_equal
from tests.support.processes import wait_until

READ = f"""
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute("{ROWS}"):
    print(*row)
"""


def read(path: Path) -> str:
    """What a fresh connection sees, or the error it gets."""
    result = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=20, check=False
    )
    return result.stdout if result.returncode == 0 else result.stderr


def test_a_client_that_dies_on_a_broken_wal_loses_nothing(
    primary_and_replica: tuple[Node, Node],
) -> None:
    primary, replica = primary_and_replica
    first = int(os.environ.get("LITEFS_SEED", random.randrange(1 << 30)))
    for seed in range(first, first + 4):
        print(f"seed {seed}")
        client = subprocess.run(
            [sys.executable, "-c", WORKLOAD, str(primary.path("app.db")), str(seed), "killed"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert client.returncode == -9, client.stderr
        expected = client.stdout
        wait_until(
            lambda expected=expected: read(primary.path("app.db")) == expected,
            20,
            "the primary shows all commits",
        )
        wait_equal(primary, replica, "app.db", 20)
        assert read(replica.path("app.db")) == client.stdout
