"""The archive that nodes keep: real mounts, real clients, and nodes that die."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from litefs.backup.archive import Archive, timelines
from litefs.backup.directory import DirectoryTarget
from litefs.backup.finding import Goal, find
from litefs.backup.restore import Check, restore
from litefs.backup.verify import verify
from tests.support.elected import Elected, lease_settings
from tests.support.node import Node, wait_equal, wait_present
from tests.support.processes import Client, ClientError, wait_until

MakeNode = Callable[..., Node]
MakeClient = Callable[..., Client]
ARCHIVED_SECONDS = 4.0
"""The promise is one second after the sync-interval; a test machine may be busy."""


def backup(root: Path, **more: Any) -> dict[str, Any]:
    return {"type": "file", "path": str(root / "archive"), "sync-interval": "200ms", **more}


def lines(root: Path, name: str = "app.db") -> list[Archive]:
    return timelines(DirectoryTarget(root / "archive"), name)


def newest(root: Path, name: str = "app.db") -> Archive:
    return next(one for one in reversed(lines(root, name)) if one.start() is not None)


def tip(root: Path, name: str = "app.db") -> int:
    """The last archived TXID; 0 without any."""
    try:
        archive = newest(root, name)
    except StopIteration:
        return 0
    last = archive.start().point.txid  # type: ignore[union-attr]
    for bundle in archive.bundles(last + 1):
        last = bundle.last.txid
    return last


def restored(root: Path, txid: int, name: str = "app.db") -> bytes:
    """The bytes of the database at a transaction."""
    found = find(lines(root, name), Goal(txid=txid))
    assert found is not None
    path = root / "restored.db"
    assert restore(*found, path, check=Check.FULL).proved
    data = path.read_bytes()
    path.unlink()
    return data


def archived(root: Path, node: Node, name: str = "app.db", timeout: float = ARCHIVED_SECONDS) -> int:
    """Wait until what ``node`` has is in the archive; writers must be at rest. Returns the TXID."""
    position = node.position(name)
    assert position is not None
    wait_until(lambda: tip(root, name) == position.txid, timeout, f"TXID {position.txid} is archived", 0.05)
    path = root / "whole.db"
    found = find(lines(root, name), Goal())
    assert found is not None
    assert restore(*found, path, check=Check.FULL).checksum == position.checksum
    path.unlink()
    return position.txid


def create(client: Client, node: Node, name: str = "app.db", mode: str = "WAL") -> None:
    client.call("open", path=node.path(name))
    statements = [f"PRAGMA journal_mode={mode}", "CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB)"]
    client.call("script", statements=statements)


def insert(client: Client, size: int = 200) -> None:
    client.call("execute", statement=f"INSERT INTO t (a) VALUES (randomblob({size}))")


def digest_of(database: bytes) -> str:
    """Of all bytes but those of page 1 that a copy by SQLite's online backup has for itself: its schema
    cookie and what follows from that."""
    return hashlib.sha256(database[:24] + database[28:40] + database[44:92] + database[96:]).hexdigest()


def image(node: Node, name: str = "app.db") -> str:
    """Digest of the database's bytes as `litefs export` gives them."""
    with urllib.request.urlopen(f"{node.url}/export?name={name}", timeout=20) as answer:
        return digest_of(answer.read())


def status(node: Node) -> dict[str, Any]:
    with urllib.request.urlopen(f"{node.url}/status", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def metrics(node: Node) -> str:
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_every_transaction_can_be_restored(
    mode: str, tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    primary = make_node("primary", backup=backup(tmp_path)).start()
    client = make_client("sql", "sqlite3")
    create(client, primary, mode=mode)
    digests = {}
    for _ in range(30):
        insert(client)
        position = primary.position("app.db")
        assert position is not None
        digests[position.txid] = image(primary)
    last = archived(tmp_path, primary)
    assert last == max(digests)
    for txid, digest in digests.items():
        assert digest_of(restored(tmp_path, txid)) == digest, f"TXID {txid}"
    (shown,) = status(primary)["archive"]
    wait_until(lambda: status(primary)["archive"][0]["behind"] == 0, 3, "nothing is behind")
    assert (shown["name"], shown["timeline"], shown["error"]) == ("app.db", 1, "")
    text = metrics(primary)
    assert f'litefs_archive_txid{{db="app.db"}} {float(last)}' in text
    assert 'litefs_archive_lag_transactions{db="app.db"} 0.0' in text
    insert(client)  # a stop sends what is left
    position = primary.position("app.db")
    assert position is not None
    client.close()
    assert primary.stop() == 0
    assert tip(tmp_path) == position.txid
    found = verify(newest(tmp_path), tmp_path / "scratch")
    assert found.sound, found.problems
    assert found.proved


def test_the_page_size_changes_and_the_database_is_dropped_and_made_again(
    tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    primary = make_node("primary", backup=backup(tmp_path)).start()
    client = make_client("sql", "sqlite3")
    create(client, primary, mode="DELETE")
    insert(client, 20_000)
    before = archived(tmp_path, primary)
    digest = image(primary)
    client.call("script", statements=["PRAGMA page_size=1024", "VACUUM"])
    insert(client)
    after = archived(tmp_path, primary)
    assert len(newest(tmp_path).files(9)) == 1, "a snapshot of the new page size"
    assert digest_of(restored(tmp_path, before)) == digest
    assert digest_of(restored(tmp_path, after)) == image(primary)
    client.close()
    primary.files("unlink", path=primary.path("app.db"))
    wait_until(lambda: dropped(newest(tmp_path)), ARCHIVED_SECONDS, "the archive knows")
    again = make_client("sql", "sqlite3")
    create(again, primary)
    insert(again)
    wait_until(lambda: len(lines(tmp_path)) == 2, ARCHIVED_SECONDS, "a second timeline")
    archived(tmp_path, primary)
    start = newest(tmp_path).start()
    assert start is not None
    assert start.reason == "recreated"


def dropped(archive: Archive) -> bool:
    start = archive.start()
    assert start is not None
    last = list(archive.bundles(start.point.txid + 1))[-1]
    return last.dropped


def test_the_archive_cannot_be_written_for_a_while(
    tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    """The log waits for it; nothing is lost, and clients do not notice."""
    data = {"retention": "1s", "retention-monitor-interval": "200ms"}
    primary = make_node("primary", backup=backup(tmp_path), data={"dir": str(tmp_path / "d"), **data}).start()
    client = make_client("sql", "sqlite3")
    create(client, primary)
    insert(client)
    archived(tmp_path, primary)
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    (tmp_path / "archive").write_text("in the way")
    for _ in range(5):
        insert(client, 30_000)
    wait_until(lambda: status(primary)["archive"][0]["error"] != "", 5, "the status says so")
    time.sleep(2.5)  # longer than the log's retention
    assert status(primary)["archive"][0]["behind"] >= 5
    (tmp_path / "archive").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "archive")
    archived(tmp_path, primary, timeout=30)
    assert [one.number for one in lines(tmp_path)] == [1], "no gap"


def test_a_log_that_waited_too_long_leaves_a_gap(
    tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    """A full disk would be worse: beyond `max-log-bytes` the archive goes on with a snapshot."""
    data = {"retention": "1s", "retention-monitor-interval": "200ms"}
    section = backup(tmp_path, **{"max-log-bytes": 1 << 20})
    primary = make_node("primary", backup=section, data={"dir": str(tmp_path / "d"), **data}).start()
    client = make_client("sql", "sqlite3")
    create(client, primary)
    insert(client)
    first = archived(tmp_path, primary)
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    (tmp_path / "archive").write_text("in the way")
    for _ in range(50):
        insert(client, 1_000_000)
    log = tmp_path / "d" / "dbs" / "app.db" / "log"
    wait_until(lambda: len(list(log.glob("*.seg"))) == 1, 20, "the log was cut")
    (tmp_path / "archive").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "archive")
    wait_until(lambda: len(lines(tmp_path)) == 2, 30, "a second timeline")
    last = archived(tmp_path, primary, timeout=30)
    start = newest(tmp_path).start()
    assert start is not None
    assert start.reason == "gap"
    assert len(restored(tmp_path, first)) > 0
    insert(client)
    assert archived(tmp_path, primary) == last + 1


def works(client: Client) -> bool:
    try:
        client.call("execute", statement="INSERT INTO t VALUES ('after')")
    except ClientError:
        return False
    return True


@pytest.fixture
def elected(tmp_path: Path, make_node: MakeNode) -> Iterator[Elected]:
    with lease_settings("directory", tmp_path) as lease:
        yield Elected(make_node, lease, backup=backup(tmp_path))


def test_the_next_primary_goes_on_in_the_same_timeline(
    elected: Elected, tmp_path: Path, make_client: MakeClient
) -> None:
    """After a kill that loses nothing, and after a handoff."""
    for how in ("kill", "handoff"):
        name = elected.await_following(None if how == "kill" else 1)
        primary = elected.nodes[name]
        client = make_client("sql", "sqlite3")
        client.call("open", path=primary.path("app.db"))
        for _ in range(5):
            client.call("execute", statement="INSERT INTO t VALUES (randomblob(3000))")
        for other in elected.replicas():
            wait_equal(primary, elected.nodes[other], "app.db")
        client.close()
        if how == "kill":
            primary.kill("both")
        else:
            primary.post("/handoff")
        now = elected.nodes[elected.await_primary(but=name)]
        wait_present(now, "app.db")
        last = archived(tmp_path, now, timeout=20)
        writer = make_client("sql", "sqlite3")
        writer.call("open", path=now.path("app.db"))
        wait_until(lambda sql=writer: works(sql), 20, "the next primary takes writes")
        assert archived(tmp_path, now, timeout=20) == last + 1
        writer.close()
        (only,) = lines(tmp_path)
        assert only.number == 1
    found = verify(newest(tmp_path), tmp_path / "scratch")
    assert found.sound, found.problems


@pytest.mark.parametrize("lease", ["static", "directory"])
def test_a_node_that_is_alone_stops_with_everything_archived(
    lease: str, tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    primary = make_node("primary", backup=backup(tmp_path, **{"sync-interval": "5s"}))
    if lease == "directory":
        settings = {"type": "object", "object": {"url": f"file://{tmp_path}/lease"}}
        own = {"hostname": "primary", "advertise-url": primary.url, "candidate": True}
        primary.configure("lease", {**own, **settings})
    primary.start()
    client = make_client("sql", "sqlite3")
    wait_until(lambda: opened(client, primary), 20, "it leads")
    create(client, primary)
    for _ in range(5):
        insert(client)
    position = primary.position("app.db")
    assert position is not None
    assert tip(tmp_path) < position.txid
    client.close()
    assert primary.stop() == 0
    assert tip(tmp_path) == position.txid


def opened(client: Client, node: Node) -> bool:
    try:
        client.call("open", path=node.path("app.db"))
        client.call("execute", statement="CREATE TABLE IF NOT EXISTS first (n)")
    except ClientError:
        return False
    return True


def test_snapshots_on_demand(tmp_path: Path, make_node: MakeNode, make_client: MakeClient) -> None:
    primary = make_node("primary", backup=backup(tmp_path, exclude=["not*"])).start()
    client, other = make_client("sql", "sqlite3"), make_client("sql", "sqlite3")
    create(client, primary)
    create(other, primary, "not.db")
    insert(client)
    txid = archived(tmp_path, primary)
    assert json.loads(primary.post("/backup/snapshot")) == {"app.db": f"{txid:016x}"}
    assert [file.max_txid for file in newest(tmp_path).files(9)] == [txid]
    assert lines(tmp_path, "not.db") == []
