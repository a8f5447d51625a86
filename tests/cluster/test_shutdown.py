"""Starting and stopping: in time, nothing left, a stale mount cleaned, the application's status passed on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from litefs.fs.session import is_mounted, is_stale, lazy_unmount
from tests.support.node import STOP_MARGIN, STOP_SECONDS, Node, wait_present
from tests.support.processes import Client, wait_until


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_a_node_with_open_connections(
    signum: signal.Signals, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    client = make_client("sql", "sqlite3")
    client.call("open", path=primary.path("app.db"))
    client.call(
        "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "BEGIN", "SELECT * FROM t"]
    )
    wait_present(replica, "app.db")
    assert replica.stop(signum) == 0
    assert primary.stop(signum) == 0


def test_content_survives_a_clean_restart(
    make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    node = make_node("primary").start()
    client = make_client("sql", "sqlite3")
    client.call("open", path=node.path("app.db"))
    client.call(
        "script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"]
    )
    position = node.position("app.db")
    client.call("close")
    node.stop()
    node.start()
    assert node.position("app.db") == position
    client.call("open", path=node.path("app.db"))
    assert client.call("execute", statement="SELECT a FROM t") == [[1]]


def test_stale_mount_of_a_dead_node_is_cleaned_at_start(make_node: Callable[..., Node]) -> None:
    node = make_node("primary").start()
    node.kill("both")
    assert not is_mounted(node.mount) or is_stale(node.mount)
    node.start()
    assert node.files("list", path=str(node.mount)) is not None
    assert not is_stale(node.mount)
    node.stop()


@pytest.mark.parametrize("status", [0, 7])
def test_exit_status_of_the_application_is_passed_on(status: int, make_node: Callable[..., Node]) -> None:
    node = make_node("primary")
    script = f"import os, sys; assert os.path.ismount({str(node.mount)!r}); sys.exit({status})"
    program = node.root / "application.py"
    program.write_text(script)
    process = node.launch(sys.executable, str(program))
    assert process.wait(20) == status, node.log_tail()
    node.process = None
    assert not is_mounted(node.mount)


def test_application_is_stopped_with_the_node(make_node: Callable[..., Node]) -> None:
    node = make_node("primary")
    program = node.root / "application.py"
    program.write_text(
        "import pathlib, signal, sys, time\n"
        "def leave(*_):\n"
        "    pathlib.Path(sys.argv[1]).write_text('told')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "pathlib.Path(sys.argv[1]).write_text('up')\n"
        "time.sleep(60)\n"
    )
    mark = node.root / "mark"
    node.start(sys.executable, str(program), str(mark))
    wait_until(lambda: mark.exists() and mark.read_text() == "up", 10, "the application runs")
    node.stop()
    assert mark.read_text() == "told"
    assert STOP_SECONDS + STOP_MARGIN < 10


def test_nothing_can_be_written_beneath_a_mount_that_is_gone(make_node: Callable[..., Node]) -> None:
    node = make_node("primary").start()
    node.kill("both")
    wait_until(lambda: not is_mounted(node.mount) or is_stale(node.mount), 10, "the mount is dead")
    if is_mounted(node.mount):
        lazy_unmount(node.mount)
    with pytest.raises(OSError, match="Read-only file system"):
        (node.mount / "app.db").touch()
    node.start()
    node.stop()
    (node.mount / "now ours").touch()
