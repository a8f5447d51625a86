"""`make demo` does what it says: both nodes mount, every row arrives, all is stopped and removed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parent.parent / "tools/demo.py"
PATIENCE = 90.0


@pytest.mark.parametrize("ending", ["by itself", "by Ctrl-C"])
def test_demo(ending: str, tmp_path: Path) -> None:
    arguments = ["--seconds", "3"] if ending == "by itself" else []
    process = subprocess.Popen(
        [sys.executable, "-u", DEMO, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    seen, status_lines = [], 0
    try:
        assert process.stdout is not None
        for line in process.stdout:
            seen.append(line)
            status_lines += "seen on the replica" in line
            if ending == "by Ctrl-C" and status_lines == 8 and "seen on the replica" in line:
                process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE)
    finally:
        # SIGTERM, not SIGKILL: the demo then still unmounts.
        process.terminate()
        process.wait(PATIENCE)
        assert process.stdout is not None
        process.stdout.close()
    output = "".join(seen)
    assert code == 0, output
    rows = re.search(r"the same ([\d,]+) rows on both nodes, at position [0-9a-f]{16}/[0-9a-f]{16}\n", output)
    assert rows is not None, output
    assert int(rows[1].replace(",", "")) > 50
    assert not list(tmp_path.iterdir())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
