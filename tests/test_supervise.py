"""The supervised application: order, exit codes, signals, and that it never outlives the node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from litefs.config import ExecCommand
from litefs.errors import CommandFailed, ConfigError
from litefs.supervise import Supervisor, commands_of, notice_of
from litefs.types import Role

PATIENCE = 10.0
"""Seconds before a test counts as hanging."""


def shell(script: str, *, if_candidate: bool = False) -> ExecCommand:
    assert "'" not in script
    return ExecCommand(cmd=f"sh -c '{script}'", if_candidate=if_candidate)


def run(*commands: ExecCommand, candidate: bool = True) -> int:
    async def bounded() -> int:
        with trio.fail_after(PATIENCE):
            return await Supervisor(commands).run(candidate)

    return trio.run(bounded)


async def appears(path: Path) -> str:
    """Wait for a file with content."""
    file = trio.Path(path)
    with trio.fail_after(PATIENCE):
        while not await file.exists() or not await file.read_text():
            await trio.sleep(0.01)
    return await file.read_text()


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def test_commands_run_in_order_and_the_last_ones_code_is_passed_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(shell(f"echo 1 >> {out}"), shell(f"echo 2 >> {out}; exit 7")) == 7
    assert out.read_text() == "1\n2\n"


def test_an_earlier_failure_stops(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="exec command 1 failed with exit status 3"):
        run(shell("exit 3"), shell(f"touch {tmp_path}/out"))
    assert not (tmp_path / "out").exists()


def test_a_command_that_does_not_exist() -> None:
    with pytest.raises(CommandFailed, match="cannot start '/nonexistent/app'"):
        run(ExecCommand(cmd="/nonexistent/app"))


def test_a_bad_command_is_found_before_any_runs() -> None:
    with pytest.raises(ConfigError, match="needs a shell"):
        Supervisor([shell("true"), ExecCommand(cmd="a | b")])


def test_candidates_only(tmp_path: Path) -> None:
    migrate = shell(f"touch {tmp_path}/migrated", if_candidate=True)
    assert run(migrate, shell("exit 4"), candidate=False) == 4
    assert not (tmp_path / "migrated").exists()
    assert run(migrate, shell("exit 4"), candidate=True) == 4
    assert (tmp_path / "migrated").exists()


def test_death_by_a_signal_of_someone_else() -> None:
    assert run(shell("kill -9 $$")) == 128 + signal.SIGKILL


def test_environment_and_stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUPERVISE_TEST", "hello")
    assert run(shell(f"cat > {tmp_path}/in; echo $SUPERVISE_TEST > {tmp_path}/out")) == 0
    assert (tmp_path / "in").read_text() == ""
    assert (tmp_path / "out").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("trap", "signum", "code"),
    [
        ("", signal.SIGTERM, 0),
        ('trap "exit 5" TERM;', signal.SIGTERM, 5),
        ('trap "exit 6" INT;', signal.SIGINT, 6),
        ('trap "" TERM;', signal.SIGTERM, 0),
    ],
    ids=["dies", "answers", "interrupted", "ignores"],
)
def test_terminate(tmp_path: Path, trap: str, signum: signal.Signals, code: int) -> None:
    ready = tmp_path / "ready"
    supervisor = Supervisor([shell(f"{trap} echo $$ > {ready}; while :; do sleep 0.05; done")], grace=0.5)

    async def scenario() -> tuple[int, int]:
        result = -1

        async def supervised() -> None:
            nonlocal result
            result = await supervisor.run(True)

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervised)
                pid = int(await appears(ready))
                supervisor.terminate(signum)
        return result, pid

    result, pid = trio.run(scenario)
    assert result == code
    assert gone(pid)


def test_terminate_stops_the_sequence(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [shell(f"echo 1 > {tmp_path}/ready; exec sleep 30"), shell(f"touch {tmp_path}/second")]
    )

    async def scenario() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.run, True)
                await appears(tmp_path / "ready")
                supervisor.terminate()

    trio.run(scenario)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("commands", [[], [shell("true", if_candidate=True)]])
def test_with_nothing_to_watch_it_waits_until_told(commands: list[ExecCommand]) -> None:
    supervisor = Supervisor(commands)

    async def scenario() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.run, False)
                await trio.testing.wait_all_tasks_blocked()
                assert nursery.child_tasks
                supervisor.terminate()

    trio.run(scenario)


@pytest.mark.parametrize("trap", ["", 'trap "" TERM;'], ids=["dies", "ignores"])
def test_cancellation_ends_the_command(tmp_path: Path, trap: str) -> None:
    ready = tmp_path / "ready"

    async def scenario() -> int:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor(
                    [shell(f"{trap} echo $$ > {ready}; while :; do sleep 0.05; done")], grace=0.3
                )
                nursery.start_soon(supervisor.run, True)
                pid = int(await appears(ready))
                nursery.cancel_scope.cancel()
        return pid

    assert gone(trio.run(scenario))


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that supervises a sleeping command from trio, with worker threads that come and go."""
    ready = tmp_path / "ready"
    code = f"""
import trio
import trio.testing
from litefs.config import ExecCommand
from litefs.supervise import Supervisor
async def main():
    await trio.to_thread.run_sync(int)
    await Supervisor([ExecCommand(cmd="sh -c 'echo $$ > {ready}; exec sleep 60'")]).run(True)
trio.run(main)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    pid = 0
    try:
        pid = int(trio.run(appears, ready))
        yield process, pid
    finally:
        process.kill()
        process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL)


def test_the_command_dies_with_the_node(parent: tuple[subprocess.Popen[bytes], int]) -> None:
    process, pid = parent
    process.kill()
    process.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not gone(pid) and time.monotonic() < deadline:
        # Its adoptive parent may be slow to reap it; a zombie has ended.
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.02)
    assert gone(pid)


def test_a_command_line_replaces_the_configured_commands() -> None:
    configured = [ExecCommand(cmd="a")]
    assert commands_of(configured, None) == configured
    assert commands_of(configured, ["app -x 'y z'"]) == [ExecCommand(cmd="app -x 'y z'")]
    assert commands_of(configured, ["app", "y z", ">"]) == [ExecCommand(cmd="app 'y z' '>'")]


@pytest.mark.parametrize("notice", ["HUP", "command"])
def test_the_command_that_runs_is_told_of_a_change_of_role(tmp_path: Path, notice: str) -> None:
    told, ready = tmp_path / "told", tmp_path / "ready"
    trap = f'trap "echo told > {told}" HUP; echo yes > {ready}; while true; do sleep 0.05; done'
    on_promote = notice if notice == "HUP" else f"sh -c 'echo told > {told}'"
    command = ExecCommand(cmd=f"sh -c '{trap}'", on_promote=on_promote, on_demote="/no/such/command")

    async def main() -> str:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor([shell("exit 0"), command])
                nursery.start_soon(supervisor.run, True)
                await appears(ready)
                await supervisor.tell(Role.REPLICA)  # what cannot be started is logged, and nothing more
                assert not told.exists()
                await supervisor.tell(Role.PRIMARY)
                text = await appears(told)
                supervisor.terminate(signal.SIGKILL)
        return text

    assert trio.run(main).strip() == "told"


def test_a_command_is_not_told_the_role_that_it_started_with(tmp_path: Path) -> None:
    """A signal that it does not expect yet would end it."""
    ready, told = tmp_path / "ready", tmp_path / "told"
    note = f"sh -c 'echo told >> {told}'"
    command = ExecCommand(cmd=f"sh -c 'echo yes > {ready}; exec sleep 60'", on_promote=note, on_demote=note)

    async def main() -> str:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor([command], role=lambda: Role.PRIMARY)
                nursery.start_soon(supervisor.run, True)
                await appears(ready)
                for role in (Role.PRIMARY, Role.REPLICA, Role.REPLICA):
                    await supervisor.tell(role)
                supervisor.terminate(signal.SIGKILL)
        return told.read_text()

    assert trio.run(main) == "told\n"


def test_a_notice_is_a_signal_or_a_command() -> None:
    assert notice_of("usr1") == notice_of("SIGUSR1") == signal.SIGUSR1
    assert notice_of("sv restart 'the app'") == ["sv", "restart", "the app"]
    assert notice_of(" ") is None
