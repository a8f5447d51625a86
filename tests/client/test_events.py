"""Events of real nodes, and who is primary, through whatever breaks the connection."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from litefs.client import Event, NotOnMount, NotReady, PeerError, PrimaryMonitor, WaitTimeout, aio, events
from litefs.client.feed import FIRST_PAUSE
from litefs.client.loops import bounded
from tests.client.conftest import SECONDS, Run, in_asyncio, in_trio
from tests.support.node import Node, free_port
from tests.support.processes import Client, wait_until

INSERT = "INSERT INTO t VALUES(1)"


def take(stream: Iterator[Event], kind: str) -> Event:
    """The next event of a type; those before it are passed over."""
    deadline = time.monotonic() + SECONDS
    for event in stream:
        if event.type == kind:
            return event
        assert time.monotonic() < deadline, event
    raise AssertionError(f"no {kind}")


@pytest.mark.parametrize("role", ["primary", "replica"])
def test_events_of_a_node(role: str, nodes: tuple[Node, Node], sql: Client) -> None:
    node = nodes[role == "replica"]
    with events(node.path("app.db"), databases=["app*"], pages=True) as stream:
        init = next(stream)
        assert (init.type, init.data["isPrimary"]) == ("init", role == "primary")
        assert set(init.data["positions"]) == {"app.db"}
        with Client("sql", "sqlite3") as other:
            other.call("open", path=nodes[0].path("other.db"))
            other.call("execute", statement=INSERT)
        sql.call("execute", statement=INSERT)
        first = take(stream, "tx")
        assert first.db == "app.db", "the other one is filtered"
        assert first.position is not None
        assert first.position == node.position("app.db")
        pages = take(stream, "pages")
        assert pages.data["txID"] == first.data["txID"]
        assert pages.data["pages"]
    assert list(stream) == [], "closed"


def test_a_lost_connection_is_made_again(nodes: tuple[Node, Node], sql: Client) -> None:
    replica = nodes[1]
    with events(replica.mount) as stream:
        take(stream, "init")
        replica.stop()
        take(stream, "disconnected")
        following: list[Event] = []
        reader = threading.Thread(target=lambda: following.append(next(stream)))
        reader.start()
        time.sleep(3 * FIRST_PAUSE)  # some attempts fail
        replica.start()
        reader.join(SECONDS)
        init = following[0]
        assert init.type == "init", "said once, however often it was tried"
        sql.call("execute", statement=INSERT)
        position = take(stream, "tx").position
        assert position is not None
        assert init.data["positions"]["app.db"] < str(position)


def test_another_thread_ends_it(nodes: tuple[Node, Node]) -> None:
    stream = events(nodes[0].mount)
    assert next(stream).type == "init"
    rest: list[Event] = []
    thread = threading.Thread(target=lambda: rest.extend(stream))
    thread.start()
    time.sleep(0.2)
    stream.close()
    thread.join(5)
    assert not thread.is_alive()


def test_asynchronous_events(run: Run, nodes: tuple[Node, Node], sql: Client) -> None:
    async def follow() -> list[Any]:
        found: list[Any] = []
        async with aio.events(nodes[1].path("app.db"), databases=["app.db"]) as stream:
            async for event in stream:
                if event.type == "init":
                    sql.call("execute", statement=INSERT)
                found.append((event.type, event.db, event.position))
                if len(found) == 2:
                    break
        return found

    init, tx = run(follow)
    assert init == ("init", "", None)
    assert tx == ("tx", "app.db", nodes[0].position("app.db"))


def test_asynchronous_events_begin_anew(run: Run, nodes: tuple[Node, Node]) -> None:
    replica = nodes[1]

    async def follow() -> list[str]:
        found: list[str] = []
        async with aio.events(replica.mount) as stream:
            async for event in stream:
                found.append(event.type)
                if found == ["init"]:
                    replica.stop()
                elif event.type == "disconnected":
                    replica.start()
                elif found.count("init") == 2:
                    break
        return found

    found = run(follow)
    assert found.count("disconnected") == 1
    assert found[-1] == "init"


def test_an_unknown_path(run: Run, nodes: tuple[Node, Node]) -> None:
    with pytest.raises(NotOnMount):
        events("/")

    async def enter() -> None:
        async with aio.events("/"):
            raise AssertionError("entered")

    with pytest.raises(NotOnMount):
        run(enter)


def test_by_url_with_a_token(tmp_path: Path) -> None:
    node = Node(tmp_path, "secret", http={"auth-token": "sesame"})
    node.headers = {"Authorization": "Bearer sesame"}
    try:
        node.start()
        with events(node.url, token="sesame") as stream:
            assert next(stream).data["isPrimary"]
        with pytest.raises(PeerError, match="401"), events(node.url) as stream:
            next(stream)

        async def first(token: str) -> Event:
            async with aio.events(node.url, token=token) as stream:
                return await anext(aiter(stream))

        for run in (in_trio, in_asyncio):
            assert run(lambda: first("sesame")).data["isPrimary"]
            with pytest.raises(PeerError, match="401"):
                run(lambda: first("wrong"))
    finally:
        node.discard()


def test_the_monitor(nodes: tuple[Node, Node]) -> None:
    primary, replica = nodes
    with PrimaryMonitor(primary.mount) as here, PrimaryMonitor(replica.path("app.db")) as there:
        here.wait_ready()
        there.wait_ready()
        assert (here.is_primary, here.hostname) == (True, None)
        wait_until(lambda: there.hostname == "primary", 10, "the replica is connected")
        assert not there.is_primary
        primary.stop()
        wait_until(lambda: _unknown(here), 10, "the node is gone")
        wait_until(lambda: there.hostname is None, 20, "the replica's primary is gone")
        primary.start()
        here.wait_ready(SECONDS)
        assert here.is_primary
        wait_until(lambda: there.hostname == "primary", 20, "it is back")


def _unknown(monitor: PrimaryMonitor) -> bool:
    try:
        monitor.wait_ready(0)
    except WaitTimeout:
        return True
    return False


def test_a_monitor_of_nothing() -> None:
    with PrimaryMonitor(f"http://127.0.0.1:{free_port()}") as monitor:
        with pytest.raises(NotReady):
            _ = monitor.hostname
        with pytest.raises(WaitTimeout, match=r"did not tell within 0\.2 s"):
            monitor.wait_ready(0.2)


def test_the_client_needs_nothing_but_python() -> None:
    """Whoever only waits for a position does not pay for an HTTP library."""
    code = (
        "import sys; import litefs.client, litefs.client.wsgi, litefs.client.asgi, litefs.client.aio;"
        "print({'trio', 'httpx', 'msgspec', 'yaml', 'xxhash', 'pyfuse3'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "set()\n"


def test_a_look_that_is_cancelled_while_it_connects_breaks_nothing(run: Run) -> None:
    """As by a time limit for one event: the next look begins a connection of its own."""
    go_on = threading.Event()
    lines = b'{"type":"init","data":{"isPrimary":true}}\n'

    def answer(listener: socket.socket) -> None:
        for slowly in (True, False):
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\n")
                if slowly:
                    assert go_on.wait(20)
                connection.sendall(b"\r\n" + lines)

    async def follow(url: str) -> str:
        async with aio.events(url) as stream:
            with pytest.raises(TimeoutError):
                async with bounded(0.3):
                    await anext(stream)
            go_on.set()
            return (await anext(stream)).type

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        try:
            assert run(lambda: follow(f"http://127.0.0.1:{listener.getsockname()[1]}")) == "init"
        finally:
            go_on.set()
            thread.join(20)
