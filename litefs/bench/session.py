"""One directory under load: its database, its clients, its rounds, and the check at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from litefs.bench import database
from litefs.bench.check import check
from litefs.bench.machine import cpu_times, file_system, stolen
from litefs.bench.meter import Measured, Task
from litefs.bench.processes import Worker, answers
from litefs.bench.result import Round, Target
from litefs.bench.settings import BenchError, Settings
from litefs.bench.worker import load
from litefs.bench.workloads import kinds

NAME = "litefs-bench.db"

LEAD_SECONDS = 0.02
"""Until a round begins, so that all clients have heard of it."""

INTERVALS = 50
"""Of the time series of a round, at most; each is at least SHORTEST_INTERVAL."""

SHORTEST_INTERVAL = 0.1
"""Seconds."""


class Watcher(Protocol):
    """Who is told how far it is."""

    def filling(self, path: str, share: float) -> None:
        """The table of a directory is being filled."""

    def round(self, path: str, number: int, share: float, operations: int) -> None:
        """A round is under way: the share of its time, and what was done in it."""


class Quiet:
    """Nobody is told."""

    def filling(self, path: str, share: float) -> None:
        """See Watcher."""

    def round(self, path: str, number: int, share: float, operations: int) -> None:
        """See Watcher."""


class Session:
    """A context: the database is made when it begins and, unless ``keep``, removed when it ends.

    ``reuse``: read a database that an earlier run kept, which stays. ``stop()`` true ends a round early.
    Every method raises BenchError.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        *,
        name: str = NAME,
        keep: bool = False,
        reuse: bool = False,
        stop: Callable[[], bool] = lambda: False,
        watcher: Watcher | None = None,
    ) -> None:
        if not directory.is_dir():
            raise BenchError(f"{directory} is no directory: give the one that the database is to be made in")
        self.path = directory / name
        self.settings = settings
        self.target = Target(str(directory), file_system(directory))
        self._keep = keep or reuse
        self._reuse = reuse
        self._made = False
        self._failed = False
        self.stop = stop
        self._watcher: Watcher = watcher or Quiet()
        self._workers: list[Worker] = []
        self._written: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._prepare()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _prepare(self) -> None:
        if self._reuse:
            self.settings = database.reuse(self.path, self.settings)
        else:
            database.create(self.path, self.settings, self._filling)
            self._made = True
        self._written = [0] * self.settings.clients
        for number in range(self.settings.clients):
            name = f"client {number} of {self.path}"
            self._workers.append(Worker(name, load, self.path, self.settings, number))
        answers(self._workers, 0, lambda: False)

    def _filling(self, share: float) -> None:
        self._watcher.filling(self.target.path, share)
        if self.stop():
            raise KeyboardInterrupt

    def _close(self) -> None:
        for worker in self._workers:
            worker.end()
        if self._made and not self._keep:
            database.remove(self.path)

    def round(self) -> None:
        """Run a round and note it; one that ``stop()`` or an error cut short is noted as far as it came."""
        before = cpu_times()
        measured, interval = self.load()
        done = Round.of(kinds(self.settings), measured, interval)
        done.steal = stolen(before, cpu_times())
        self.target.rounds.append(done)

    def load(self, *, raw: bool = False) -> tuple[list[Measured], int]:
        """Have the clients work for a round. What they did, and ns of each interval of it."""
        settings = self.settings
        period = 1e9 * settings.clients / settings.rate if settings.rate else 0.0
        interval = max(SHORTEST_INTERVAL, settings.seconds / INTERVALS)
        warmup = 0.0 if period else settings.warmup
        begin = time.monotonic_ns() + int((LEAD_SECONDS + warmup) * 1e9)
        for number, worker in enumerate(self._workers):
            task = Task(
                begin=begin,
                length=int(settings.seconds * 1e9),
                interval=int(interval * 1e9),
                warmup=int(warmup * 1e9),
                period=period,
                shift=period * number / settings.clients,
                raw=raw,
            )
            worker.send(task)
        number = len(self.target.rounds) + 1

        def progress(operations: int) -> None:
            share = min(1.0, (time.monotonic_ns() - begin) / 1e9 / settings.seconds)
            self._watcher.round(self.target.path, number, share, operations)

        planned = LEAD_SECONDS + warmup + settings.seconds * (2 if period else 1)
        measured: list[Measured] = answers(self._workers, planned, self.stop, progress)
        self._written = [client.written for client in measured]
        self._failed = self._failed or any(client.error for client in measured)
        return measured, int(interval * 1e9)

    @property
    def written(self) -> int:
        """Rows that the clients were told are committed, all rounds together."""
        return sum(self._written)

    def check(self, path: Path | None = None) -> None:
        """Hold the database (or a replica's, at ``path``) to what was acknowledged. Raises CheckFailed."""
        check(path or self.path, self.settings, self._written, self._failed)
        self.target.checked = True
