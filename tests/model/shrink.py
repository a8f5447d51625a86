"""Makes a failing history shorter by leaving steps out, as long as it fails and there is time."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.model.steps import Step


def related(steps: list[Step]) -> list[Step]:
    """The steps on the databases of the last one, and all of the connections and clients that have one."""
    names = set(steps[-1].databases)
    if not names:
        return steps
    involved = {step.connection for step in steps if names & set(step.databases)}
    return [step for step in steps if names & set(step.databases) or step.connection in involved - {0}]


def shrink(steps: list[Step], fails: Callable[[list[Step]], bool], seconds: float) -> list[Step]:
    """A shorter list of steps, ending with the last one, for which ``fails`` still holds.

    The list itself if it does not fail again. ``seconds`` bounds the time but for one last run.
    """
    until = time.monotonic() + seconds
    found = steps
    if fails(related(steps)):
        found = related(steps)
    elif not fails(steps):
        return steps
    size = len(found) // 2
    while size and time.monotonic() < until:
        begin = 0
        while begin < len(found) - 1 and time.monotonic() < until:
            shorter = found[:begin] + found[min(begin + size, len(found) - 1) :]
            if fails(shorter):
                found = shorter
            else:
                begin += size
        size //= 2
    return found
