"""Nodes that start with nothing and an archive, and old content for a running cluster."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.archive.test_archiving import archived, backup, create, image, insert, lines, metrics
from tests.cli.support import inside
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, wait_until

MakeNode = Callable[..., Node]
MakeClient = Callable[..., Client]


def sent(node: Node, kind: str) -> int:
    """Transactions (``txn``) or snapshots that a primary has sent."""
    found = re.search(rf'frame_send_count_total{{db="app.db",type="ltx:{kind}"}} (\d+)', metrics(node))
    return int(found[1]) if found else 0


def test_a_replica_takes_the_database_from_the_archive_and_the_rest_from_the_primary(
    tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    primary = make_node("primary", backup=backup(tmp_path)).start()
    client = make_client("sql", "sqlite3")
    create(client, primary)
    for _ in range(5):
        insert(client, 30_000)
    archived(tmp_path, primary)
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "archive", kept)
    for _ in range(3):
        insert(client)
    section = backup(tmp_path, path=str(kept), seed=True)
    replica = make_node("replica", primary=primary, backup=section).start()
    wait_present(replica, "app.db")
    position = wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    assert "app.db: taken from the archive" in replica.log.read_text()
    assert sent(primary, "snapshot") == 0
    insert(client)
    assert wait_equal(primary, replica, "app.db").txid == position.txid + 1
    assert replica.stop() == 0
    replica.start()
    wait_equal(primary, replica, "app.db")
    assert replica.log.read_text().count("taken from the archive") == 1
    assert sent(primary, "snapshot") == 0


def test_an_archive_of_another_history_is_replaced_by_the_primary(
    tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    other = make_node("other", backup=backup(tmp_path)).start()
    client = make_client("sql", "sqlite3")
    create(client, other)
    insert(client, 10_000)
    archived(tmp_path, other)
    client.close()
    assert other.stop() == 0
    primary = make_node("primary").start()
    client = make_client("sql", "sqlite3")
    create(client, primary)
    insert(client)
    replica = make_node("replica", primary=primary, backup=backup(tmp_path, seed=True)).start()
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")


def test_a_primary_that_lost_its_disk_begins_with_the_archive(
    tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    primary = make_node("primary", backup=backup(tmp_path, seed=True)).start()
    client = make_client("sql", "sqlite3")
    create(client, primary)
    for _ in range(3):
        insert(client)
    last = archived(tmp_path, primary)
    before = image(primary)
    client.close()
    primary.kill("both")
    shutil.rmtree(primary.data)
    primary.start()
    wait_present(primary, "app.db")
    position = primary.position("app.db")
    assert position is not None
    assert position.txid == last
    assert image(primary) == before
    again = make_client("sql", "sqlite3")
    again.call("open", path=primary.path("app.db"))
    insert(again)
    assert archived(tmp_path, primary) == last + 1
    assert [one.number for one in lines(tmp_path)] == [1], "it goes on where the archive ends"
    again.close()
    primary.kill("both")
    shutil.rmtree(primary.data)
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    (tmp_path / "archive").write_text("in the way")
    process = primary.launch()
    assert process.wait(20) == 1, "nothing is not what such a primary may begin with"
    primary.process = None
    assert "cannot be seeded from the archive" in primary.log.read_text()


def test_old_content_for_a_running_cluster(
    tmp_path: Path, make_node: MakeNode, make_client: MakeClient
) -> None:
    primary = make_node("primary", backup=backup(tmp_path)).start()
    replica = make_node("replica", primary=primary).start()
    client = make_client("sql", "sqlite3")
    create(client, primary)
    insert(client)
    then = archived(tmp_path, primary)
    before = image(primary)
    client.call("execute", statement="DELETE FROM t")
    insert(client)
    now = archived(tmp_path, primary)
    source = tmp_path / "archive"
    flags = ("-into-cluster", "-txid", f"{then:x}", "-url", replica.url)
    done = inside("restore", *flags, source)
    assert (done.status, done.err) == (0, "")
    assert "TXID 0000" in done.out
    assert client.call("execute", statement="SELECT count(*) FROM t") == [[1]]
    position = wait_equal(primary, replica, "app.db")
    assert position.txid > now
    assert image(primary) == before
    archived(tmp_path, primary)
    done = inside("restore", *flags, "-as", "copy.db", source)
    assert done.status == 0
    wait_until(lambda: primary.position("copy.db") is not None, 10, "a copy")
