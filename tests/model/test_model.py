"""Random histories of many clients over several databases: a primary's mount behaves as a native directory.

After every step both sides gave the same rows or the same error and hold the same content; so does the log at
every position, and the replica. ``LITEFS_SOAK`` sets how many histories run, ``LITEFS_STEPS`` how long they
are, ``LITEFS_SEED`` repeats one. A failure is shown by a short list of steps that fails too, if there is one.
"""

from __future__ import annotations

import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from tests.model.history import History
from tests.model.runner import Difference, Runner
from tests.model.shrink import related, shrink
from tests.model.steps import Step
from tests.support.node import Node

ROUNDS = int(os.environ.get("LITEFS_SOAK", "4"))
STEPS = int(os.environ.get("LITEFS_STEPS", "350"))
SHRINK_SECONDS = 60.0
SHOWN = 80


class Again:
    """Runs lists of steps anew on the same nodes, each in a directory of its own."""

    def __init__(self, tmp: Path, primary: Node, replica: Node) -> None:
        self._tmp, self._primary, self._replica = tmp, primary, replica
        self._count = 0

    def fails(self, steps: list[Step]) -> bool:
        """Whether there is a difference."""
        self._count += 1
        try:
            with closing(Runner(self._tmp, self._primary, self._replica, f"again{self._count}")) as runner:
                for step in steps:
                    runner.run(step)
        except Difference:
            return True
        return False


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_history_gives_the_same_everywhere(
    tmp_path: Path, primary_and_replica: tuple[Node, Node], number: int
) -> None:
    seed = int(os.environ.get("LITEFS_SEED", random.SystemRandom().randrange(2**31)))
    print(f"seed {seed}")
    history = History(seed)
    steps: list[Step] = []
    try:
        with closing(Runner(tmp_path, *primary_and_replica)) as runner:
            while len(steps) < STEPS:
                steps.append(history.next())
                history.observe(steps[-1], *runner.run(steps[-1]))
            for step in history.closing():
                steps.append(step)
                runner.run(step)
            runner.finish()
    except Exception as error:
        least = related(steps)
        if isinstance(error, Difference):
            least = shrink(steps, Again(tmp_path, *primary_and_replica).fails, SHRINK_SECONDS)
        shown = "\n".join(map(str, least[-SHOWN:]))
        error.add_note(f"repeat with LITEFS_SEED={seed}; {len(least)} of {len(steps)} steps:\n{shown}")
        raise
