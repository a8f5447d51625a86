"""Crashes, faults and full disks at any operation, by seed.

``LITEFS_SOAK`` sets the number of runs, ``LITEFS_SEED`` repeats the run with that seed.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from tests.crash.schedule import Crash, Run, crashes

RUNS = int(os.environ.get("LITEFS_SOAK", "30")) * 2
CRASHES = 17
"""Schedules of one run."""


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


def test_what_was_promised_survives(tmp_path: Path) -> None:
    first = os.environ.get("LITEFS_SEED") or str(random.randrange(1 << 32))
    print(f"seed {first}")
    runs = [first] if "LITEFS_SEED" in os.environ else [f"{first}-{number}" for number in range(RUNS)]
    for seed in runs:
        root = tmp_path / "run"
        root.mkdir()
        attempt(seed, root)
