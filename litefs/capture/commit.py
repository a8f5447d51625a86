"""What every way of committing shares:

the gate, refusals, and commits that are too big for the request loop.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Protocol

from litefs.errors import LiteFSError

log = logging.getLogger("litefs.capture")

BIG_COMMIT = 1 << 20
"""Bytes of page images from which on a commit is encoded and appended in a thread, so that small ones do not
queue behind it.
"""


class Gate(Protocol):
    """Who may commit, and until when (DESIGN §2, self-fencing)."""

    def writable(self) -> bool:
        """Whether this node is the primary at all."""

    def admits(self) -> bool:
        """Whether a transaction that is open may still commit, as far as that is known without a look at the
        clock."""

    def check(self) -> None:
        """Before the append. Raises CommitRefused."""

    def confirm(self) -> None:
        """Right before the reply. Raises OutcomeUnknown: the commit is in the log and stays there."""


class Watcher(Protocol):
    """Who is told of what capture finds."""

    def logged(self, name: str) -> None:
        """The log of that database advanced."""

    def unpublished(self, name: str) -> None:
        """A logged commit stands in a client's way because nobody published it in the wal-index."""

    def loose(self, name: str) -> None:
        """SQLite broke the chain of that database's WAL: recovering it would lose commits that the log has.

        A checkpoint that empties the WAL mends that.
        """


class Refused(LiteFSError):
    """An operation that would leave the database different from its log.

    Logged once per reason, and answered with an errno.
    """

    def __init__(self, file: str, reason: str, code: int = errno.EIO) -> None:
        super().__init__(f"{file}: {reason}")
        self.errno = code


class BigCommit:
    """A commit in two halves: :meth:`run` in a worker thread, then :meth:`finish` in the request loop.

    While it is under way the database is busy: the request loop holds back every other change to it.
    ``finish(error)`` gets the exception that ``run`` raised, or None, and raises what the client is to be
    answered.
    """

    def __init__(self, run: Callable[[], None], finish: Callable[[Exception | None], None]) -> None:
        self.run = run
        self.finish = finish


def now_ms() -> int:
    """Unix milliseconds, the LTX timestamp."""
    return time.time_ns() // 1_000_000
