"""A progress bar on stderr, if that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from litefs.bench.session import Quiet, Watcher


class _Bar:
    """One bar over all rounds of all directories; filling tables is not part of it."""

    def __init__(self, progress: Progress, task: TaskID, rounds: int, directories: int) -> None:
        self._progress = progress
        self._task = task
        self._rounds = rounds
        self._directories = directories
        self._ended = 0
        self._current = ("", 0)

    def filling(self, path: str, share: float) -> None:
        """See Watcher."""
        self._progress.update(self._task, description=f"filling {path}: {share:.0%}")

    def round(self, path: str, number: int, share: float, operations: int) -> None:
        """See Watcher."""
        if (path, number) != self._current:
            self._ended += self._current != ("", 0)
            self._current = (path, number)
        done = (self._ended + share) / (self._rounds * self._directories)
        text = f"round {number} of {self._rounds}: {operations:,} in {path}"  # a long path may be cut
        self._progress.update(self._task, description=text, completed=min(1.0, done))


@contextlib.contextmanager
def progress_bar(rounds: int, directories: int) -> Iterator[Watcher]:
    """A watcher that shows a bar, or nothing if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield Quiet()
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=5) as progress:
        yield _Bar(progress, progress.add_task("", total=1.0), rounds, directories)
