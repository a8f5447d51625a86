"""Fixtures of the tests on real mounts, and the guard that no test leaves a process or a mount behind."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import litestream, netns
from tests.support.netns import Host, Network
from tests.support.node import Node, unmount_below
from tests.support.processes import MARKER, Client, command_line, proc_stat, run_members

_REPORT = pytest.StashKey[dict[str, pytest.CollectReport | pytest.TestReport]]()
_left_behind = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    os.environ[MARKER] = uuid.uuid4().hex
    config.stash[_left_behind] = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    item.stash.setdefault(_REPORT, {})[report.when] = report
    return report


def _failed(request: pytest.FixtureRequest) -> bool:
    report = request.node.stash.get(_REPORT, {}).get("call")
    return report is not None and report.failed


@pytest.fixture
def network() -> Iterator[Network]:
    """An empty network of namespaces (see tests/support/netns.py), removed after the test."""
    with Network() as network:
        yield network


@pytest.fixture
def make_node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Node]]:
    """A factory of nodes below ``tmp_path``; all are ended after the test, their logs shown if it failed."""
    nodes: list[Node] = []

    def make(name: str, *, primary: Node | None = None, host: Host | None = None, **overrides: Any) -> Node:
        node = Node(tmp_path, name, primary=primary, host=host, **overrides)
        nodes.append(node)
        return node

    yield make
    failed = _failed(request)
    for node in reversed(nodes):
        node.discard()
        if failed:
            request.node.add_report_section("teardown", node.name, node.log_tail(200))


@pytest.fixture
def primary_and_replica(make_node: Callable[..., Node]) -> tuple[Node, Node]:
    """A running primary and a running replica of it."""
    primary = make_node("primary").start()
    replica = make_node("replica", primary=primary).start()
    return primary, replica


@pytest.fixture
def make_client(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Client]]:
    """A factory of clients (see tests/support/clients), all ended after the test."""
    clients: list[Client] = []
    log = tmp_path / "clients.log"

    def make(module: str, *arguments: object) -> Client:
        client = Client(module, *arguments, log=log)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
    if _failed(request) and log.exists():
        request.node.add_report_section("teardown", "clients", log.read_text(errors="replace")[-8000:])


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test with nodes or clients leaves running or mounted is ended, and fails the run."""
    yield
    if {"make_node", "make_client", "network"} & set(request.fixturenames):
        _sweep(request.config, request.node.nodeid)


def _sweep(config: pytest.Config, where: str) -> None:
    found = config.stash[_left_behind]
    # The fixtures have been torn down by now; what ends by itself gets a moment to do so.
    deadline = time.monotonic() + 2
    while (pids := run_members()) and time.monotonic() < deadline:
        time.sleep(0.05)
    base = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    found.extend(f"{where}: mount at {path}" for path in unmount_below(base))
    for pid in pids:
        found.append(f"{where}: process {pid} {proc_stat(pid)} {command_line(pid)}")
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for namespace in netns.own():
        found.append(f"{where}: network namespace {namespace}")
        netns.remove(namespace)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("dist", "no") == "no":  # a worker of pytest-xdist, too
        _sweep(config, "end of the run")
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_behind"] = config.stash[_left_behind]
    if config.stash[_left_behind]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended: what it found counts for the run."""
    node.config.stash[_left_behind].extend(getattr(node, "workeroutput", {}).get("left_behind", ()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    passed = terminalreporter.stats.get("passed", ())
    if any("test_litestream" in test.nodeid or "test_golden" in test.nodeid for test in passed):
        terminalreporter.write_line(litestream.which())
    for description in config.stash[_left_behind]:
        terminalreporter.write_line(f"LEFT BEHIND: {description}", red=True)
