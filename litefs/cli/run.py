"""``litefs run``: a command that needs something of the node while it runs: a migration on a replica."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from litefs import client
from litefs.cli.connection import FLAGS, Connection
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.roles import promote_node
from litefs.config_types import Duration
from litefs.errors import CommandFailed, DatabaseNotFound

_FLAGS = (
    Flag("promote", "make the node the primary before the command runs"),
    Flag("if-candidate", "run the command only if the node may become primary, else end with success"),
    Flag(
        "with-halt-lock-on", "hold the HALT lock of this database, so that the command may write it", "PATH"
    ),
    Flag("v", "say what is done, on stderr"),
    *FLAGS,
)

USAGE = {
    "run": "Usage:\n\n  litefs run [ARGUMENTS] -- COMMAND [ARGUMENT...]\n\n"
    "Runs a command. On a replica it may write the database whose HALT lock is held; every commit is in the\n"
    f"primary's log before it is answered.\n\nArguments:\n\n{describe(_FLAGS)}",
}
SPECS = {"run": Spec(_FLAGS, paths=True)}

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Say = Callable[[str], None]


def run(argv: Sequence[str]) -> int:
    """``litefs run``. Raises UsageError, CommandFailed, LiteFSError."""
    arguments = parse_flags(_FLAGS, argv)
    if not arguments.rest:
        raise UsageError("required: the command, after --")
    path = arguments.values["with-halt-lock-on"]
    if path and "promote" in arguments.switches:
        raise CommandFailed("cannot specify both -promote & -with-halt-lock-on: a primary needs no HALT lock")
    say = _say if "v" in arguments.switches else _say_nothing
    if not _prepared(arguments, say):
        print("node is not a candidate, skipping execution", file=sys.stderr)
        return 0
    with ExitStack() as stack:
        if path:
            stack.enter_context(_halted(path, say))
        _execute(arguments.rest)
    return 0


def _prepared(arguments: Arguments, say: Say) -> bool:
    """Do what ``-if-candidate`` and ``-promote`` ask for; False if the command is not to run."""
    wanted = arguments.switches & {"if-candidate", "promote"}
    if not wanted:
        return True
    node = Connection.of(arguments)
    with node.client() as http:
        say("fetching node metadata")
        info = node.greet(http)
        if "if-candidate" in wanted and not info.candidate:
            return False
        if "promote" in wanted:
            if info.is_primary:
                say("node is already primary, skipping promotion")
            else:
                say("promoting node to primary")
                promote_node(node, http)
                say("promotion successful")
    return True


@contextlib.contextmanager
def _halted(path: str, say: Say) -> Iterator[None]:
    """Hold the HALT lock of a database. Raises DatabaseNotFound, CommandFailed, LiteFSError."""
    if not os.path.exists(path):
        raise DatabaseNotFound(f"database does not exist: {path}")
    say("acquiring halt lock")
    started = time.monotonic()
    try:
        lock = client.halt(path)
        with lock:
            say(f"halt lock acquired in {_since(started)}")
            yield
            started = time.monotonic()
            say("releasing halt lock")
        say(f"halt lock released in {_since(started)}")
    except client.NotOnMount:
        directory = os.path.dirname(os.path.abspath(path))
        raise CommandFailed(
            f'lock file not available, are you sure "{directory}" is a LiteFS mount?'
        ) from None


def _since(started: float) -> Duration:
    return Duration(round(time.monotonic() - started, 6))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _say_nothing(message: str) -> None:
    del message


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
