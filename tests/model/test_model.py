"""Random histories of many clients over several databases: a primary's mount behaves as a native directory.

After every step both sides gave the same rows or the same error and hold the same content; so does the log at
every position, and the replica. ``LITEFS_SOAK`` sets how many histories run, ``LITEFS_SEED`` repeats one.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.model.history import History, Step
from tests.model.runner import Runner
from tests.support.node import Node

ROUNDS = int(os.environ.get("LITEFS_SOAK", "4"))
STEPS = int(os.environ.get("LITEFS_STEPS", "400"))
TAIL = 60


def tail(steps: list[tuple[Step, str]]) -> str:
    """The last steps, with errors, that touch what the failing one touched, or of connections that do."""
    names = set(steps[-1][0].databases)
    connections = {step.connection for step, _ in steps if names & set(step.databases)} - {0}
    related = [
        f"{number:4d} {step}  {error}"
        for number, (step, error) in enumerate(steps)
        if not names or names & set(step.databases) or step.connection in connections
    ]
    return "\n".join(related[-TAIL:])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_history_gives_the_same_everywhere(
    tmp_path: Path, primary_and_replica: tuple[Node, Node], number: int
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.SystemRandom().randrange(2**31)))
    print(f"seed {seed}")
    history = History(seed)
    runner = Runner(tmp_path, *primary_and_replica)
    steps: list[tuple[Step, str]] = []

    def run(step: Step) -> None:
        steps.append((step, ""))
        outcome, page_sizes = runner.run(step)
        steps[-1] = step, outcome["error"]
        history.observe(step, outcome, page_sizes)

    try:
        while len(steps) < STEPS:
            run(history.next())
        for step in history.closing():
            run(step)
        runner.finish()
    except Exception as error:
        error.add_note(f"repeat with LITEFS_SEED={seed}; step {len(steps) - 1} after:\n{tail(steps)}")
        raise
    finally:
        runner.close()
