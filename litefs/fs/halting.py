"""The fs process's part in HALT: a database of this replica is written, and its commits are forwarded."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from litefs.capture.commit import Watcher
from litefs.capture.halted import HaltedCapture, HaltGate
from litefs.clock import boottime_ns
from litefs.errors import CommitRefused, LiteFSError, OutcomeUnknown
from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.role import RoleState
from litefs.link.messages import (
    Accepted,
    Halt,
    HaltEnd,
    HaltEnded,
    Halting,
    HaltSet,
    HaltUntil,
    Logged,
    Message,
    Staged,
)
from litefs.store import fileops
from litefs.store.database import Database
from litefs.types import Position, Role

PIECE = 1 << 20
"""Bytes of a record that are read at a time."""

FORWARD_SECONDS = 32.0
"""How long a commit waits for the primary's word; a little longer than the node process asks for it."""


@dataclass(slots=True, eq=False)
class Shipment:
    """A transaction that the node process was asked to ship, and what it said since."""

    txid: int
    logged: bool = False
    """The primary's log has it; replicas may not yet."""
    answered: bool = False
    refusal: str | None = None
    """Of what was answered: why the primary may not have it, or its replicas."""
    told: bool = False
    """Of what is ``logged``: its client was told, which may be long after the answer, as it is logged here
    first."""
    news: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        """Wake who waits."""
        self.news.set()
        self.news = trio.Event()

    def answer(self, refusal: str | None) -> None:
        """The last word."""
        self.answered, self.refusal = True, refusal
        self.tell()

    async def settled(self) -> None:
        """Wait for the last word; bounded."""
        with trio.move_on_after(FORWARD_SECONDS):
            while not self.answered:
                await self.news.wait()
            return
        self.answer("no answer: its outcome is not known")


class AnsweringGate(HaltGate):
    """The gate of a database under HALT, behind which a commit waits that is logged at the primary and here;
    implements :class:`litefs.fs.replication.AnswerGate`."""

    doubtful = False

    def __init__(self, deadline_ns: int, sync: Callable[[], Awaitable[None]]) -> None:
        """``sync`` makes the log durable."""
        super().__init__(boottime_ns, deadline_ns)
        self._sync = sync
        self.shipment: Shipment | None = None

    @property
    def owes_answer(self) -> bool:
        """A commit is complete that is logged here because the primary's log has it, whatever the primary
        says of its replicas."""
        return self.shipment is not None and self.shipment.logged and not self.shipment.told

    async def cleared_up(self) -> None:
        """Nothing is in doubt."""

    async def answerable(self, txid: int) -> None:
        """Make the log durable, for which the primary waits, and wait for its last word. Raises
        OutcomeUnknown, LogSyncFailed."""
        shipment = self.shipment
        assert shipment is not None
        await self._sync()
        await shipment.settled()
        shipment.told = True
        if shipment.refusal is not None:
            raise OutcomeUnknown(f"a commit under HALT is in the log, but {shipment.refusal}")


class Halts:
    """The databases that are written under HALT. Used by the request loop; ``forward`` by a worker thread."""

    def __init__(
        self,
        databases: Databases,
        role: RoleState,
        watcher: Watcher,
        node_id: int,
        post: Callable[[Message], None],
    ) -> None:
        """``post`` sends a message to the node process."""
        self._databases = databases
        self._role = role
        self._watcher = watcher
        self._node_id = node_id
        self._post = post
        self._gates: dict[str, AnsweringGate] = {}

    async def handle(self, message: Halting) -> None:
        """Do what the node process asks, and answer."""
        match message:
            case Halt():
                self._post(HaltSet(message.name, await self._begin(message)))
            case HaltUntil():
                if (gate := self._gates.get(message.name)) is not None:
                    gate.extend(message.deadline_ns)
            case HaltEnd():
                await self._end(message.name)
                self._post(HaltEnded(message.name))
            case Logged() | Accepted():
                gate = self._gates.get(message.name)
                if gate is not None and (shipment := gate.shipment) is not None:
                    self._heard(shipment, message)

    def abandon(self) -> None:
        """The node process is gone: nobody will answer."""
        for gate in self._gates.values():
            if gate.shipment is not None:
                gate.shipment.answer("no answer: its outcome is not known")

    @staticmethod
    def _heard(shipment: Shipment, message: Logged | Accepted) -> None:
        if isinstance(message, Accepted):
            shipment.answer(message.refusal)
        elif message.txid == shipment.txid and not shipment.answered:
            shipment.logged = True
            shipment.tell()

    async def _begin(self, message: Halt) -> str | None:
        """Become the log's writer for one database; returns why not, if it failed."""
        db = self._databases.get(message.name)
        if db is None or db.capture is not None or self._role.role is not Role.REPLICA:
            return f"{message.name}: no database of a replica"
        await db.idle()
        db.begin_job()
        try:
            gate = AnsweringGate(message.deadline_ns, lambda: self._sync(db))
            db.capture = await trio.to_thread.run_sync(self._resume, db, gate, message)
            db.gate = self._gates[message.name] = gate
        except (LiteFSError, OSError) as error:
            return str(error)
        finally:
            db.end_job()
        return None

    @staticmethod
    async def _sync(db: FsDatabase) -> None:
        await db.idle()
        if db.capture is not None:
            await db.run(db.capture.wal_sync())

    def _resume(self, db: FsDatabase, gate: AnsweringGate, message: Halt) -> HaltedCapture:
        store = Database.open(db.dir, node_id=self._node_id)
        store.compress = self._databases.compress
        capture = HaltedCapture(db.name, store, gate, self._watcher, db.open_database)
        try:
            wal = os.open(db.dir.wal, os.O_RDONLY | os.O_CLOEXEC)
            try:
                capture.resume(wal, (message.salt1, message.salt2), message.frames, message.backfilled)
            finally:
                os.close(wal)
        except BaseException:
            capture.close()
            raise
        store.forward = lambda position, body: self._forward(db, gate, position, body)
        return capture

    async def _end(self, name: str) -> None:
        """Let go of the log: the node process writes it from now on."""
        if (gate := self._gates.pop(name, None)) is None:
            return
        gate.lose()
        if gate.shipment is not None and not gate.shipment.answered:
            # it crossed the message: what the node process ships it answers before it ends the lock
            gate.shipment.answer("the HALT lock is not held any more")
        db = self._databases.get(name)
        if db is None:
            return
        await db.idle()
        if db.gate is gate and db.capture is not None:
            db.capture.close()
            db.capture = db.gate = None

    def _forward(
        self, db: FsDatabase, gate: AnsweringGate, position: Position, body: Iterable[bytes]
    ) -> Iterator[bytes]:
        """Lay a record beside the log and have the node process ship it; what the primary logged, in pieces.
        In a worker thread. Raises CommitRefused unless the primary's log has it."""
        try:
            with open(db.dir.staged, "wb") as file:
                file.writelines(body)
            refusal = trio.from_thread.run(self._ask, gate, Staged(db.name, position.txid, position.checksum))
        except RuntimeError as error:  # not in a worker thread: a commit that may not wait
            raise CommitRefused(f"{db.name}: a commit that cannot be forwarded") from error
        finally:
            fileops.unlink(db.dir.staged)
        if refusal is not None:
            raise CommitRefused(f"{db.name}: not accepted by the primary: {refusal}")
        shipment = gate.shipment
        return _pieces(db.dir.echoed if shipment is not None and shipment.logged else db.dir.accepted)

    async def _ask(self, gate: AnsweringGate, message: Staged) -> str | None:
        """None once the primary's log has the transaction, else why it may not have it."""
        if gate.shipment is not None and not gate.lost:  # of a client that was killed, say
            await gate.shipment.settled()
            if gate.shipment.refusal is not None:
                return gate.shipment.refusal
        if gate.lost:
            return "the HALT lock is not held any more"
        shipment = gate.shipment = Shipment(message.txid)
        self._post(message)
        with trio.move_on_after(FORWARD_SECONDS):
            while not (shipment.logged or shipment.answered):
                await shipment.news.wait()
        if not (shipment.logged or shipment.answered):
            shipment.answer("no answer: its outcome is not known")
        if shipment.refusal is not None and not shipment.logged:
            gate.lose()
            return shipment.refusal
        return None


def _pieces(path: Path) -> Iterator[bytes]:
    """The content of a file that is of no use after that. Raises OSError."""
    with path.open("rb") as file:
        fileops.unlink(path)
        while data := file.read(PIECE):
            yield data
