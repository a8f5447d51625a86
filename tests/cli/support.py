"""Running ``litefs`` as people do, in a process of its own."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from litefs.cli.main import main
from tests.support.processes import end, spawn

LITEFS = (sys.executable, "-m", "litefs.cli.main")
SECONDS = 60.0
"""A bound, not an expectation."""


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    status: int
    out: str
    err: str


def litefs(*arguments: str | Path, text: str | None = None, **environment: str) -> Done:
    """Run a command without a terminal; ``text`` is its input."""
    done = subprocess.run(
        [*LITEFS, *map(os.fspath, arguments)],
        input=text or "",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **environment},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def inside(*arguments: str | Path) -> Done:
    """The same in this process, which is quicker: for commands that only ask and print."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([os.fspath(argument) for argument in arguments])
    return Done(status, out.getvalue(), err.getvalue())


def on_terminal(*arguments: str | Path, answer: str = "", until: str = "") -> Done:
    """Run a command with a terminal as its input, output and errors; ``out`` is all that it showed.

    ``answer`` is typed there. ``until``: end it by Ctrl-C when it has shown that, twice.
    """
    master, terminal = pty.openpty()
    shown = b""
    process = spawn([*LITEFS, *arguments], stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    try:
        os.write(master, answer.encode())
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.2)[0]:
                try:
                    shown += os.read(master, 65536)
                except OSError:  # the other end is closed
                    break
            elif process.poll() is not None:
                break
            if until and shown.count(until.encode()) >= 2:
                process.send_signal(2)
                until = ""
        return Done(process.wait(10), shown.decode(errors="replace").replace("\r\n", "\n"), "")
    finally:
        os.close(master)
        end(process)
