"""Work of SQLite on the mount, in a process of its own.

SQLite's locks are POSIX locks, which belong to a process: the close of *any* descriptor of a file drops all
that the process has on it (fcntl(2)). The node process opens and closes databases and wal-indexes all the
time, so SQLite inside of it would go on reading a snapshot, or writing, without a lock.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from errno import EIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from litefs import errors
from litefs.errors import LiteFSError

T = TypeVar("T", None, bool)

_PR_SET_PDEATHSIG = 1


class _Answer(msgspec.Struct):
    """What became of a call: its result; the name of an exception of ours and its message; or an OSError."""

    result: bool | None = None
    error: str = ""
    message: str = ""
    errno: int = 0


def call(function: Callable[..., T], *arguments: Path | float) -> T:
    """``function(*arguments)``, a function of a module, in a new process, which dies with this thread.

    Blocking. Raises LiteFSError and OSError as the function does, LiteFSError if there is no answer.
    """
    name = f"{function.__module__}:{function.__name__}"
    values = msgspec.json.encode([os.fspath(one) if isinstance(one, Path) else one for one in arguments])
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(os.getpid()), name, values],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        *_, last = done.stderr.decode(errors="replace").splitlines() or [""]
        raise LiteFSError(f"{function.__name__}: ended with status {done.returncode}: {last}")
    answer = msgspec.json.decode(done.stdout, type=_Answer)
    if answer.errno:
        raise OSError(answer.errno, answer.message)
    if answer.error:
        raise getattr(errors, answer.error)(answer.message)
    result: Any = answer.result
    return result  # type: ignore[no-any-return]


def _main(parent: str, name: str, values: str) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)  # it died before
    module, _, function = name.partition(":")
    arguments = [Path(one) if isinstance(one, str) else one for one in msgspec.json.decode(values)]
    try:
        answer = _Answer(getattr(importlib.import_module(module), function)(*arguments))
    except LiteFSError as error:
        answer = _Answer(error=type(error).__name__, message=str(error))
    except OSError as error:
        answer = _Answer(errno=error.errno or EIO, message=error.strerror or str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])
