"""The client's loop on a clock of the test's, against slow references."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from litefs.bench.histogram import Histogram, bucket
from litefs.bench.meter import Measured, Meter, Task
from litefs.bench.workloads import Operations

MS = 1_000_000


@dataclass
class World:
    """A clock that stands still but for operations and sleeps, and operations of given lengths."""

    lengths: list[int]
    kinds: list[int] = field(default_factory=list)
    now: int = 0
    done: int = 0
    busy: int = 0
    """Operations that fail before the next one succeeds."""
    rolled_back: int = 0
    progress: list[int] = field(default_factory=list)

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def operation(self) -> int:
        if self.busy:
            self.busy -= 1
            self.now += 5 * MS
            raise locked()
        self.now += self.lengths[self.done % len(self.lengths)]
        self.done += 1
        return self.kinds[(self.done - 1) % len(self.kinds)] if self.kinds else 0

    def rollback(self) -> None:
        self.rolled_back += 1

    def meter(self, names: tuple[str, ...] = ("x",)) -> Meter:
        operations = Operations(names, self.operation, lambda: self.done)
        return Meter(operations, self.progress.append, self.clock, self.sleep, self.rollback)


def locked() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def counted(parts: Iterable[Histogram]) -> list[Counter[int]]:
    return [part.counts for part in parts]


def in_intervals(samples: list[tuple[int, int]], begin: int, interval: int, parts: int) -> list[Counter[int]]:
    """Latencies ``(end, latency)`` by interval, one at a time."""
    found = [Counter[int]() for _ in range(parts)]
    for end, latency in samples:
        found[(end - begin) // interval][bucket(latency)] += 1
    return found


@pytest.mark.parametrize("seed", range(20))
def test_closed_loop(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.choice((1, 3, 40, 250)) * draw.randrange(1, MS) for _ in range(400)]
    world = World(lengths, kinds=[draw.randrange(2) for _ in range(97)])
    task = Task(begin=20 * MS, length=1000 * MS, interval=100 * MS, warmup=15 * MS)
    measured = world.meter(("x", "y")).run(task)
    # The reference: what ran when, from the beginning of time.
    now, number, started, samples = 5 * MS, 0, None, ([], [])
    while started is None or now < started + task.length:
        if started is None and now >= task.begin:
            started = now
            continue
        length = lengths[number % len(lengths)]
        now += length
        if started is not None:
            samples[world.kinds[number % len(world.kinds)]].append((now, length))
        number += 1
    assert world.done == measured.written == number
    assert measured.elapsed == now - started
    for kind in range(2):
        parts = measured.kinds[kind]
        assert counted(parts) == in_intervals(samples[kind], started, task.interval, len(parts))
    assert world.progress[-1] <= sum(map(len, samples))
    assert world.progress == sorted(world.progress)


@pytest.mark.parametrize("seed", range(20))
def test_open_loop_counts_from_when_an_operation_was_due(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randrange(1, 8 * MS) for _ in range(300)]
    lengths[10] = 300 * MS  # a stall
    task = Task(
        begin=7 * MS,
        length=1000 * MS,
        interval=100 * MS,
        period=draw.choice((3.0, 4.7, 12.0)) * MS,
        shift=draw.random() * MS,
        raw=True,
    )
    world = World(lengths)
    measured = world.meter().run(task)
    due = [int(task.begin + task.shift + n * task.period) for n in range(1000)]
    due = [each for each in due if each < task.begin + task.length]
    end, samples = 0, []
    for each, length in zip(due, lengths * 4, strict=False):
        if end >= task.begin + 2 * task.length:
            break
        end = max(end, each) + length
        samples.append((end, end - each))
    assert measured.unstarted == len(due) - len(samples)
    assert measured.ends == [end for end, _ in samples]
    assert measured.elapsed == max(task.length, end - task.begin)
    parts = measured.kinds[0]
    assert counted(parts) == in_intervals(samples, task.begin, task.interval, len(parts))
    # The operations behind the stall waited for it.
    behind = sum(1 for _, latency in samples if latency > 150 * MS)
    assert behind > 10


def test_a_stall_at_the_end_of_a_round_is_in_the_percentiles() -> None:
    """Who begins nothing after the round's end never tells how long those waited that the stall held up."""
    world = World([MS] * 10 + [890 * MS] + [MS] * 1000)
    task = Task(begin=0, length=1000 * MS, interval=100 * MS, period=10.0 * MS)
    measured = world.meter().run(task)
    found = Histogram()
    for part in measured.kinds[0]:
        found.merge(part)
    assert (found.count, measured.unstarted) == (100, 0)
    assert 400 * MS < found.percentile(0.5) < 500 * MS
    assert measured.elapsed == 1079 * MS


def test_what_cannot_be_had_within_twice_the_round_is_counted() -> None:
    measured = World([10 * MS]).meter().run(Task(begin=0, length=100 * MS, interval=50 * MS, period=1.0 * MS))
    assert (sum(part.count for part in measured.kinds[0]), measured.unstarted) == (20, 80)


def run_with(world: World, **changes: object) -> Measured:
    return world.meter().run(replace(Task(begin=0, length=100 * MS, interval=50 * MS), **changes))


@pytest.mark.parametrize("period", [0.0, 10.0 * MS])
def test_a_busy_database_is_tried_again_and_the_wait_counts(period: float) -> None:
    world = World([2 * MS], busy=3)
    measured = run_with(world, period=period)
    assert (measured.busy, world.rolled_back, measured.error) == (3, 3, "")
    assert max(part.maximum for part in measured.kinds[0]) == 17 * MS


@pytest.mark.parametrize("period", [0.0, 10.0 * MS])
def test_an_error_ends_the_round_with_what_was_measured(period: float) -> None:
    world = World([2 * MS])

    def broken() -> int:
        if world.done == 4:
            raise sqlite3.OperationalError("disk I/O error")
        return world.operation()

    meter = Meter(Operations(("x",), broken, lambda: 4), lambda _: None, world.clock, world.sleep)
    measured = meter.run(Task(begin=0, length=100 * MS, interval=50 * MS, period=period))
    assert measured.error == "disk I/O error"
    assert sum(part.count for part in measured.kinds[0]) == measured.written == 4


@pytest.mark.parametrize("period", [0.0, 10.0 * MS])
def test_stopped(period: float) -> None:
    world = World([2 * MS])

    def third() -> int:
        if world.done == 2:
            meter.stop()
        return world.operation()

    meter = Meter(Operations(("x",), third), lambda _: None, world.clock, world.sleep)
    task = Task(begin=0, length=100 * MS, interval=50 * MS, period=period)
    measured = meter.run(task)
    assert (world.done, measured.unstarted, measured.error) == (3, 0, "")
    assert measured.elapsed == world.now < task.length
    assert meter.run(replace(task, begin=world.now)).elapsed == 0, "nothing begins any more"
    assert world.done == 3
