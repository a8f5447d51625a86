"""A restore drill in a process of its own: ``python -m litefs.backup.drill``, its job as JSON on stdin.

A process, because the node's threads share one interpreter with those that commit; at the lowest priority for
processor and disk, and with a limit to its memory. It prints a line of JSON for each database, and ends at
once when stdin does: the node is gone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from litefs.backup.archive import Archive
from litefs.backup.finding import Timeline
from litefs.backup.histories import histories
from litefs.backup.target import Target
from litefs.backup.targets import target_of
from litefs.backup.verify import Verified, clear, verify
from litefs.config_backup import BackupConfig
from litefs.errors import LiteFSError

MEMORY_BYTES = 2 << 30
"""Of address space; what is mapped of libraries counts, too."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IDLE = 3 << 13
"""The class of disk priority that waits for all others (ioprio_set(2))."""


class Job(msgspec.Struct, rename="kebab"):
    """``backup``: where the archive is, its secrets included. ``scratch``: where to restore to, a directory
    of drills alone."""

    backup: BackupConfig
    scratch: str

    def encode(self) -> bytes:
        """One line."""
        return msgspec.json.encode(self, enc_hook=_plain) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Job:
        """What ``encode`` made. Raises msgspec.MsgspecError."""
        return msgspec.json.decode(line, type=cls, dec_hook=lambda kind, value: kind(value))


def _plain(value: object) -> object:
    """The types of configuration as what they are made of."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError(type(value))


class Result(msgspec.Struct, rename="kebab"):
    """A line of stdout: what came of one database; ``problems`` also if it could not be looked at."""

    name: str
    timeline: int
    txid: int
    time: int
    size: int
    proved: bool
    seconds: float
    problems: list[str]


def run(job: Job, target: Target, write: Callable[[Result], object]) -> None:
    """Verify the newest timeline of each database, one after the other."""
    scratch = Path(job.scratch)
    clear(scratch)
    for name, there in histories(target).items():
        found = Verified(name, 0)
        try:
            archive = _newest(there)
            if archive is None:
                continue
            found.timeline = archive.number
            found = verify(archive, scratch, every_object=False)
        except (LiteFSError, OSError) as error:
            found.problems.append(str(error))
        write(_result(found))


def _newest(there: list[Archive]) -> Archive | None:
    return next((one for one in reversed(there) if not Timeline(one).unfinished), None)


def _result(found: Verified) -> Result:
    return Result(
        found.name,
        found.timeline,
        found.txid,
        found.time,
        found.size,
        found.proved,
        round(found.seconds, 3),
        found.problems,
    )


def be_modest() -> None:
    """Take what nobody else wants: processor, disk, memory."""
    os.nice(19)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, 1, 0, _IDLE)
    with suppress(ValueError, OSError):  # already limited to less
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    be_modest()
    job = Job.decode(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    def write(result: Result) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()

    try:
        run(job, target_of(job.backup), write)
    except LiteFSError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.flush()
    os._exit(0)  # a thread still reads stdin, which the interpreter's end would wait for


if __name__ == "__main__":
    sys.exit(main())
