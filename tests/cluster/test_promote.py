"""``litefs promote`` and ``litefs handoff`` on nodes that elect their primary."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from tests.support.elected import DATABASE, Elected, lease_settings
from tests.support.node import Node, pages_equal, wait_equal
from tests.support.processes import Client, wait_until

BEAT_SECONDS = 2.5
"""After which the store has a position, and a lease is not renewed any more."""


@pytest.fixture
def cluster(tmp_path: Path, make_node: Callable[..., Node]) -> Iterator[Elected]:
    with lease_settings("directory", tmp_path) as lease:
        yield Elected(make_node, lease, names=("a", "b"))


def litefs(node: Node, command: str, *arguments: str, answer: str = "") -> tuple[int, str]:
    """Exit status and output of a command about a node; with ``answer`` it has a terminal, where somebody
    types that."""
    line = [sys.executable, "-m", "litefs.cli.main", command, "-url", node.url, *arguments]
    master, terminal = pty.openpty()
    try:
        os.write(master, answer.encode())
        done = subprocess.run(
            line,
            stdin=terminal if answer else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(master)
        os.close(terminal)
    print(f"litefs {command} {' '.join(arguments)}: {done.returncode}\n{done.stdout}")
    return done.returncode, done.stdout


def left_behind(cluster: Elected) -> tuple[Node, Node]:
    """The old primary, killed, and a node that runs without what that one committed last: three rows."""
    name = cluster.await_following()
    primary = cluster.nodes[name]
    behind = cluster.nodes[cluster.replicas()[0]]
    behind.kill("both")
    with Client("sql", "sqlite3") as sql:
        sql.call("open", path=primary.path(DATABASE))
        sql.call("script", statements=["INSERT INTO t VALUES(1)"] * 3)
    time.sleep(BEAT_SECONDS)
    primary.kill("both")
    behind.start()
    return primary, behind


def test_promotion_by_hand(cluster: Elected) -> None:
    old, behind = left_behind(cluster)
    lacking = f"{DATABASE}: 3 transactions behind"

    def refused() -> bool:
        code, output = litefs(behind, "promote")
        return code == 1 and lacking in output and "`litefs promote -force`" in output

    wait_until(refused, 20, "the promotion is refused for what it would lose")
    assert litefs(behind, "promote", "-force", answer="n\n") == (
        1,
        f"this node lacks what the last primary had, which will be lost:\n  {lacking}\n"
        "go on? [y/N] nothing was changed\n",
    )
    assert cluster.primary() is None
    code, output = litefs(behind, "promote", "--force")
    assert (code, output) == (
        0,
        f"this node lacks what the last primary had, which will be lost:\n  {lacking}\n"
        f"{behind.url} is the primary now; lost:\n  {lacking}\n",
    )
    assert litefs(behind, "promote") == (0, f"{behind.url} is the primary already\n")
    with Client("sql", "sqlite3") as sql:
        sql.call("open", path=behind.path(DATABASE))
        sql.call("execute", statement="INSERT INTO t VALUES(2)")
        assert sql.call("execute", statement="SELECT a FROM t") == [[2]]
    old.start()
    cluster.await_following()
    wait_equal(behind, old, DATABASE)
    pages_equal(behind, old, DATABASE)
    assert list((DataDir(old.data).path / "lost").glob("*")), "what the old primary alone had is kept"
    # the planned ways, by name and by node id
    assert "no connected candidate is called 'c'; connected: " + old.name in litefs(behind, "handoff", "c")[1]
    code, output = litefs(old, "handoff", behind.name)
    assert code == 1
    assert f"which is {behind.name}: ask that one by -url" in output
    assert litefs(behind, "handoff", old.name) == (0, f"the role was passed to {old.name}\n")
    assert cluster.await_primary(but=behind.name) == old.name
    cluster.await_following()
    (node_id,) = (old.info() or {})["replicas"]
    assert litefs(old, "handoff", node_id)[0] == 0
    assert cluster.await_primary(but=old.name) == behind.name
    cluster.await_following()
    assert litefs(old, "promote") == (0, f"{old.url} is the primary now; nothing was lost\n")
    wait_equal(behind, old, DATABASE)


def test_the_application_is_told_and_a_node_that_is_to_be_primary_asks_for_the_role(
    tmp_path: Path, make_node: Callable[..., Node]
) -> None:
    """Node b has ``lease.promote``: each start of it ends with b as primary, and nothing lost."""

    def told(name: str) -> list[str]:
        path = tmp_path / f"{name}.told"
        return path.read_text().split() if path.exists() else []

    def supervised(name: str) -> dict[str, object]:
        """An application that notes its start and the signal; another command notes the demotion."""
        path, mount = tmp_path / f"{name}.told", tmp_path / name / "mnt"
        script = (
            f'trap "echo signal >> {path}" USR1; test -e {mount}/.primary && echo replica >> {path} || '
            f"echo primary >> {path}; while true; do sleep 0.05; done"
        )
        demoted = f"sh -c 'echo demoted >> {path}'"
        return {"exec": [{"cmd": f"sh -c '{script}'", "on-promote": "SIGUSR1", "on-demote": demoted}]}

    with lease_settings("directory", tmp_path) as lease:
        made = Elected(make_node, lease, names=("a",), own=supervised)
        a, b = made.nodes["a"], make_node("b", **supervised("b"))
        settings = {"hostname": "b", "advertise-url": b.url, "candidate": True, "promote": True}
        b.configure("lease", {**lease, **settings})
        made.nodes["b"] = b
        for round_ in range(2):
            with Client("sql", "sqlite3") as sql:
                sql.call("open", path=a.path(DATABASE))
                sql.call("execute", statement=f"INSERT INTO t VALUES({round_})")
            b.start()
            assert made.await_primary(but="a") == "b"
            wait_until(lambda: told("b")[-1:] == ["primary"], 10, f"b's command starts: {told('b')}")
            made.await_following()
            with Client("sql", "sqlite3") as sql:
                sql.call("open", path=b.path(DATABASE))
                rows = sql.call("execute", statement="SELECT count(*) FROM t")
                sql.call("execute", statement=f"INSERT INTO t VALUES({round_})")
            assert rows == [[2 * round_ + 1]]
            wait_equal(a, b, DATABASE)
            wait_until(lambda: told("a")[-1:] == ["demoted"], 10, f"a is told: {told('a')}")
            b.stop()
            assert made.await_primary() == "a"
            wait_until(lambda: told("a")[-1:] == ["signal"], 10, f"a is told: {told('a')}")
    assert told("a") == ["primary", "demoted", "signal", "demoted", "signal"]
    assert told("b") == ["primary", "primary"]
