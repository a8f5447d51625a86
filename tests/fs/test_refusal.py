"""Commits refused in WAL mode: the same transaction again, checkpoints and other writers afterwards."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from litefs.types import Role
from tests.fs.harness import python, serving
from tests.fs.replay import rebuilt

CLIENT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA cache_size=5")
db.execute("CREATE TABLE IF NOT EXISTS t(a, b)")
print("ready", flush=True)
for line in sys.stdin:
    statements = line.strip().split(";")
    try:
        for statement in statements:
            db.execute(statement).fetchall()
        print("done", flush=True)
    except sqlite3.OperationalError as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        print(error, flush=True)
"""
QUERY = "SELECT count(*), total(a), total(length(b)) FROM t"
SUM = f"import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('{QUERY}').fetchone())"


@pytest.mark.parametrize("size", [10, 3000, 3_000_000])
def test_refused_then_repeated(tmp_path: Path, size: int) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    log = DataDir(tmp_path / "data").database_dir("a.db").log
    with serving(tmp_path) as fs:
        path = fs.mount / "a.db"
        python("import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA journal_mode=WAL')", path)
        command = [sys.executable, "-c", CLIENT, str(path)]
        pipe = subprocess.PIPE
        clients = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]

        def ask(client: subprocess.Popen[str], line: str) -> str:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(line + "\n")
            client.stdin.flush()
            return client.stdout.readline().strip()

        try:
            for client in clients:
                assert client.stdout is not None
                assert client.stdout.readline() == "ready\n"
            rows = 0
            for step in range(8):
                rows += 1
                statement = f"BEGIN IMMEDIATE;INSERT INTO t VALUES({step}, zeroblob({size}));COMMIT"
                fs.become(Role.PRIMARY, deadline_ns=1)
                for _ in range(rng.randrange(1, 4)):
                    assert ask(clients[0], statement) == "disk I/O error"
                if rng.random() < 0.3:
                    assert ask(clients[1], "PRAGMA wal_checkpoint(PASSIVE)") == "done"
                if rng.random() < 0.5:
                    other = f"INSERT INTO t VALUES({step}, zeroblob({size // 2}))"
                    assert ask(clients[1], other) == "disk I/O error"
                fs.become(Role.PRIMARY)
                if rng.random() < 0.5:
                    assert ask(clients[1], f"INSERT INTO t VALUES(0, zeroblob({size}))") == "done"
                    rows += 1
                assert ask(clients[0], statement) == "done"
                if rng.random() < 0.5:
                    mode = rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
                    assert ask(clients[1], f"PRAGMA wal_checkpoint({mode})") == "done"
                with_log = rebuilt(log, tmp_path / "rebuilt.db")
                expected = with_log.execute(QUERY).fetchone()
                with_log.close()
                assert python(SUM, path).strip() == " ".join(map(str, expected))
                assert expected[0] == rows
        finally:
            for client in clients:
                client.kill()
                client.communicate()
