"""The role in a Fly machine's metadata, told to a server on a unix socket."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from litefs.cluster import fly
from litefs.cluster.fly import MachineRole
from litefs.types import Role

PATH = "/v1/apps/app/machines/m%2F1/metadata/role"


class Machine:
    """The metadata server: the requests that came, and ``answers`` (status, or None to hang) for the next
    ones; 200 after that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[tuple[str, object, float]] = []
        self.answers: list[int | None] = []
        self._end = threading.Event()
        machine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                machine.requests.append((self.path, json.loads(body), time.monotonic()))
                status = machine.answers.pop(0) if machine.answers else 200
                if status is None:
                    machine._end.wait(30)
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def address_string(self) -> str:
                return "local"

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def values(self) -> list[str]:
        return [body["value"] for _, body, _ in self.requests if isinstance(body, dict)]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    server = Machine(tmp_path / "api")
    yield server
    server.close()


def run(role: MachineRole, steps: Callable[[], Awaitable[None]]) -> None:
    """Run the reporter until ``steps``, an async function, returns."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(role.run)
            with trio.fail_after(20):
                await steps()
            nursery.cancel_scope.cancel()

    trio.run(main)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.02)


def test_each_change_is_told_once(machine: Machine) -> None:
    role = MachineRole("app", "m/1", machine.path)

    async def steps() -> None:
        role.report(Role.REPLICA)
        await until(lambda: len(machine.requests) == 1)
        role.report(Role.NONE)
        role.report(Role.PRIMARY)
        await until(lambda: len(machine.requests) == 2)
        role.report(Role.PRIMARY)
        await trio.sleep(0.3)

    run(role, steps)
    assert [request[:2] for request in machine.requests] == [
        (PATH, {"value": "replica"}),
        (PATH, {"value": "primary"}),
    ]


def test_a_failure_is_tried_again_after_a_second(machine: Machine) -> None:
    role = MachineRole("app", "m", machine.path)
    machine.answers = [500, 404]

    async def steps() -> None:
        role.report(Role.PRIMARY)
        await until(lambda: len(machine.requests) == 3)
        await trio.sleep(1.3)

    run(role, steps)
    times = [when for _, _, when in machine.requests]
    assert machine.values() == ["primary"] * 3
    assert all(0.9 <= later - earlier < 2 for earlier, later in pairwise(times))


def test_a_newer_role_ends_the_report_of_an_older_one(machine: Machine) -> None:
    role = MachineRole("app", "m", machine.path)
    machine.answers = [None]

    async def steps() -> None:
        role.report(Role.PRIMARY)
        await until(lambda: len(machine.requests) == 1)
        role.report(Role.REPLICA)
        with trio.fail_after(1):
            await until(lambda: len(machine.requests) == 2)
        await trio.sleep(2.5)

    run(role, steps)
    assert machine.values() == ["primary", "replica"]


def test_a_server_that_hangs_is_asked_again(machine: Machine) -> None:
    role = MachineRole("app", "m", machine.path)
    machine.answers = [None]

    async def steps() -> None:
        role.report(Role.PRIMARY)
        await until(lambda: len(machine.requests) == 2)

    run(role, steps)
    (_, _, first), (_, _, second) = machine.requests
    assert 2.9 <= second - first < 4.5


def test_it_gives_up_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fly, "RETRY_SECONDS", 0.01)
    role = MachineRole("app", "m", tmp_path / "nothing")

    async def steps() -> None:
        role.report(Role.PRIMARY)
        await until(lambda: bool(caplog.records))

    with caplog.at_level(logging.WARNING):
        run(role, steps)
    assert "'primary' could not be told to Fly.io" in caplog.text


def test_only_a_machine_of_fly_is_told() -> None:
    assert MachineRole.of_environment({"FLY_APP_NAME": "a"}) is None
    assert MachineRole.of_environment({"FLY_MACHINE_ID": "m"}) is None
    assert MachineRole.of_environment({"FLY_APP_NAME": "a", "FLY_MACHINE_ID": "m"}) is not None
