"""Databases written without a journal, and files copied in, reach the replica; files that are none do not."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, wait_until


def test_the_replica_follows(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client], tmp_path: Path
) -> None:
    primary, replica = primary_and_replica
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with closing(sqlite3.connect(tmp_path / "source.db")) as db:
        db.execute("CREATE TABLE t(a)")
        db.executemany("INSERT INTO t VALUES(?)", [(rng.randbytes(500),) for _ in range(500)])
        db.commit()
    sql, reader = make_client("sql", "sqlite3"), make_client("sql", "sqlite3")
    for source, name in ((str(tmp_path / "source.db"), "app.db"), (shutil.__file__, "text")):
        primary.files("write", path=primary.path(name), content=Path(source).read_bytes().decode("latin-1"))
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    reader.call("open", path=replica.path("app.db"), readonly=True)
    assert reader.call("execute", statement="SELECT count(*) FROM t") == [[500]]

    sql.call("open", path=primary.path("app.db"))
    for rows, mode in enumerate(["MEMORY", "OFF", "DELETE", "MEMORY", "WAL", "OFF"], 501):
        before = primary.position("app.db")
        sql.call("execute", statement=f"PRAGMA journal_mode={mode}")
        sql.call("execute", statement=f"PRAGMA synchronous={rng.choice(['OFF', 'FULL'])}")
        sql.call("execute", statement=f"INSERT INTO t VALUES(randomblob({rng.randrange(9000)}))")
        expected = [[rows]]
        assert sql.call("execute", statement="SELECT count(*) FROM t") == expected
        wait_until(lambda before=before: primary.position("app.db") != before, 5, "the commit is logged")
        wait_equal(primary, replica, "app.db")
        pages_equal(primary, replica, "app.db")
    assert "text" not in replica.files("list", path=str(replica.mount))
