"""Starting, finding and ending the processes of a test run. Every wait is bounded.

A marker in the environment is inherited by everything that a run starts, however deep, so that what outlives
its test can be found and ended without ever touching a process of somebody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

MARKER = "LITEFS_TEST_RUN"
ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ClientStuck(AssertionError):
    """A client did not answer in time."""


class ClientError(Exception):
    """The client answered with an error: the exception's class name and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


def wait_until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.02) -> None:
    """Poll ``condition`` until it holds; AssertionError naming ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(interval)


def die_with_parent() -> None:
    """In a child between fork and exec: be killed when the parent thread ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
    """Start a process in a session of its own, which dies with this one."""
    # One fork hook is needed for PR_SET_PDEATHSIG; it makes one system call and takes no lock.
    return subprocess.Popen(
        [os.fspath(word) for word in command],
        start_new_session=True,
        preexec_fn=die_with_parent,
        **{"cwd": ROOT, **options},
    )


def end(process: subprocess.Popen[Any], timeout: float = 5) -> None:
    """Kill a process's whole group and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout)


def proc_stat(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process (proc(5)), or None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1])


def pause(*pids: int, timeout: float = 10) -> None:
    """SIGSTOP, and wait until no thread of the processes runs: the signal alone only asks for it, and what
    comes in within the next milliseconds may still be answered. AssertionError after ``timeout`` seconds.

    A thread that waits in the kernel stops when it leaves it.
    """

    def stopped(pid: int) -> bool:
        states = []
        for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = thread.read_text()
                states.append(text[text.rindex(")") + 2])
        return all(state in "TtDZX" for state in states)

    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: stopped(pid), timeout, f"process {pid} to stop", 0.001)


def open_to_others(path: Path) -> None:
    """Let processes of other users reach ``path``: what pytest makes is closed to them."""
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if not mode & 0o001:
            directory.chmod(mode | 0o011)


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    found = []
    for candidate in all_pids():
        stat = proc_stat(candidate)
        if stat is not None and stat[1] == pid:
            found.append(candidate)
    return found


def holds_fuse_device(pid: int) -> bool:
    """Whether a process serves a FUSE mount."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}") == "/dev/fuse":
                return True
    return False


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(gone)"


def run_members() -> list[int]:
    """Every live process that this run started, found by the inherited marker."""
    wanted = f"{MARKER}={os.environ[MARKER]}".encode()
    members = []
    for pid in all_pids():
        stat = proc_stat(pid)
        if pid == os.getpid() or stat is None or stat[0] == "Z":
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                members.append(pid)
    return members


def assert_none_hangs(seconds: float = 2.0) -> None:
    """No process of this run stays in state D (waiting in the kernel, not interruptible) for ``seconds``."""
    deadline = time.monotonic() + seconds
    suspects = run_members()
    while suspects:
        suspects = [pid for pid in suspects if (proc_stat(pid) or ("gone", 0))[0] == "D"]
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    assert not suspects, f"in state D: {[(pid, command_line(pid)) for pid in suspects]}"


class Client:
    """A program in another process: one JSON line in, one JSON line out.

    ``module``: its name under ``tests.support.clients``, or its full name. ``log`` receives what it
    writes to stderr.
    """

    def __init__(self, module: str, *arguments: object, log: Path | None = None) -> None:
        self.name = f"{module} {' '.join(map(str, arguments))}"
        full = module if "." in module else f"tests.support.clients.{module}"
        command = [sys.executable, "-m", full, *map(str, arguments)]
        self._stderr: IO[bytes] | None = log.open("ab") if log is not None else None
        self.process = spawn(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, bufsize=1
        )
        self._lines: Queue[str | None] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def send(self, operation: str, **arguments: object) -> None:
        """Send a request without waiting; the answer is taken by :meth:`answer`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise ClientError("Ended", f"{self.name} is gone") from error

    def answer(self, timeout: float = 10) -> Any:
        """The next answer. Raises ClientError for an error answer, ClientStuck if none comes in time."""
        try:
            line = self._lines.get(timeout=timeout)
        except Empty:
            stat = proc_stat(self.process.pid)
            raise ClientStuck(f"{self.name}: no answer within {timeout:g} s, state {stat}") from None
        if line is None:
            raise ClientError("Ended", f"{self.name} ended with status {self.process.wait(5)}")
        message = json.loads(line)
        if "error" in message:
            raise ClientError(message["error"], message["message"])
        return message["result"]

    def call(self, operation: str, timeout: float = 10, **arguments: object) -> Any:
        """Send a request and wait for its answer."""
        self.send(operation, **arguments)
        return self.answer(timeout)

    def close(self) -> None:
        """End the process, however it is doing."""
        end(self.process)
        self._reader.join(5)
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
