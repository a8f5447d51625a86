"""A whole run: rounds on one directory, or on two in turn, and the check at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from litefs.bench.replicas import LAG_RATE, CatchUpSession, LagSession
from litefs.bench.result import Result
from litefs.bench.session import Session
from litefs.bench.settings import BenchError, Settings


def open_session(
    directory: Path, settings: Settings, *, replica: Path | None, pause: str, resume: str, **options: Any
) -> Session:
    """The session that a workload needs. Raises BenchError."""
    if settings.workload == "lag":
        assert replica is not None
        return LagSession(directory, replica, settings, **options)
    if settings.workload == "catch-up":
        assert replica is not None
        return CatchUpSession(directory, replica, settings, pause=pause, resume=resume, **options)
    return Session(directory, settings, **options)


def order(sessions: Sequence[Session], number: int) -> Iterable[Session]:
    """Who has its turn when in round ``number``: whoever was last in one round is first in the next, so that
    a machine that becomes slower in time is no advantage to either."""
    return sessions if number % 2 == 0 else reversed(sessions)


def run_rounds(
    sessions: Sequence[Session], rounds: int, stop: Callable[[], bool], *, check: bool = True
) -> None:
    """All rounds of all sessions, in turn, then the checks. Raises BenchError, CheckFailed.

    An error of SQLite on one ends the rounds. Directories that were interrupted in a round are checked too.
    """
    for number in range(rounds):
        for session in order(sessions, number):
            if stop():
                break
            session.round()
        if any(session.target.rounds[-1].errors for session in sessions if session.target.rounds):
            break
    if check:
        for session in sessions:
            session.check()


def errors(result: Result) -> list[str]:
    """What went wrong in the rounds."""
    return [
        f"{target.path}: {error}"
        for target in result.targets
        for each in target.rounds
        for error in each.errors
    ]


def run(
    settings: Settings,
    directories: Sequence[Path],
    machine: dict[str, Any],
    *,
    stop: Callable[[], bool],
    check: bool = True,
    replica: Path | None = None,
    pause: str = "",
    resume: str = "",
    **options: Any,
) -> tuple[Result, BenchError | None]:
    """Make the databases, load them, check and remove them; the other options are those of Session.

    The result, as far as it came, and what ended it or was found at the end. Raises BenchError if nothing was
    measured.
    """
    if settings.workload == "lag" and not settings.rate:
        settings = replace(settings, rate=LAG_RATE)
    failure: BenchError | None = None
    result: Result | None = None
    try:
        with contextlib.ExitStack() as stack:
            sessions = []
            for directory in directories:
                session = open_session(
                    directory, settings, replica=replica, pause=pause, resume=resume, stop=stop, **options
                )
                sessions.append(stack.enter_context(session))
            targets = [session.target for session in sessions]
            try:
                run_rounds(sessions, settings.rounds, stop, check=check)
            except (BenchError, KeyboardInterrupt) as error:
                if not any(target.rounds for target in targets):
                    raise
                failure = (
                    error
                    if isinstance(error, BenchError)
                    else BenchError("interrupted in a round or in the check")
                )
            result = Result(sessions[0].settings, machine, targets, stop())
    except BenchError as error:
        # Even if the databases cannot be removed, what was measured counts.
        if result is None:
            raise
        failure = failure or error
    return result, failure
