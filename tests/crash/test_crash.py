"""Crashes, faults and full disks at any operation, by seed.

``LITEFS_SOAK`` (30 by default) sets how many, ``LITEFS_SEED`` repeats the run with that seed.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.crash.schedule import Crash, Run, crashes

RUNS = int(os.environ.get("LITEFS_SOAK", "30"))
"""Of each of the parts."""
PARTS = 4
CRASHES = 17
"""Schedules of one run, so that there are about 2,000 in CI."""


def attempt(seed: str, root: Path) -> None:
    """A run and its crashes."""
    try:
        run = Run(seed, root / "live")
        chosen = [
            Crash.random(random.Random(f"{seed} crash {number}"), len(run.events))
            for number in range(CRASHES)
        ]
        crashes(run, chosen, root)
    except BaseException as error:
        error.add_note(f"repeat with LITEFS_SEED={seed}")
        raise
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_was_promised_survives(tmp_path: Path, part: int) -> None:
    repeated = os.environ.get("LITEFS_SEED")
    first = random.randrange(1 << 32)
    for seed in [f"{first}-{number}" for number in range(RUNS)] if repeated is None else [repeated]:
        root = tmp_path / "run"
        root.mkdir()
        attempt(seed, root)
