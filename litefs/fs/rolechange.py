"""The fs process's part in a change of role: fence, let transactions end that may only roll back, hand over.

A primary that becomes a replica refuses every commit at once, and keeps its capture until nothing is left
that only capture understands: a hot journal, writes without a journal, a client that holds WAL_WRITE. Then
the node process takes the logs. What nobody will end any more takes a recovery.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.role import RoleState
from litefs.link.messages import Fenced, Freeze, Frozen, HeldUp, Message, RoleSet, SetRole
from litefs.sqlite.locks import PENDING, SHARED_FIRST, SHARED_SIZE, SHM_WRITE
from litefs.types import Role

log = logging.getLogger("litefs.fs")

LOOK_SECONDS = 0.02
"""Between two looks for what keeps the logs from changing hands."""

MAX_QUEUED = 100
"""Requests of the node process that wait for one before them; then it has to wait."""

ABANDONED_LOOKS = 5
"""Looks in a row at which nobody held a lock of a transaction that is open: its client is gone."""


class RoleChanges:
    """Takes roles and gives them up. ``send`` tells the node process."""

    def __init__(
        self, role: RoleState, databases: Databases, send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self._role = role
        self._databases = databases
        self._send = send
        self._requested = trio.Event()
        self._scope = trio.CancelScope()
        self._freezing = trio.CancelScope()
        self._freeze = 0
        """The freeze that is wanted, 0 if none is: one that waits in line may be out of date."""
        self._wanted = Role.NONE
        self._put, self._messages = trio.open_memory_channel[SetRole | Freeze](MAX_QUEUED)

    async def request(self, message: SetRole | Freeze) -> None:
        """Have ``run`` do what is asked, in the order of the calls."""
        if isinstance(message, Freeze):
            self._freeze = message.number
        await self._put.send(message)

    def thaw(self) -> None:
        """Let commits go on, at once: also when what froze them has not got that far, or has not begun."""
        self._freeze = 0
        self._freezing.cancel()
        self._role.thaw()

    async def run(self) -> None:
        """Do what is requested, and hand logs over; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hand_over_if_asked)
            async for message in self._messages:
                if isinstance(message, SetRole):
                    await self.become(message)
                elif message.number == self._freeze:
                    with trio.CancelScope() as self._freezing:
                        await self.fence()
                        await self._send(Frozen(message.number))

    async def become(self, message: SetRole) -> None:
        """Take that role; the answers are those of :class:`SetRole`."""
        self._wanted = message.role
        if message.role is Role.PRIMARY:
            await self._take(message)
            return
        captured = any(db.capture is not None for db in self._ours())
        if self._role.writable():
            await self.fence()
        self._assume(message)
        await self._send(Fenced(message.term))
        if captured:
            self._requested.set()
        else:
            await self._send(RoleSet(message.term, message.role))

    async def _take(self, message: SetRole) -> None:
        self._scope.cancel()
        failed: dict[str, str] = {}
        if not self._role.writable():
            failed = await self._databases.set_primary()
            for name, reason in failed.items():
                log.error("cannot write to its log: %s: %s", name, reason)
        self._assume(message)
        await self._send(RoleSet(message.term, message.role, failed))

    def _assume(self, message: SetRole) -> None:
        anew = (self._role.role, self._role.term) != (message.role, message.term)
        self._role.become(message.role, message.term, message.deadline_ns, message.primary)
        if anew:
            self._databases.replicated.begin()

    def _ours(self) -> list[FsDatabase]:
        """Databases that the role is about: commits under HALT wait for an answer, and end otherwise."""
        return [db for db in self._databases if not db.halted]

    async def fence(self) -> None:
        """Let no commit begin; those under way end, and what is complete is logged."""
        self._role.freeze()
        for db in self._ours():
            await db.idle()
            await db.sweep()
        while busy := [db for db in self._ours() if db.busy]:  # since another one was waited for
            await busy[0].idle()
        self._role.seal()

    async def _hand_over_if_asked(self) -> None:
        while True:
            await self._requested.wait()
            self._requested = trio.Event()
            with trio.CancelScope() as self._scope:
                if self._wanted is not Role.PRIMARY:
                    await self._hand_over()

    async def _hand_over(self) -> None:
        """Let go of the logs as soon as that leaves nothing behind."""
        told: list[str] = []
        forsaken = 0
        while held := await self._held():
            lines = [line for holders in held.values() for line in holders]
            if lines != told:
                told = lines
                for line in lines:
                    log.warning("the change of role waits for %s", line)
                await self._send(HeldUp(lines))
            forsaken = forsaken + 1 if not lines else 0
            if forsaken == ABANDONED_LOOKS:
                break
            await trio.sleep(LOOK_SECONDS)
        if self._wanted is Role.PRIMARY:  # cancelled, which is only noticed where something waits
            return
        failed = dict.fromkeys(held, "a transaction is open that nobody will end")
        if not failed:
            self._databases.set_replica()
        if told:
            await self._send(HeldUp([]))
        await self._send(RoleSet(self._role.term, self._role.role, failed))

    async def _held(self) -> dict[str, list[str]]:
        """Databases that cannot be let go of yet, and who is at them."""
        while True:
            found = {}
            for db in self._ours():
                await db.idle()
                await db.sweep()
                holders = self._holders(db)
                if holders is not None:
                    found[db.name] = [f"{db.name}: {_described(pid)}" for pid in sorted(holders)]
            busy = [
                db for db in self._ours() if db.busy
            ]  # a sync in a thread, begun while another was awaited
            if found or not busy:
                return found
            await busy[0].idle()

    def _holders(self, db: FsDatabase) -> set[int] | None:
        """Processes that are in a transaction which capture has to see end; None if there is none."""
        capture, locks = db.capture, self._databases.locks
        if capture is None or locks is None:
            return None
        with contextlib.suppress(OSError):  # the lock table cannot be read: then nobody can be named
            if capture.journal.hot or (capture.raw.pending and capture.db.sums.txid):
                return locks.writers(db.ino, PENDING, SHARED_FIRST + SHARED_SIZE - 1)
            if db.shm_ino and (writers := locks.writers(db.shm_ino, SHM_WRITE, SHM_WRITE)):
                return writers
            if capture.wal.unsealed:
                return set()
        return None


def _described(pid: int) -> str:
    """A process by number and command."""
    if pid < 0:
        return "a process that cannot be named"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        command = "?"
    return f"process {pid} ({command.strip()})"
