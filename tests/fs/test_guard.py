"""The node process over its fs process: it stops in time and leaves nothing, whatever state that is in."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from litefs.fs.session import find_mount
from tests.support.node import Node
from tests.support.processes import Client, children, pause, proc_stat, wait_until


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, "primary")
    yield made
    made.discard()


def fs_children(node: Node) -> list[int]:
    """The fs process, also before it mounts."""
    assert node.process is not None
    found = []
    for pid in children(node.process.pid):
        with contextlib.suppress(OSError):
            if b"litefs.fs.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def stop_in_time(node: Node, fs_pids: list[int]) -> None:
    """SIGTERM, and within the promised time neither process nor mount is left."""
    status = node.stop()
    assert status == 0
    wait_until(lambda: all(proc_stat(pid) is None for pid in fs_pids), 2, "the fs process is gone")


def test_stop_while_the_fs_process_is_frozen(node: Node) -> None:
    node.start()
    with Client("sql", "sqlite3", log=node.root / "clients.log") as client:
        client.call("open", path=node.path("a.db"))
        client.call("script", statements=["PRAGMA journal_mode=WAL", "CREATE TABLE t(a)"])
        time.sleep(1.5)  # the guard now holds files of the mount, and closing one may wait for the fs process
        pids = fs_children(node)
        pause(pids[0])
        stop_in_time(node, pids)


def test_stop_while_the_fs_process_starts(node: Node) -> None:
    node.launch()
    wait_until(lambda: bool(fs_children(node)), 10, "an fs process", 0.001)
    pids = fs_children(node)
    pause(pids[0])
    time.sleep(0.3)
    stop_in_time(node, pids)


def test_stop_twice(node: Node) -> None:
    node.start()
    assert node.process is not None
    pids = fs_children(node)
    node.process.send_signal(signal.SIGTERM)
    stop_in_time(node, pids)


def test_fs_process_that_dies_at_each_restart(node: Node) -> None:
    """The node goes on trying, can be stopped meanwhile, and serves again when it works at last."""
    node.start()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        for pid in fs_children(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    node.wait_recovered(None)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        for pid in fs_children(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    stop_in_time(node, fs_children(node))


def test_first_start_that_dies_ends_the_node(node: Node) -> None:
    node.launch()
    wait_until(lambda: bool(fs_children(node)), 10, "an fs process", 0.001)
    os.kill(fs_children(node)[0], signal.SIGKILL)
    assert node.process is not None
    assert node.process.wait(10) == 1
    assert "killed by signal 9" in node.log_tail()
    assert find_mount(node.mount) is None


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.4, 0.6, 0.8])
def test_node_killed_while_the_fs_process_starts(node: Node, delay: float) -> None:
    """Whenever it notices, the fs process leaves no mount."""
    node.launch()
    assert node.process is not None
    wait_until(lambda: bool(fs_children(node)), 10, "an fs process", 0.001)
    (pid,) = fs_children(node)
    time.sleep(delay)
    node.process.kill()
    node.process.wait(5)
    wait_until(lambda: proc_stat(pid) is None, 5, "the fs process ends after its node")
    assert find_mount(node.mount) is None, node.log_tail()
    assert "Traceback" not in node.log_tail()
