"""The workloads on two directories: how late a replica shows a commit, and how fast it catches up."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from litefs import client
from litefs.bench.histogram import Histogram
from litefs.bench.machine import cpu_times, stolen
from litefs.bench.meter import Measured
from litefs.bench.processes import Worker, answers
from litefs.bench.result import Figures, Round
from litefs.bench.session import Session
from litefs.bench.settings import BenchError, Settings
from litefs.bench.worker import Until, Watch, watch_position, watch_rows
from litefs.errors import LiteFSError

LAG_RATE = 100.0
"""Commits a second of ``lag``, unless -rate says otherwise."""

DRAIN_SECONDS = 30.0
"""How long after its commit a row of ``lag`` may come."""

CATCH_UP_SECONDS = 600.0
COMMAND_SECONDS = 60.0
"""How long the commands of ``catch-up`` may take."""


class _ReplicaSession(Session):
    """A session with a process that watches the database of the same name in another directory."""

    def __init__(self, directory: Path, replica: Path, settings: Settings, **options: Any) -> None:
        super().__init__(directory, settings, **options)
        if not replica.is_dir():
            raise BenchError(f"-replica {replica} is no directory: give the mount of a replica")
        self.replica = replica / self.path.name
        self._eye: Worker | None = None

    def _close(self) -> None:
        if self._eye is not None:
            self._eye.end()
        super()._close()

    def _open_eye(self, function: Callable[..., None], *arguments: object) -> None:
        """Start the process that watches."""
        self._eye = Worker(f"watcher of {self.replica}", function, self.replica, *arguments)
        answers([self._eye], 0, lambda: False)

    def _watch(self) -> None:
        """Begin to watch."""
        assert self._eye is not None
        self._eye.send(Watch())
        answers([self._eye], 0, lambda: False)

    def _seen(self, value: int, seconds: float) -> list[tuple[int, int]]:
        """What was seen, and when, until it was ``value``; for at most so long."""
        assert self._eye is not None
        self._eye.send(Until(value, time.monotonic_ns() + int(seconds * 1e9)))
        seen: list[tuple[int, int]]
        (seen,) = answers([self._eye], seconds, self.stop)
        return seen

    def check(self, path: Path | None = None) -> None:
        """Both databases."""
        super().check()
        super().check(self.replica)


class LagSession(_ReplicaSession):
    """``lag``: a row each 1/rate seconds, and when a reader on the replica sees it."""

    def _prepare(self) -> None:
        super()._prepare()
        self._open_eye(watch_rows, self.settings)

    def round(self) -> None:
        """See Session."""
        before = cpu_times()
        first = self.written
        self._watch()
        (measured,), interval = self.load(raw=True)
        seen = self._seen(self.written - 1, DRAIN_SECONDS)
        lags, missing = lags_of(measured.ends, first, seen)
        if missing and not self.stop():
            measured.error = (
                measured.error or f"{missing} rows were not on the replica within {DRAIN_SECONDS:g} s"
            )
        done = Round.of(("commit",), [measured], interval)
        done.kinds.append(_by_interval("visible", measured, lags, interval))
        done.steal = stolen(before, cpu_times())
        self.target.rounds.append(done)


def lags_of(
    ends: Sequence[int], first: int, seen: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], int]:
    """Of each commit, when it ended and how long after that its row was seen; and how many never were.

    ``ends``: when the rows ``first``, ``first + 1``, … were committed. ``seen``: when the newest row became
    which, ascending. A reader may see a row before its writer's call has returned: that is no lag.
    """
    lags: list[tuple[int, int]] = []
    at = 0
    for number, ended in enumerate(ends, first):
        while at < len(seen) and seen[at][1] < number:
            at += 1
        if at == len(seen):
            return lags, len(ends) - len(lags)
        lags.append((ended, max(0, seen[at][0] - ended)))
    return lags, 0


def _by_interval(name: str, measured: Measured, lags: Sequence[tuple[int, int]], interval: int) -> Figures:
    """Lags by when their commits ended."""
    first = min(measured.ends, default=0)
    parts: list[list[int]] = [[] for _ in measured.kinds[0]]
    for ended, lag in lags:
        parts[min(len(parts) - 1, (ended - first) // interval)].append(lag)
    rate = 1e9 * len(lags) / measured.elapsed if measured.elapsed > 0 else 0.0
    return Figures.of(name, rate, [Histogram(part) for part in parts])


class CatchUpSession(_ReplicaSession):
    """``catch-up``: write for a round, then wait until the replica has all of it.

    A replica that keeps pace with the writer is never behind. ``pause`` and ``resume`` are commands for the
    shell that stop it before the writing and start it again, such as ``docker pause replica``.
    """

    def __init__(
        self,
        directory: Path,
        replica: Path,
        settings: Settings,
        *,
        pause: str = "",
        resume: str = "",
        **options: Any,
    ) -> None:
        super().__init__(directory, replica, replace(settings, warmup=0.0), **options)
        self._pause = pause
        self._resume = resume

    def _prepare(self) -> None:
        super()._prepare()
        self._open_eye(watch_position)
        self._watch()
        target = self._position()
        self._require(self._seen(target, CATCH_UP_SECONDS), target)

    def _position(self) -> int:
        try:
            return client.position(self.path).txid
        except (LiteFSError, OSError, ValueError) as error:
            raise BenchError(f"{self.path}-pos: {error}; catch-up needs two mounts of LiteFS") from None

    def _require(self, seen: Sequence[tuple[int, int]], target: int) -> None:
        """Raise BenchError if the replica has not come to ``target``, or KeyboardInterrupt."""
        if seen[-1][1] < target:
            if self.stop():
                raise KeyboardInterrupt
            raise BenchError(
                f"{self.replica} is at {seen[-1][1]:016x} after {CATCH_UP_SECONDS:g} s, {self.path} at "
                f"{target:016x}: is {self.target.path} the primary's mount and the other a replica's?"
            )

    def round(self) -> None:
        """See Session."""
        before = cpu_times()
        self._watch()  # before the pause: a stopped replica does not answer
        try:
            _command("-pause", self._pause)
            measured, interval = self.load()
        finally:
            written = time.monotonic_ns()
            _command("-resume", self._resume)
        target = self._position()
        seen = self._seen(target, CATCH_UP_SECONDS)
        self._require(seen, target)
        done = Round.of(("commit",), measured, interval)
        done.other = catching_up(seen, target, written)
        done.steal = stolen(before, cpu_times())
        self.target.rounds.append(done)

    def check(self, path: Path | None = None) -> None:
        """See Session."""
        with suppress(client.NotOnMount):
            # ``NAME-pos`` may be ahead of what readers are shown.
            client.wait(self.replica, self._position(), client.LONGEST_WAIT)
        super().check()


def catching_up(seen: Sequence[tuple[int, int]], target: int, since: int) -> dict[str, float]:
    """How far behind a replica was at ``since`` (ns), how long until it had ``target``, and its rate then.

    ``seen``: when it was where, ascending; the last one has the target.
    """
    at = max((txid for when, txid in seen if when <= since), default=seen[0][1])
    arrived = next(when for when, txid in seen if txid >= target)
    seconds = max(0, arrived - since) / 1e9
    behind = max(0, target - at)
    figures = {"transactions behind": float(behind), "seconds to catch up": seconds}
    if behind and seconds:
        figures["transactions/s while catching up"] = behind / seconds
    return figures


def _command(flag: str, command: str) -> None:
    """Run a command of the user's. Raises BenchError if it fails."""
    if not command:
        return
    try:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{flag} {command!r} did not end within {COMMAND_SECONDS:g} s") from None
    if done.returncode:
        raise BenchError(f"{flag} {command!r} ended with status {done.returncode}")
