"""The role of this node as the fs process knows it, and the commit gate that follows from it."""

from __future__ import annotations

import trio

from litefs.clock import boottime_ns
from litefs.errors import CommitRefused, OutcomeUnknown
from litefs.types import Role

MAX_WAITING = 64
"""Requests that may wait for the deadline to move; each keeps a worker of the request loop from reads."""


class RoleState:
    """Role, term, commit deadline; implements :class:`litefs.capture.commit.Gate`.

    The deadline is checked before the append and again right before the reply (invariant I8). A change that
    a client asks for after it, or while commits are frozen for a handoff, waits for ``grace_ns`` before that
    check may refuse it (``must_wait``, ``wait``).
    """

    def __init__(self, grace_ns: int = 0) -> None:
        self.role = Role.NONE
        self.term = 0
        self.deadline_ns = 0
        self.primary: str | None = None
        self.lag_ms: int | None = None
        self.primary_timestamp_ms = 0
        self.frozen = False
        """The lease is about to be handed over: no commit begins."""
        self._sealed = False
        self._late = False
        """Grace is over: somebody waited in vain."""
        self._grace_ns = grace_ns
        self._frozen_ns = 0
        self._waiting = 0
        self._moved = trio.Event()

    # -- the gate ----------------------------------------------------------------------------------

    def writable(self) -> bool:
        return self.role is Role.PRIMARY

    def admits(self) -> bool:
        return self.role is Role.PRIMARY and not self._late

    def check(self) -> None:
        if self.role is not Role.PRIMARY:
            raise CommitRefused("commit refused: this node is not the primary")
        if self._sealed:
            raise CommitRefused("commit refused: the lease is being handed over")
        if boottime_ns() >= self.deadline_ns:
            raise CommitRefused("commit refused: the lease was not renewed in time")

    def confirm(self) -> None:
        if self.role is not Role.PRIMARY or boottime_ns() >= self.deadline_ns:
            raise OutcomeUnknown(
                "the lease ended while the commit was under way; its outcome is not known yet"
            )

    # -- waiting -----------------------------------------------------------------------------------

    def must_wait(self) -> bool:
        """Whether a client's change has to ``wait`` before it is looked at. One look at the clock."""
        return self.role is Role.PRIMARY and (self.frozen or boottime_ns() >= self.deadline_ns)

    async def wait(self) -> None:
        """Until changes may go on, the role ends, or grace is over; what comes then is the gate's to say."""
        if self._waiting >= MAX_WAITING:
            self._late = True
            return
        self._waiting += 1
        try:
            while self.must_wait() and (left := self._patience_ns() - boottime_ns()) > 0:
                with trio.move_on_after(left / 1e9):
                    await self._moved.wait()
            self._late = self.must_wait()
        finally:
            self._waiting -= 1

    def _patience_ns(self) -> int:
        return (self._frozen_ns if self.frozen else self.deadline_ns) + self._grace_ns

    # -- changes -----------------------------------------------------------------------------------

    def become(self, role: Role, term: int, deadline_ns: int, primary: str | None) -> None:
        """Take a role; what waited goes on under it."""
        self.role, self.term = role, term
        self.deadline_ns, self.primary = deadline_ns, primary
        self.thaw()

    def extend(self, deadline_ns: int) -> None:
        """The deadline was moved."""
        self.deadline_ns = deadline_ns
        self._wake()

    def freeze(self) -> None:
        """From now on every change waits; commits that are under way may end until ``seal``."""
        if not self.frozen:
            self.frozen, self._frozen_ns = True, boottime_ns()

    def seal(self) -> None:
        """Nothing is under way any more: refuse what has waited too long."""
        self._sealed = self.frozen

    def thaw(self) -> None:
        """Changes go on."""
        self.frozen = self._sealed = False
        self._wake()

    def _wake(self) -> None:
        self._late = False
        self._moved.set()
        self._moved = trio.Event()
