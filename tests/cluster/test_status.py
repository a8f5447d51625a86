"""What nodes tell of themselves over HTTP: /status, /metrics, /healthz and /readyz."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import httpx

from tests.support.node import Node, wait_equal
from tests.support.processes import Client, pause, wait_until


def status(node: Node) -> dict[str, Any]:
    answer = httpx.get(f"{node.url}/status", timeout=5)
    assert answer.status_code == 200
    return dict(answer.json())


def asked(node: Node, path: str) -> tuple[int, str]:
    answer = httpx.get(node.url + path, timeout=5)
    return answer.status_code, answer.text.strip()


def metrics(node: Node) -> dict[str, float]:
    """Values by name and labels."""
    text = httpx.get(f"{node.url}/metrics", timeout=5).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def _check_metrics(primary: Node, replica: Node, txid: int) -> None:
    """After so many transactions of app.db, and some of sync.db, which waited for the replica."""

    def told() -> bool:
        return (
            metrics(primary)['litefs_db_commit_count{db="app.db"}'] == txid
            and metrics(replica)['litefs_db_apply_count{db="app.db"}'] > 0
        )

    wait_until(told, 5, f"{txid} commits are counted")
    first, second = metrics(primary), metrics(replica)
    for name, least in (
        ('litefs_db_wal_write_count{db="app.db"}', 2 * 3),
        ('litefs_db_database_write_count{db="app.db"}', 1),
        ('litefs_db_journal_write_count{db="app.db"}', 1),
        ('litefs_http_frame_send_count{db="app.db",type="ltx"}', 3),
        ('litefs_http_frame_send_count{db="app.db",type="ltx:snapshot"}', 1),
        ('litefs_commit_seconds_count{phase="prepare"}', txid),
        ('litefs_commit_seconds_count{phase="append"}', txid),
        ('litefs_commit_seconds_count{phase="answer"}', txid),
        ('litefs_commit_seconds_count{phase="replicas"}', 2),
        ("litefs_fsync_seconds_count", 1),
        ("litefs_stream_sent_bytes_total", 1000),
        ('litefs_db_ltx_count{db="app.db"}', txid),
    ):
        assert first[name] >= least, name
    assert 0 < first['litefs_commit_seconds_sum{phase="append"}'] < 10
    assert first['litefs_db_commit_count{db="sync.db"}'] == first['litefs_db_txid{db="sync.db"}']
    assert (first["litefs_is_primary"], second["litefs_is_primary"]) == (1, 0)
    assert first["litefs_role_changes_total"] == 1
    assert second["litefs_stream_received_bytes_total"] > 1000
    assert second["litefs_apply_seconds_count"] >= 1
    assert second['litefs_db_commit_count{db="app.db"}'] == 0
    assert 0 <= second['litefs_db_lag_seconds{db="app.db"}'] < 10


def _check_trace(primary: Node, replica: Node) -> None:
    """Both processes of each node write to its file."""
    told = [(node.root / "trace.log").read_text() for node in (primary, replica)]
    assert told[0].count(" [Commit(app.db)]: pos=") == status(primary)["databases"][0]["commits"]
    assert " [Role()]: role=primary " in told[0]
    assert " [Apply(app.db)]: pos=" in told[1]
    assert " [Connect()]: primary=primary " in told[1]


def test_status(make_node: Callable[..., Node], make_client: Callable[..., Client]) -> None:
    primary = make_node("primary", replication={"databases": [{"name": "sy*", "sync": "any"}]})
    replica = make_node("replica", primary=primary)
    for one in (primary, replica):
        one.configure("tracing", {"path": str(one.root / "trace.log")})
        one.start()
    sql = make_client("sql", "sqlite3")
    for name in ("app.db", "sync.db"):
        sql.call("open", path=primary.path(name))
        sql.call(
            "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"]
        )
    positions = {name: wait_equal(primary, replica, name) for name in ("app.db", "sync.db")}
    wait_until(lambda: len(status(primary)["replicas"][0]["databases"]) == 2, 5, "the replica has told")
    wait_until(lambda: status(replica)["lag"] is not None, 5, "the primary has told its time")

    first, second = status(primary), status(replica)
    node = first["node"]
    assert (node["hostname"], node["role"], node["lease"]) == ("primary", "primary", "static")
    assert (node["path"], node["candidate"], node["ready"]) == (str(primary.mount), True, True)
    assert (node["clusterID"], len(node["id"])) == (second["node"]["clusterID"], 16)
    assert 0 < node["uptime"] < 120
    assert (second["node"]["role"], second["node"]["candidate"]) == ("replica", False)
    assert first["primary"] == second["primary"]
    assert second["primary"] == {"hostname": "primary", "url": primary.url, "connected": True}
    assert first["lag"] == 0
    assert 0 <= second["lag"] < 10
    for found in (first, second):
        assert {db["name"]: f"{db['txid']}/{db['checksum']}" for db in found["databases"]} == {
            name: str(position) for name, position in positions.items()
        }
    app, sync = first["databases"]
    assert (app["sync"], sync["sync"]) == ("off", "any")
    assert (app["pageSize"], app["pages"], app["logSegments"], app["damaged"]) == (4096, 2, 1, False)
    assert app["logBytes"] == sum(path.stat().st_size for path in primary.data.glob("dbs/app.db/log/*.seg"))
    assert "lag" not in app
    assert 0 <= second["databases"][0]["lag"] < 10
    (seen,) = first["replicas"]
    assert (seen["id"], second["replicas"]) == (second["node"]["id"], [])
    assert seen["databases"] == {name: f"{position.txid:016x}" for name, position in positions.items()}

    commits = app["commits"]
    sql.call("open", path=primary.path("app.db"))
    for _ in range(3):
        sql.call("execute", statement="INSERT INTO t VALUES(2)")
    assert status(primary)["databases"][0]["commits"] == commits + 3
    _check_metrics(primary, replica, positions["app.db"].txid + 3)
    _check_trace(primary, replica)
    assert asked(primary, "/healthz") == (200, "ok")
    assert asked(replica, "/readyz?max-lag=10s") == (200, "ready")
    fs = primary.fs_pid()
    assert fs is not None
    pause(fs)
    try:
        assert asked(primary, "/healthz") == (503, "unhealthy\nthe mount does not answer within 2 s")
    finally:
        os.kill(fs, signal.SIGCONT)
    wait_until(lambda: asked(primary, "/healthz")[0] == 200, 5, "the mount answers again")
    primary.stop()
    wait_until(lambda: not status(replica)["primary"]["connected"], 10, "the replica misses its primary")
    assert status(replica)["node"]["ready"] is False
    assert asked(replica, "/readyz") == (503, "not ready\nit is not connected to a primary")
