"""The role of this node as the fs process knows it, and the commit gate that follows from it."""

from __future__ import annotations

import time

from litefs.errors import CommitRefused, OutcomeUnknown
from litefs.types import Role


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: the clock of commit deadlines; goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class RoleState:
    """Role, term, commit deadline; implements :class:`litefs.capture.commit.Gate`.

    The deadline is checked before the append and again right before the reply (invariant I8).
    """

    def __init__(self) -> None:
        self.role = Role.NONE
        self.term = 0
        self.deadline_ns = 0
        self.primary: str | None = None
        self.lag_ms: int | None = None
        self.primary_timestamp_ms = 0

    def writable(self) -> bool:
        return self.role is Role.PRIMARY

    def check(self) -> None:
        if self.role is not Role.PRIMARY:
            raise CommitRefused("commit refused: this node is not the primary")
        if boottime_ns() >= self.deadline_ns:
            raise CommitRefused("commit refused: the lease was not renewed in time")

    def confirm(self) -> None:
        if self.role is not Role.PRIMARY or boottime_ns() >= self.deadline_ns:
            raise OutcomeUnknown(
                "the lease ended while the commit was under way; its outcome is not known yet"
            )
