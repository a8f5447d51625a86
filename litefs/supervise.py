"""The application beside the mount: the commands of ``exec``, run and watched as Go LiteFS does.

All commands but the last run one after the other and must succeed; the last runs until it ends by itself,
which ends the node, or is told to. Used by the node, so it lies below it and not in ``cli``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence

import trio

from litefs.config import ExecCommand
from litefs.config_types import split_command
from litefs.errors import CommandFailed
from litefs.types import Role

log = logging.getLogger(__name__)

STOP_GRACE = 3.0
"""Seconds between the signal to the application and SIGKILL; within the 5 s that a node may take to stop."""

NOTICE_SECONDS = 30.0
"""How long a command may run that tells of a change of role."""

_PR_SET_PDEATHSIG = 1
_SIGNAL_EXIT_BASE = 128
"""A shell reports death by signal N as 128 + N."""

_libc = ctypes.CDLL(None, use_errno=True)


def commands_of(configured: Sequence[ExecCommand], argv: Sequence[str] | None) -> list[ExecCommand]:
    """The commands to supervise: ``-- CMD ARG…`` replaces ``exec``.

    A single argument with blanks is split into words, because Go LiteFS does so; several are taken as they
    are.
    """
    if not argv:
        return list(configured)
    return [ExecCommand(cmd=argv[0] if len(argv) == 1 else shlex.join(argv))]


def notice_of(text: str) -> signal.Signals | list[str] | None:
    """What ``on-promote`` and ``on-demote`` say: a signal by name, with or without ``SIG``, or the words of a
    command; None if nothing. Raises ConfigError."""
    name = text.strip().upper()
    name = name if name.startswith("SIG") else "SIG" + name
    if name in signal.Signals.__members__:
        return signal.Signals[name]
    return split_command(text) if text.strip() else None


class Supervisor:
    """Runs ``commands`` once. At most one of them lives at a time, and none outlives :meth:`run`."""

    def __init__(
        self,
        commands: Sequence[ExecCommand],
        *,
        grace: float = STOP_GRACE,
        role: Callable[[], Role] = lambda: Role.NONE,
    ) -> None:
        """``grace``: seconds a command has to end after a signal. ``role``: the node's, with which a command
        starts. Raises ConfigError for a bad command."""
        self._role = role
        self._known = Role.NONE
        """The role that the command started with, or was told last."""
        self._commands = [(split_command(command.cmd), command.if_candidate) for command in commands]
        self._notices = [
            {Role.PRIMARY: notice_of(command.on_promote), Role.REPLICA: notice_of(command.on_demote)}
            for command in commands
        ]
        self._number = 0
        self._telling = trio.Lock()
        self._grace = grace
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._limit = trio.CancelScope()

    async def run(self, is_candidate: bool) -> int:
        """Run everything and return the last command's exit code.

        Death by the signal that we sent counts as 0, by another one as 128 + its number.

        If the last command is skipped (``if-candidate`` on another node), or there is none, this waits
        until cancelled or :meth:`terminate`, and then returns 0. Raises CommandFailed if a command cannot
        start or an earlier one fails. Cancelled, it ends the command first: SIGTERM, then SIGKILL after
        the grace period.
        """
        last = len(self._commands) - 1
        for number, (argv, candidates_only) in enumerate(self._commands):
            if self._stopping:
                return 0
            self._number = number
            if candidates_only and not is_candidate:
                log.info("not a candidate, skipping command: %s", shlex.join(argv))
                continue
            code = await self._run_one(argv)
            if number == last or self._stopping:
                return code
            if code != 0:
                raise CommandFailed(
                    f"exec command {number + 1} failed with exit status {code}: {shlex.join(argv)}"
                )
        with self._limit:
            await trio.sleep_forever()
        return 0

    def terminate(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Forward ``signum`` to the command, start no other; :meth:`run` returns within the grace period."""
        self._stopping = True
        if self._child is None:
            self._limit.cancel()
            return
        self._child.send_signal(signum)
        self._limit.deadline = min(self._limit.deadline, trio.current_time() + self._grace)

    async def tell(self, role: Role) -> None:
        """Tell the command that runs now of a change of role, as its entry says, but not of what it started
        with; one change after another."""
        async with self._telling:
            if self._child is None or self._stopping or role is self._known:
                return
            self._known = role
            notice = self._notices[self._number].get(role)
            if isinstance(notice, signal.Signals):
                log.info("now %s: sending %s to the command", role, notice.name)
                self._child.send_signal(notice)
            elif notice is not None:
                await self._run_notice(role, notice)

    async def _run_notice(self, role: Role, argv: list[str]) -> None:
        log.info("now %s: running %s", role, shlex.join(argv))
        try:
            child = _start(argv)
        except CommandFailed as error:
            log.error("%s", error)
            return
        try:
            with trio.move_on_after(NOTICE_SECONDS):
                await _wait(child)
        finally:
            if child.poll() is None:
                log.warning("ended after %g s: %s", NOTICE_SECONDS, shlex.join(argv))
                child.kill()
                with trio.CancelScope(shield=True):
                    await _wait(child)
        if child.returncode:
            log.error("%s: %s", shlex.join(argv), _outcome(child.returncode))

    async def _run_one(self, argv: list[str]) -> int:
        """Start one command and wait for it; never leaves it running."""
        log.info("starting command: %s", shlex.join(argv))
        self._known = self._role()
        self._child = child = _start(argv)
        self._limit = trio.CancelScope()
        try:
            with self._limit:
                await _wait(child)
        finally:
            if child.poll() is None:
                await self._end(child)
            self._child = None
        code = child.returncode
        log.info("command ended: %s", _outcome(code))
        if code < 0:
            return 0 if self._stopping else _SIGNAL_EXIT_BASE - code
        return int(code)

    async def _end(self, child: subprocess.Popen[bytes]) -> None:
        """SIGTERM with its grace, unless :meth:`terminate` has granted that already, then SIGKILL."""
        with trio.CancelScope(shield=True):
            if not self._stopping:
                self._stopping = True
                child.send_signal(signal.SIGTERM)
                with trio.move_on_after(self._grace):
                    await _wait(child)
            if child.poll() is None:
                log.warning("command ignored the signal for %g s, killing it", self._grace)
                child.kill()
                await _wait(child)


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    """Start a command, tied to this process. Raises CommandFailed.

    Not by trio's own means: those fork in a worker thread, and PR_SET_PDEATHSIG fires when that *thread*
    ends.
    """
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=_die_with(os.getpid()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandFailed(
            f"cannot start {argv[0]!r}: {reason}; exec takes a program of $PATH or its whole path"
        ) from None


async def _wait(child: subprocess.Popen[bytes]) -> None:
    """Wait for the end of ``child`` without a thread and without SIGCHLD."""
    descriptor = os.pidfd_open(child.pid)
    try:
        while child.poll() is None:
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def _outcome(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _die_with(parent: int) -> Callable[[], None]:
    """For the child between fork and exec: SIGTERM at its parent's death; it leaves if that came first."""
    set_option, own_parent = _libc.prctl, os.getppid

    def prepare() -> None:
        set_option(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if own_parent() != parent:
            os._exit(1)

    return prepare
