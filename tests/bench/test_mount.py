"""On real mounts: a primary and a replica under load, and what Go's flags do there."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from pathlib import Path

import pytest

from litefs.bench.session import NAME
from tests.bench.support import bench, measured, started
from tests.support.node import Node, wait_present
from tests.support.processes import end, wait_until


def test_workloads_on_a_primary_and_a_replica(primary_and_replica: tuple[Node, Node], tmp_path: Path) -> None:
    primary, replica = primary_and_replica
    found = measured("insert", "-compare", tmp_path, primary.mount)
    assert [target["fileSystem"] == "fuse.litefs" for target in found["targets"]] == [True, False]
    assert all(target["checked"] for target in found["targets"])
    assert found["ratio"]["median"] > 0
    assert measured("large", primary.mount)["targets"][0]["checked"]
    left = primary.files("list", path=str(primary.mount))
    assert not [name for name in left if name.startswith(NAME)]

    measured("read", "-keep", primary.mount)
    wait_present(replica, NAME, 20)
    wait_until(lambda: primary.position(NAME) == replica.position(NAME), 20, "the replica has the rows")
    (target,) = measured("read", "-reuse", replica.mount)["targets"]
    assert target["kinds"]["read"]["rate"]["median"] > 0
    assert target["checked"]
    refused = bench("insert", "-name", "other.db", replica.mount)
    assert refused.returncode == 1
    assert "Read-only file system; is this a replica's mount? Write on the primary's" in refused.stderr
    _measure_lag_and_catching_up(primary, replica)


def _measure_lag_and_catching_up(primary: Node, replica: Node) -> None:
    (target,) = measured("lag", "-replica", replica.mount, "-rate", "200", primary.mount)["targets"]
    assert target["checked"], "on the replica too"
    commits, visible = (target["kinds"][kind]["latency"] for kind in ("commit", "visible"))
    assert commits["count"] + sum(each["unstarted"] for each in target["rounds"]) == 40
    assert visible["count"] == commits["count"]
    assert visible["max"] < 20

    # A replica whose node process is stopped has nothing of what is written meanwhile.
    assert replica.process is not None
    pid = replica.process.pid
    words = ("-pause", f"kill -STOP {pid}", "-resume", f"kill -CONT {pid}")
    (target,) = measured("catch-up", "-replica", replica.mount, *words, primary.mount)["targets"]
    assert target["checked"], "on the replica too"
    for each in target["rounds"]:
        figures = each["other"]
        assert figures["transactions behind"] == each["kinds"]["commit"]["latency"]["count"] > 0
        rate = figures["transactions behind"] / figures["seconds to catch up"]
        assert figures["transactions/s while catching up"] == pytest.approx(rate)


def test_catching_up_needs_mounts(tmp_path: Path) -> None:
    done = bench("catch-up", "-replica", tmp_path, "-duration", "100ms", tmp_path)
    assert done.returncode == 1
    assert "database not found; catch-up needs two mounts of LiteFS" in done.stderr
    assert list(tmp_path.iterdir()) == []


def rows(path: str | Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM t").fetchone()
        return int(count)


def test_the_flags_of_go(primary_and_replica: tuple[Node, Node]) -> None:
    """The same command on the primary, and on a replica, where it writes under HALT."""
    primary, replica = primary_and_replica
    words = ("-seed", "7", "-max-row-size", "50", "-max-rows-per-iter", "3", "-journal-mode", "wal")
    done = bench("-mode", "insert", *words, "-iter", "20", primary.path("g.db"))
    assert (done.returncode, done.stdout) == (0, "running litefs-bench: seed=7\n"), done.stderr
    first = rows(primary.path("g.db"))
    assert 20 <= first <= 60
    wait_until(lambda: primary.position("g.db") == replica.position("g.db"), 20, "the replica has the rows")
    done = bench("--mode=insert", *words, "-iter", "5", replica.path("g.db"))
    assert done.returncode == 0, done.stderr
    assert first + 5 <= rows(primary.path("g.db")) <= first + 15
    done = bench("-mode", "query", "-iter", "100", replica.path("g.db"))
    assert done.returncode == 0, done.stderr


def test_a_line_of_figures_each_second_until_interrupted(tmp_path: Path) -> None:
    run = started("-mode", "insert", "-iter-per-sec", "100", "-max-rows-per-iter", "1", tmp_path / "g.db")
    try:
        assert run.stderr is not None
        lines = [run.stderr.readline() for _ in range(2)]
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=20)
    finally:
        end(run)
    assert run.returncode == 130
    for line in lines:
        _, found, figures = line.partition(" stats: ")
        assert found
        transactions, rows_each = (float(word.partition("=")[2]) for word in figures.split())
        assert figures == f"tx/sec={transactions:.3f} rows/sec={rows_each:.3f}\n"
        assert transactions == rows_each
        assert 0 < transactions < 110
    with contextlib.closing(sqlite3.connect(tmp_path / "g.db")) as connection, connection:
        assert connection.execute("PRAGMA index_list(t)").fetchone()[1] == "idx"
        connection.execute("CREATE TABLE mine(x)")
    done = bench("-mode", "insert", "-iter", "1", tmp_path / "g.db")
    assert done.returncode == 1
    assert "has other tables: give a database that is only for the bench" in done.stderr
