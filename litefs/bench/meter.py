"""The loop of one client: operations one after the other, or each at its time, and how long they took.

Open loop: operation k of a client is due at a time that is fixed beforehand. A latency counts from there, not
from when the client came to it: otherwise the operations that a stall held up would look fast ("coordinated
omission"). For the same reason what is still due when the round is over is done then, for as long again at
most; what was never begun is counted as such.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from litefs.bench.database import is_busy
from litefs.bench.histogram import Histogram
from litefs.bench.workloads import Operations

LONGEST_SLEEP = 0.1
"""Seconds after which a client that waits for its next operation looks whether it is to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One round of one client. Times in ns of CLOCK_MONOTONIC, which all processes share."""

    begin: int
    length: int
    interval: int
    """Of the time series."""
    warmup: int = 0
    period: float = 0.0
    """Between two operations of this client; 0: one when the last has ended."""
    shift: float = 0.0
    """When its first one is due, after ``begin``."""
    raw: bool = False
    """Also hand back when each operation ended."""


@dataclass(slots=True)
class Measured:
    """What a client did in a round."""

    kinds: list[list[Histogram]]
    """Of each kind, the latencies in ns of each interval: those of the operations that ended in it."""
    elapsed: int = 0
    """ns from the first operation's beginning to the last one's end."""
    written: int = 0
    """See Operations.written: since the client began, not in this round alone."""
    busy: int = 0
    """Operations that were tried again because another client was in the way for the busy timeout."""
    unstarted: int = 0
    """Operations that were due but not begun when the round had taken twice its time."""
    error: str = ""
    ends: list[int] = field(default_factory=list)


class Meter:
    """Runs the operations of one client. ``progress`` is told their number at the end of each interval."""

    def __init__(
        self,
        operations: Operations,
        progress: Callable[[int], None],
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        rollback: Callable[[], None] = lambda: None,
    ) -> None:
        self._operations = operations
        self._progress = progress
        self._clock = clock
        self._sleep = sleep
        self._rollback = rollback
        self._end = 0
        self._tick = 0
        self._interval = 0
        self._samples: list[array[int]] = []
        self._marks: list[list[int]] = []
        self._busy = 0
        self._stopped = False

    def stop(self) -> None:
        """End the round after the operation that is under way, and any later one at once; safe in a signal
        handler."""
        self._stopped = True
        self._end = 0

    def run(self, task: Task) -> Measured:
        """One round. An error of SQLite ends it; the measured figures are those until then."""
        self._samples = [array("q") for _ in self._operations.kinds]
        self._marks = []
        self._busy = 0
        self._interval = task.interval
        measured, started = Measured([]), task.begin
        try:
            self._wait(task.begin - task.warmup)
            self._warm_up(task.begin)
            started = task.begin if task.period else self._clock()
            self._tick = started + task.interval
            if task.period:
                measured.unstarted, finished = self._open(task)
            else:
                finished = self._closed(started, started + task.length)
        except sqlite3.Error as error:
            finished = self._clock()
            if not (self._stopped and is_busy(error)):
                measured.error = str(error)
            with contextlib.suppress(sqlite3.Error):
                self._rollback()
        measured.elapsed = finished - started
        measured.kinds = [
            list(map(Histogram, pieces(samples, [mark[kind] for mark in self._marks])))
            for kind, samples in enumerate(self._samples)
        ]
        measured.written, measured.busy = self._operations.written(), self._busy
        if task.raw:
            due = task.begin + task.shift
            measured.ends = [int(due + n * task.period) + took for n, took in enumerate(self._samples[0])]
        return measured

    def _wait(self, until: int) -> None:
        while not self._stopped and (left := until - self._clock()) > 0:
            self._sleep(min(LONGEST_SLEEP, left / 1e9))

    def _warm_up(self, until: int) -> None:
        while not self._stopped and self._clock() < until:
            self._once()

    def _once(self) -> int:
        """One operation, tried until nobody is in its way. Raises sqlite3.Error."""
        while True:
            try:
                return self._operations.run()
            except sqlite3.OperationalError as error:
                self._again(error)

    def _again(self, error: sqlite3.OperationalError) -> None:
        """Make ready for another try, if only another client was in the way; otherwise raise the error."""
        if not is_busy(error) or self._stopped:
            raise error
        self._busy += 1
        self._rollback()

    def _closed(self, started: int, end: int) -> int:
        clock, run = self._clock, self._operations.run
        appends = [samples.append for samples in self._samples]
        last, self._end = started, end
        if self._stopped:
            self._end = 0
        while last < self._end:
            try:
                kind = run()
            except sqlite3.OperationalError as error:
                self._again(error)
                continue
            now = clock()
            if now >= self._tick:
                self._mark(now)
                appends[kind](now - last)
                last = clock()
            else:
                appends[kind](now - last)
                last = now
        return last

    def _open(self, task: Task) -> tuple[int, int]:
        """The operations that were due but not begun, and the time of the end."""
        due, end = task.begin + task.shift, task.begin + task.length
        now, number = self._clock(), 0
        while not self._stopped:
            intended = int(due + number * task.period)
            if intended >= end:
                break
            if now >= end + task.length:
                return -int((intended - end) // task.period), now
            self._wait(intended)
            if self._stopped:
                break
            kind = self._once()
            now = self._clock()
            if now >= self._tick:
                self._mark(now)
            self._samples[kind].append(now - intended)
            number += 1
        return 0, now if self._stopped else max(now, end)

    def _mark(self, now: int) -> None:
        """Note where the intervals end that are over."""
        sizes = [len(samples) for samples in self._samples]
        while now >= self._tick:
            self._marks.append(sizes)
            self._tick += self._interval
        self._progress(sum(sizes))


def pieces(samples: array[int], marks: Sequence[int]) -> list[array[int]]:
    """The samples cut at the marks."""
    bounds = [0, *marks, len(samples)]
    return [samples[first:last] for first, last in itertools.pairwise(bounds)]
