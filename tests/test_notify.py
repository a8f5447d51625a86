"""What systemd is told: readiness, status, signs of life; and nothing where nobody listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from litefs.notify import STATUS_SECONDS, Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket, at ``tmp_path / "notify"``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def received(manager: socket.socket) -> list[str]:
    """All that has been said so far, a text for each message."""
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def run(notifier: Notifier, statuses: list[str], seconds: float) -> None:
    """Let the notifier run for that time of a clock that jumps; each look takes the next status."""

    async def bounded() -> None:
        with trio.move_on_after(seconds):
            await notifier.run(lambda: statuses.pop(0) if len(statuses) > 1 else statuses[0])

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_variables_are_taken_and_removed(manager: socket.socket, tmp_path: Path) -> None:
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    notifier = Notifier.taken_from(environment)
    assert environment == {"PATH": "/bin"}, "the supervised command is not the unit's main process"
    notifier.ready()
    notifier.stopping()
    assert received(manager) == ["READY=1", "STOPPING=1"]


def test_status_goes_out_when_it_changes(manager: socket.socket, tmp_path: Path) -> None:
    run(Notifier(str(tmp_path / "notify")), ["replica", "replica", "primary"], STATUS_SECONDS * 5.5)
    assert received(manager) == ["STATUS=replica", "STATUS=primary"]


def test_signs_of_life_come_twice_in_the_time_of_the_watchdog(manager: socket.socket, tmp_path: Path) -> None:
    run(Notifier(str(tmp_path / "notify"), watchdog=0.5), ["primary"], 1.1)
    assert received(manager) == ["WATCHDOG=1\nSTATUS=primary", *["WATCHDOG=1"] * 4]


@pytest.mark.parametrize("variables", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}])
def test_a_watchdog_of_another_process_or_none(
    variables: dict[str, str], manager: socket.socket, tmp_path: Path
) -> None:
    watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "500000", **variables}
    run(Notifier.taken_from(watched), ["primary"], 2.0)
    assert received(manager) == ["STATUS=primary"]


def test_an_abstract_socket() -> None:
    name = f"litefs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.setblocking(False)
        Notifier(f"@{name}").ready()
        assert received(listener) == ["READY=1"]


def test_nobody_listens_or_nobody_reads(tmp_path: Path) -> None:
    assert not Notifier.taken_from({}).is_wanted
    run(Notifier(), ["primary"], 2.0)
    Notifier(str(tmp_path / "missing")).ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "full"))
        notifier = Notifier(str(tmp_path / "full"))
        for _ in range(10_000):  # more than a socket holds: this must not wait
            notifier.ready()
