"""Rows of docs/feature-parity.md that no other test would miss: control files, options, retention."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.node import Node, free_port, wait_present
from tests.support.processes import Client, wait_until


def shown(node: Node, name: str) -> str:
    """A control file of the mount."""
    return str(node.files("read", path=str(node.mount / name)))


def test_control_files_and_free_space(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """In the shapes that scripts for Go LiteFS read."""
    primary, replica = primary_and_replica
    client = make_client("sql", "sqlite3")
    client.call("open", path=primary.path("app.db"))
    client.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
    wait_present(replica, "app.db")
    wait_until(lambda: ".primary" in replica.files("list", path=str(replica.mount)), 10, "it is connected")
    assert shown(replica, ".primary") == "primary\n"
    assert ".primary" not in primary.files("list", path=str(primary.mount))
    position = shown(primary, "app.db-pos")
    assert re.fullmatch(r"[0-9a-f]{16}/[0-9a-f]{16}\n", position)
    wait_until(lambda: shown(replica, "app.db-pos") == position, 10, "the replica is there too")
    assert shown(primary, ".lag") == "+000000000\n"
    wait_until(lambda: int(shown(replica, ".lag")) < 10_000, 10, "the replica knows its lag")
    assert re.fullmatch(r"[+-]\d{9}\n", shown(replica, ".lag"))
    real = os.statvfs(primary.data)
    size, blocks, free, available = primary.files("blocks", path=str(primary.mount))
    assert (size, blocks) == (real.f_frsize, real.f_blocks)
    assert 0 < available <= free <= blocks
    primary.stop()
    wait_until(lambda: ".primary" not in replica.files("list", path=str(replica.mount)), 10, "it notices")


def lonely(make_node: Callable[..., Node], name: str, **settings: object) -> Node:
    """A replica whose primary is not there."""
    away = {
        "type": "static",
        "candidate": False,
        "hostname": "away",
        "advertise-url": f"http://[::1]:{free_port()}",
    }
    return make_node(name, lease=away, **settings)


def test_skip_sync_starts_the_application_before_there_is_a_primary(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    started = tmp_path / "started"
    waiting, eager = lonely(make_node, "waiting"), lonely(make_node, "eager", **{"skip-sync": True})
    waiting.launch("sh", "-c", f"touch {started}-waiting; exec sleep 60")
    eager.launch("sh", "-c", f"touch {started}-eager; exec sleep 60")
    for node in (waiting, eager):
        node.wait_ready()
    wait_until(lambda: Path(f"{started}-eager").exists(), 10, f"the command runs\n{eager.log_tail()}")
    assert shown(waiting, ".lag") == "+2147483647\n", "never synced"
    time.sleep(0.5)
    assert not Path(f"{started}-waiting").exists()


def test_exit_on_error_false_leaves_the_node_up(make_node: Callable[..., Node]) -> None:
    node = make_node("node", **{"exit-on-error": False})
    node.launch("sh", "-c", "exit 3")
    node.wait_ready()
    wait_until(lambda: "exit status 3" in node.log_tail(), 10, f"the command has failed\n{node.log_tail()}")
    time.sleep(0.5)
    assert node.info() is not None
    assert node.stop() == 3


def test_fuse_debug_logs_each_request(make_node: Callable[..., Node]) -> None:
    node = make_node("node")
    node.configure("fuse", {"dir": str(node.mount), "debug": True})
    node.start()
    before = node.log.read_text().count("unique:")
    shown(node, ".lag")
    wait_until(lambda: node.log.read_text().count("unique:") > before, 10, "the requests are in the log")


@pytest.mark.parametrize("limit", [{"retention-bytes": 1}, {"retention": "500ms"}])
def test_retention_deletes_what_the_log_no_longer_needs(
    make_node: Callable[..., Node], make_client: Callable[..., Client], limit: dict[str, object]
) -> None:
    node = make_node("node")
    node.configure("data", {"dir": str(node.data), "retention-monitor-interval": "300ms", **limit})
    node.start()
    client = make_client("sql", "sqlite3")
    client.call("open", path=node.path("app.db"))
    client.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
    log = node.data / "dbs/app.db/log"
    first = min(path.name for path in log.glob("*.seg"))
    client.call("execute", statement="INSERT INTO t VALUES(randomblob(17000000))", timeout=30)
    client.call(
        "execute", statement="INSERT INTO t VALUES(1)"
    )  # in the next segment: the first has its 16 MiB
    client.call("execute", statement="PRAGMA wal_checkpoint(TRUNCATE)", timeout=30)
    wait_until(lambda: not (log / first).exists(), 20, f"the oldest segment is gone\n{node.log_tail()}")
