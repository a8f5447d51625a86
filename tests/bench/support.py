"""Running ``litefs bench`` as a user does, in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litefs.cli.main import main
from tests.support.processes import ROOT, spawn

SECONDS = 60
SHORT = ("-duration", "100ms", "-rounds", "2", "-warmup", "20ms", "-rows", "2000", "-megabytes", "0.5")

COMMAND = (sys.executable, "-m", "litefs.cli.main", "bench")


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """``litefs bench WORDS``, to its end."""
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=ROOT)


def started(*words: str | Path) -> subprocess.Popen[str]:
    """The same, in a session of its own, to be ended by the test."""
    return spawn(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def measured(workload: str, *words: str | Path, options: Sequence[str] = SHORT) -> dict[str, Any]:
    """The JSON document of a short run that succeeds. The command runs in this process, not its clients."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["bench", workload, *options, "-json", *map(str, words)]) == 0
    found: dict[str, Any] = json.loads(output.getvalue())
    return found
