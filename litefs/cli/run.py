"""``litefs run``: a command that needs something of the node while it runs: a migration on a replica."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from litefs import client
from litefs.cli.flags import Flag, UsageError, describe, parse_flags
from litefs.errors import CommandFailed, DatabaseNotFound

_FLAGS = (
    Flag(
        "with-halt-lock-on", "hold the HALT lock of this database, so that the command may write it", "PATH"
    ),
)

USAGE = {
    "run": "Usage:\n\n  litefs run [ARGUMENTS] -- COMMAND [ARGUMENT...]\n\n"
    "Runs a command. On a replica it may write the database whose HALT lock is held; every commit is in the\n"
    f"primary's log before it is answered.\n\nArguments:\n\n{describe(_FLAGS)}",
}

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(argv: Sequence[str]) -> int:
    """``litefs run``. Raises UsageError, CommandFailed, LiteFSError."""
    arguments = parse_flags(_FLAGS, argv)
    if not arguments.rest:
        raise UsageError("required: the command, after --")
    path = arguments.values["with-halt-lock-on"]
    with ExitStack() as stack:
        if path:
            if not os.path.exists(path):
                raise DatabaseNotFound(f"database does not exist: {path}")
            stack.enter_context(client.halt(path))
        _execute(arguments.rest)
    return 0


def _execute(command: Sequence[str]) -> None:
    """Run the command to its end, with our input, output and signals. Raises CommandFailed."""
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        raise CommandFailed(f"cannot run {command[0]}: {error.strerror or error}") from error
    with _forwarding(child):
        status = child.wait()
    if status < 0:
        raise CommandFailed(f"signal: {signal.Signals(-status).name}")
    if status:
        raise CommandFailed(f"exit status {status}")


@contextlib.contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass on what would end this process: the lock is given up when the command is done."""
    before = {number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
