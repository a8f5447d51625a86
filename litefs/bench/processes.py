"""The bench's side of its processes: started, spoken to, and ended in bounded time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Pipe, wait
from typing import Any

from litefs.bench.settings import BenchError, CheckFailed
from litefs.bench.worker import STOP, Failed, Progress

GRACE_SECONDS = 60.0
"""How much longer than planned a process may take to answer."""

END_SECONDS = 5.0
LOOK_SECONDS = 0.1
"""How often somebody who waits looks whether the user wants an end."""


class Worker:
    """A process that runs a function of :mod:`litefs.bench.worker`."""

    def __init__(self, name: str, function: Callable[..., None], *arguments: object) -> None:
        self.name = name
        self.pipe, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            command = [sys.executable, "-m", "litefs.bench.spawned", str(descriptor)]
            self._process = subprocess.Popen(command, pass_fds=[descriptor], stdin=subprocess.DEVNULL)
        self.send((function, arguments))

    def send(self, message: object) -> None:
        """Raises BenchError if it has ended."""
        try:
            self.pipe.send(message)
        except OSError:
            raise BenchError(self._gone()) from None

    def receive(self) -> Any:
        """The next message. Raises BenchError if it failed or ended, CheckFailed."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            raise BenchError(self._gone()) from None
        if isinstance(message, Failed):
            raise (CheckFailed if message.check else BenchError)(f"{self.name}: {message.message}")
        return message

    def _gone(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        return f"{self.name}: its process ended with status {self._process.poll()}"

    def stop_round(self) -> None:
        """Let it end its round now."""
        self._process.send_signal(STOP)

    def end(self) -> None:
        """End it, by force if need be."""
        self.pipe.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_SECONDS)


def answers(
    workers: Sequence[Worker],
    seconds: float,
    stop: Callable[[], bool],
    progress: Callable[[int], None] = lambda operations: None,
) -> list[Any]:
    """One message of each worker, in their order; they have ``seconds`` and GRACE_SECONDS for it.

    When ``stop()`` says so, they are told to end their round. ``progress`` hears of all their operations.
    Raises BenchError if one fails or does not answer, CheckFailed.
    """
    deadline = time.monotonic() + seconds + GRACE_SECONDS
    found: dict[int, Any] = {}
    done = [0] * len(workers)
    stopped = False
    by_pipe = {worker.pipe: number for number, worker in enumerate(workers)}
    while len(found) < len(workers):
        if stop() and not stopped:
            stopped = True
            for worker in workers:
                worker.stop_round()
        waiting = [pipe for pipe, number in by_pipe.items() if number not in found]
        for pipe in wait(waiting, LOOK_SECONDS):
            number = by_pipe[pipe]  # type: ignore[index]
            message = workers[number].receive()
            if isinstance(message, Progress):
                done[number] = message.operations
                progress(sum(done))
            else:
                found[number] = message
        if time.monotonic() > deadline:
            silent = ", ".join(worker.name for number, worker in enumerate(workers) if number not in found)
            raise BenchError(f"{silent}: no answer for {GRACE_SECONDS:g} s; does the mount answer?")
    return [found[number] for number in range(len(workers))]
