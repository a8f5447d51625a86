"""Three nodes elect their primary, each with an application behind its proxy; browsers ask any of them."""

from __future__ import annotations

import http.client
import os
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from litefs.client import cookie
from tests.support.elected import DATABASE, NAMES, Elected, lease_settings
from tests.support.node import Node, free_port
from tests.support.processes import Client, wait_until

REQUESTS = int(os.environ.get("LITEFS_SOAK", "1")) * 300
"""Writes during each change of primary."""
CLIENTS = 8
UPLOAD = 50 << 20
GROWTH = 32 << 20
"""Bytes that a node may grow while that passes through it."""


class Browser:
    """Asks one proxy, and keeps its cookie."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.cookie = ""

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        headers = {"Cookie": self.cookie} if self.cookie else {}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        for value in response.headers.get_all("Set-Cookie", []):
            if value.startswith(cookie.NAME):
                self.cookie = value.partition(";")[0]
        return response.status, response.read().decode()

    def close(self) -> None:
        self._connection.close()


@dataclass
class Site:
    """The cluster, and the ports of its proxies by node."""

    cluster: Elected
    ports: dict[str, int]
    numbers: int = 0

    def browser(self, name: str) -> Browser:
        return Browser(self.ports[name])

    def await_proxies(self) -> None:
        for port in self.ports.values():
            wait_until(lambda port=port: _answers(port), 20, f"a proxy\n{self.cluster.logs()}", 0.05)

    def under_load(
        self, names: list[str], change: Callable[[], object], *, planned: bool = True
    ) -> Counter[int]:
        """Send REQUESTS writes through the proxies of ``names``, ``change`` in their midst; how many got
        which status. None is there twice, and of a planned change every one that was acknowledged."""
        first, self.numbers = self.numbers, self.numbers + REQUESTS
        with Client("requester", CLIENTS, *(self.ports[name] for name in names)) as load:
            load.call("start", first=first, count=REQUESTS)
            wait_until(lambda: load.call("progress") > REQUESTS // 4, 60 + REQUESTS / 10, "requests", 0.01)
            change()
            results = load.call("finish", timeout=60 + REQUESTS / 5)
        longest = max(ended - began for _, _, _, began, ended in results)
        failures = [(status, text) for _, status, text, _, _ in results if status != 200]
        rate = len(results) / (max(one[4] for one in results) - min(one[3] for one in results))
        print(
            f"{len(results)} requests, {rate:.0f} a second, longest {longest:.2f} s, failed: {failures[:5]}"
        )
        rows = self.rows()
        assert max(rows.values()) == 1, f"applied twice: {[n for n, count in rows.items() if count > 1]}"
        missing = [number for number, status, *_ in results if status == 200 and number not in rows]
        assert not (planned and missing), f"acknowledged and lost: {missing[:10]}\n{self.cluster.logs()}"
        return Counter(status for _, status, *_ in results)

    def rows(self) -> Counter[int]:
        """How often each number is there."""
        path = self.cluster.nodes[self.cluster.await_primary()].path(DATABASE)
        with Client("sql", "sqlite3") as sql:
            sql.call("open", path=path, readonly=True)
            return Counter(row[0] for row in sql.call("execute", 30, statement="SELECT a FROM t"))


def _answers(port: int) -> bool:
    try:
        with closing(Browser(port)) as browser:
            return browser.ask("GET", "/has?n=-1")[0] == 200
    except OSError:
        return False


@pytest.fixture
def site(tmp_path: Path, make_node: Callable[..., Node]) -> Iterator[Site]:
    ports = {name: free_port() for name in NAMES}

    def own(name: str) -> dict[str, Any]:
        port, path = free_port(), tmp_path / name / "mnt" / DATABASE
        application = [sys.executable, "-m", "tests.support.clients.webapp", name, str(path), str(port)]
        return {
            "exec": shlex.join(application),
            "proxy": {
                "addr": f"127.0.0.1:{ports[name]}",
                "target": f"127.0.0.1:{port}",
                "db": DATABASE,
                "always-forward": ["/events"],
                "primary-redirect-timeout": "15s",
            },
        }

    with lease_settings("directory", tmp_path) as lease:
        cluster = Elected(make_node, lease, own=own)
        made = Site(cluster, ports)
        made.await_proxies()
        yield made


def test_a_write_through_any_proxy_is_read_there_at_once(site: Site) -> None:
    primary = site.cluster.await_following()
    number = 1_000_000
    for _ in range(20):
        for name in NAMES:
            number += 1
            with closing(site.browser(name)) as browser:
                assert browser.ask("POST", f"/add?n={number}") == (200, f"{primary} added")
                assert browser.cookie
                assert browser.ask("GET", f"/has?n={number}") == (200, f"{name} 1")
    replica = next(name for name in NAMES if name != primary)
    processes = [site.cluster.nodes[name].process for name in (primary, replica)]
    sizes = [psutil.Process(process.pid).memory_info().rss for process in processes if process is not None]
    with closing(site.browser(replica)) as browser:
        assert browser.ask("POST", "/size", bytes(UPLOAD)) == (200, f"{primary} {UPLOAD}")
    for process, before in zip(processes, sizes, strict=True):
        assert process is not None
        assert psutil.Process(process.pid).memory_info().rss - before < GROWTH
    with socket.create_connection(("127.0.0.1", site.ports[replica]), timeout=10) as connection:
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: h\r\n\r\n")
        received = b""
        while f"{primary} 3\n".encode() not in received:
            received += connection.recv(4096)
        assert f"{primary} 50\n".encode() not in received, "it comes as it is written"


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_the_proxy_serves_once_the_node_is_ready_and_ends_with_its_command(
    make_node: Callable[..., Node],
) -> None:
    port = free_port()
    proxy = {"addr": f"127.0.0.1:{port}", "target": "127.0.0.1:1", "db": DATABASE}
    primary = make_node("primary")
    replica = make_node(
        "replica", primary=primary, exec="sh -c 'sleep 1; exit 3'", proxy=proxy, **{"exit-on-error": False}
    )
    replica.start()
    assert not _listens(port), "it has nothing of its primary yet"
    primary.start()
    wait_until(lambda: _listens(port), 20, "the proxy", 0.02)
    wait_until(lambda: not _listens(port), 20, "the end of the proxy", 0.05)
    assert replica.info() is not None, "the node goes on"


def test_a_port_that_is_taken_is_named_at_once(make_node: Callable[..., Node]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = make_node("node", proxy={"addr": address, "target": "127.0.0.1:1", "db": DATABASE})
        assert node.launch().wait(20) == 1
        assert address in node.log_tail()


@pytest.mark.timeout(120 + REQUESTS)
def test_changes_of_primary_under_load(site: Site) -> None:
    """Planned ones fail no request; after a kill -9 only what the dead node was at has no answer."""
    cluster = site.cluster

    def hand_over() -> None:
        for _ in range(2):
            cluster.nodes[cluster.await_following()].post("/handoff")

    assert site.under_load(list(NAMES), hand_over) == {200: REQUESTS}
    primary = cluster.await_following()
    others = [name for name in NAMES if name != primary]
    assert site.under_load(others, cluster.nodes[primary].stop) == {200: REQUESTS}
    cluster.nodes[primary].start()
    site.await_proxies()
    primary = cluster.await_following()
    others = [name for name in NAMES if name != primary]

    def kill() -> None:
        cluster.nodes[primary].kill("both")
        cluster.await_primary(primary)
        cluster.nodes[primary].start()

    found = site.under_load(others, kill, planned=False)
    assert set(found) <= {200, 502}
    assert found[502] <= CLIENTS, "each client was at one request at most"
