"""Commits that wait for replicas: admitted before they are logged, answered when enough have them durably.

What the fs process knows of replicas is what the node process last told (``Replication``). A commit that is
refused was not logged; one that is logged is only waited for, and what ends the wait without success is
OutcomeUnknown (docs/synchronous-replication.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from litefs.errors import CommitRefused, OutcomeUnknown
from litefs.fs.role import RoleState
from litefs.link.messages import Replication
from litefs.link.rules import SyncRules
from litefs.meters import METERS, now_ns

MARGIN_SECONDS = 3.0
"""How long after the timeout of a replica the lease's store may take to be rid of it."""

LOOK_SECONDS = 0.25
"""Between two looks at the commit deadline while a commit waits."""


class Replicated:
    """The state of the primary's replicas, and the commits that wait for it."""

    def __init__(self, role: RoleState, rules: SyncRules, wake: Callable[[], None]) -> None:
        """``wake`` tells the node process that a log advanced."""
        self.rules = rules
        self._role = role
        self._wake = wake
        self._news = trio.lowlevel.ParkingLot()
        self._removed: set[str] = set()
        self._released: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """A role begins: nothing is known, and what waits is decided by the role."""
        self._standing = Replication(True, 0, 0, False, 0, {})
        self._doubtful_since = trio.current_time()
        self._released.clear()
        self._removed.clear()
        self._news.unpark_all()

    def told(self, message: Replication) -> bool:
        """The node process said this; whether a new wait begins with it, which it is to be told."""
        old, self._standing = self._standing, message
        if old.settled and not message.settled:
            self._doubtful_since = trio.current_time()
        self._removed -= set(message.dropped)
        for name, txid in message.released.items():
            if name not in self._removed:
                self._released[name] = max(txid, self._released.get(name, 0))
        self._news.unpark_all()
        return message.waiting and message.hold != old.hold

    def removed(self, name: str) -> None:
        """A client removed that database: what was said of it does not count for another one."""
        if self.rules.required(name):
            self._removed.add(name)
            self._released.pop(name, None)

    def doubtful(self, required: int) -> bool:
        """Whether to wait a little before commits that need so many replicas are refused."""
        here = self._standing
        return (
            self._role.writable()
            and not self.rules.degrade
            and here.present < required
            and not here.settled
            and trio.current_time() < self._doubtful_since + self.rules.timeout
        )

    async def cleared_up(self, required: int) -> None:
        """Wait while ``doubtful``."""
        while self.doubtful(required):
            with trio.move_on_at(self._doubtful_since + self.rules.timeout):
                await self._news.park()

    def check(self, required: int) -> None:
        """Before the append; any thread. Raises CommitRefused."""
        present = self._standing.present
        if present < required and not self.rules.degrade:
            raise CommitRefused(
                f"commit refused: {required} replicas in sync are required, {present} are connected"
            )

    async def answerable(self, name: str, txid: int, required: int) -> None:
        """Wait until so many replicas have that transaction, and all that are in sync. Raises OutcomeUnknown,
        also after the role or the lease ended."""
        self._wake()
        begin = now_ns()
        try:
            await self._answerable(name, txid, required)
        finally:
            METERS.replicas.since(begin)

    async def _answerable(self, name: str, txid: int, required: int) -> None:
        give_up = trio.current_time() + self.rules.timeout + MARGIN_SECONDS
        while True:
            self._role.confirm()
            here = self._standing
            few = here.counted < required and not self.rules.degrade
            if not here.waiting or (not few and self._released.get(name, 0) >= txid):
                return
            if few and here.settled:
                raise OutcomeUnknown(
                    f"{name}: too few replicas are in sync to answer a commit that is in the log: "
                    f"{here.counted}, required are {required}"
                )
            if trio.current_time() >= give_up:
                raise OutcomeUnknown(f"{name}: replicas did not acknowledge the commit in time")
            with trio.move_on_after(LOOK_SECONDS):
                await self._news.park()


class AnswerGate(Protocol):
    """A gate behind which a commit may have to wait before its client is told."""

    @property
    def owes_answer(self) -> bool:
        """A commit is complete whose client must not be told before ``answerable`` returns."""

    @property
    def doubtful(self) -> bool:
        """Whether to wait for ``cleared_up`` before anything is written."""

    def check(self) -> None:
        """As of :class:`litefs.capture.commit.Gate`."""

    async def cleared_up(self) -> None:
        """Wait until it is known whether commits can be answered; bounded."""

    async def answerable(self, txid: int) -> None:
        """Wait until that transaction, the last one here, may be answered. Raises OutcomeUnknown."""


class DatabaseGate:
    """The commit gate of one database; implements :class:`litefs.capture.commit.Gate` and ``AnswerGate``."""

    def __init__(self, role: RoleState, replicated: Replicated, name: str) -> None:
        self._role = role
        self._replicated = replicated
        self._name = name
        self._required = replicated.rules.required(name)
        self.owes_answer = False
        """A commit is complete whose client must not be told before ``answerable`` returns."""

    def writable(self) -> bool:
        return self._role.writable()

    def admits(self) -> bool:
        return self._role.admits()

    def check(self) -> None:
        self._role.check()
        if self._required:
            self._replicated.check(self._required)

    def confirm(self) -> None:
        self._role.confirm()
        self.owes_answer = self._required > 0

    @property
    def doubtful(self) -> bool:
        """Whether to wait for ``cleared_up`` before anything is written."""
        return self._required > 0 and self._replicated.doubtful(self._required)

    async def cleared_up(self) -> None:
        """Wait until it is known whether there are enough replicas; bounded by their timeout."""
        await self._replicated.cleared_up(self._required)

    async def answerable(self, txid: int) -> None:
        """Wait until the replicas have that transaction, the last one here. Raises OutcomeUnknown."""
        self.owes_answer = False
        await self._replicated.answerable(self._name, txid, self._required)
