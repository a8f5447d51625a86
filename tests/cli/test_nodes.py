"""Commands against real nodes: status, databases, drop, run; each as a process of its own."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.support import inside, litefs, on_terminal
from tests.support.node import Node, wait_equal, wait_present
from tests.support.processes import Client, wait_until

INSERT = (
    "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES(1)'); c.commit()"
)


def created(node: Node, name: str) -> None:
    with Client("sql", "sqlite3") as sql:
        sql.call("open", path=node.path(name))
        sql.call(
            "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(x)", "INSERT INTO t VALUES(1)"]
        )


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """A primary and a replica of it for all tests of the module but those that elect."""
    root = tmp_path_factory.mktemp("nodes")
    primary = Node(root, "primary")
    replica = Node(root, "replica", primary=primary)
    try:
        primary.start()
        created(primary, "app.db")
        yield primary, replica.start()
    finally:
        replica.discard()
        primary.discard()


def test_status_and_databases(nodes: tuple[Node, Node]) -> None:
    primary, replica = nodes
    wait_present(replica, "app.db")
    position = wait_equal(primary, replica, "app.db")

    def settled() -> bool:
        shown = inside("status", "-url", replica.url).out
        return "up to date" in shown and " by " not in shown

    wait_until(settled, 20, "the primary heard that the replica has all")
    for node in (primary, replica):
        done = inside("status", "-url", node.url)
        assert (done.status, done.err) == (0, "")
        lines = done.out.splitlines()
        role = "primary" if node is primary else "replica"
        assert lines[0].startswith(f"{role} at {node.mount}, term ")
        (nodes,) = [number for number, line in enumerate(lines) if line.startswith("NODE")]
        first, second = lines[nodes + 1 : nodes + 3]
        assert (first.startswith("* "), second.startswith("* ")) == (node is primary, node is replica)
        assert first[2:].split()[:2] == ["primary", "primary"]
        assert "replica  up to date" in second
        (row,) = [line for line in lines if line.startswith("app.db")]
        assert row.split()[1:3] == [f"{position.txid:016x}", f"{position.checksum:016x}"]
        assert row.endswith("  -"), "nobody is behind"
        found = json.loads(inside("status", "-json", "-url", node.url).out)
        assert found["primary"]["node"]["role"] == "primary"
        assert found["asked"]["node"]["path"] == str(node.mount)
        listed = inside("databases", "--url", node.url)
        assert listed.out.splitlines()[1].split()[:3] == row.split()[:3]
        assert json.loads(inside("databases", "-json", "-url", node.url).out)[0]["name"] == "app.db"
    watched = on_terminal("status", "-watch", "-url", replica.url, until="app.db")
    assert watched.status == 1, "Ctrl-C"
    assert watched.out.count("\x1b[H\x1b[2J") >= 2
    primary.stop()
    alone = inside("status", "-url", replica.url)
    assert alone.status == 0
    assert "The primary cannot be asked: " in alone.out
    assert "app.db" in alone.out, "what the replica knows"
    primary.start()


def listed(node: Node) -> list[str]:
    return [line.split()[0] for line in inside("databases", "-url", node.url).out.splitlines()[1:]]


def test_drop(nodes: tuple[Node, Node]) -> None:
    primary, replica = nodes
    created(primary, "other.db")
    for name in ("app.db", "other.db"):
        wait_present(replica, name)
    refused = on_terminal("drop", "-url", replica.url, "app.db", answer="n\n")
    assert refused.status == 1
    assert f'remove database "app.db" of {primary.url} from all nodes? [y/N]' in refused.out
    assert "nothing was changed" in refused.out
    missing = inside("drop", "-url", primary.url, "none.db")
    assert (missing.status, missing.err) == (
        1,
        "ERROR: database not found: none.db; `litefs databases` lists those of the node\n",
    )
    assert primary.position("app.db") is not None
    done = inside("drop", "-yes", "-url", replica.url, "app.db")
    assert (done.status, done.out) == (0, 'database "app.db" was dropped\n')
    wait_until(lambda: replica.position("app.db") is None, 10, "the replica drops it too")
    assert "app.db" not in primary.files("list", path=str(primary.mount))
    wait_until(
        lambda: "app.db" not in listed(replica), 10, "the replica's process hears of it, after its mount"
    )
    primary.stop()
    orphan = inside("drop", "-yes", "-url", replica.url, "app.db")
    assert orphan.status == 1
    assert "only the primary can drop a database" in orphan.err
    primary.start()
    created(primary, "app.db")  # the name is free again
    wait_present(replica, "app.db")


def test_run_on_a_replica(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    primary, replica = nodes
    created(primary, "run.db")
    wait_present(replica, "run.db")
    path = replica.path("run.db")
    command = ("--", sys.executable, "-c", INSERT, path)
    done = litefs("run", "-v", "-with-halt-lock-on", path, *command)
    assert done.status == 0
    assert [line.rpartition(" in ")[0] or line for line in done.err.splitlines()] == [
        "acquiring halt lock",
        "halt lock acquired",
        "releasing halt lock",
        "halt lock released",
    ]
    wait_equal(primary, replica, "run.db")
    assert litefs("run", "-if-candidate", "-url", primary.url, "--", "echo", "x").out == "x\n"
    skipped = inside("run", "-if-candidate", "-promote", "-url", replica.url, "--", "echo", "x")
    assert (skipped.status, skipped.out) == (0, "")
    assert skipped.err == "node is not a candidate, skipping execution\n"
    failed = litefs("run", "--", "sh", "-c", "exit 7")
    assert (failed.status, failed.err) == (1, "ERROR: exit status 7\n")
    for arguments, message in (
        (("-with-halt-lock-on", f"{path}x"), f"database does not exist: {path}x"),
        (("-with-halt-lock-on", str(tmp_path)), f'are you sure "{tmp_path.parent}" is a LiteFS mount?'),
        (("-promote", "-with-halt-lock-on", path), "cannot specify both -promote & -with-halt-lock-on"),
        (("-promote", "-url", replica.url), "static lease does not support handoff"),
    ):
        refused = inside("run", *arguments, *command)
        assert (refused.status, refused.out) == (1, ""), arguments
        assert message in refused.err


def test_import_and_export_with_checks(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    primary, replica = nodes
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("CREATE TABLE t(x)")
        connection.execute("CREATE INDEX i ON t(x)")
        connection.executemany("INSERT INTO t VALUES (randomblob(2000))", [()] * 2000)
        connection.commit()
    shown = on_terminal("import", "-url", replica.url, "-name", "in.db", source)
    assert (shown.status, 'Import of database "in.db" in ' in shown.out) == (0, True), shown.out
    bars = re.findall(r"import of in\.db .*?([\d.]+)/([\d.]+) MiB", shown.out)
    assert bars, "the progress bar"
    assert bars[-1][0] == bars[-1][1]
    assert replica.position("in.db") == primary.position("in.db"), "there when it is answered"
    quiet = inside("export", "-url", replica.url, "-name", "in.db", target)
    assert (quiet.status, quiet.err) == (0, ""), "no bar for scripts"
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (2000,)
