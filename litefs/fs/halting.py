"""The fs process's part in HALT: a database of this replica is written, and its commits are forwarded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import trio

from litefs.capture.commit import Watcher
from litefs.capture.halted import HaltedCapture, HaltGate
from litefs.errors import CommitRefused, LiteFSError
from litefs.fs.databases import Databases, FsDatabase
from litefs.fs.role import RoleState, boottime_ns
from litefs.link.messages import (
    Accepted,
    Halt,
    HaltEnd,
    HaltEnded,
    Halting,
    HaltSet,
    HaltUntil,
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
        self._answers: dict[str, tuple[trio.Event, list[str | None]]] = {}

    async def handle(self, message: Halting) -> None:
        """Do what the node process asks, and answer."""
        match message:
            case Halt():
                self._post(HaltSet(message.name, await self._begin(message)))
            case HaltUntil():
                if (capture := self._capture(message.name)) is not None:
                    capture.gate.deadline_ns = message.deadline_ns
            case HaltEnd():
                await self._end(message.name)
                self._post(HaltEnded(message.name))
            case Accepted():
                if (waiting := self._answers.pop(message.name, None)) is not None:
                    waiting[1].append(message.refusal)
                    waiting[0].set()

    def abandon(self) -> None:
        """The node process is gone: nobody will answer."""
        for event, _ in self._answers.values():
            event.set()
        self._answers.clear()

    def _capture(self, name: str) -> HaltedCapture | None:
        db = self._databases.get(name)
        return db.capture if db is not None and isinstance(db.capture, HaltedCapture) else None

    async def _begin(self, message: Halt) -> str | None:
        """Become the log's writer for one database; returns why not, if it failed."""
        db = self._databases.get(message.name)
        if db is None or db.capture is not None or self._role.role is not Role.REPLICA:
            return f"{message.name}: no database of a replica"
        await db.idle()
        db.begin_job()
        try:
            db.capture = await trio.to_thread.run_sync(self._resume, db, message)
        except (LiteFSError, OSError) as error:
            return str(error)
        finally:
            db.end_job()
        return None

    def _resume(self, db: FsDatabase, message: Halt) -> HaltedCapture:
        store = Database.open(db.dir, node_id=self._node_id)
        gate = HaltGate(boottime_ns, message.deadline_ns)
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
        store.forward = lambda position, body: self._forward(db, position, body)
        return capture

    async def _end(self, name: str) -> None:
        """Let go of the log: the node process writes it from now on."""
        if (capture := self._capture(name)) is None:
            return
        capture.gate.deadline_ns = 0
        if (waiting := self._answers.pop(name, None)) is not None:
            # it crossed the message: what the node process ships it answers before it ends the lock
            waiting[1].append("the HALT lock is not held any more")
            waiting[0].set()
        db = self._databases.get(name)
        assert db is not None
        await db.idle()
        if db.capture is capture:
            capture.close()
            db.capture = None

    def _forward(self, db: FsDatabase, position: Position, body: Iterable[bytes]) -> Iterator[bytes]:
        """Lay a record beside the log and have the node process ship it; what the primary logged, in pieces.
        In a worker thread. Raises CommitRefused unless the primary has it."""
        with open(db.dir.staged, "wb") as file:
            file.writelines(body)
        try:
            refusal = trio.from_thread.run(self._ask, Staged(db.name, position.txid, position.checksum))
        except RuntimeError as error:  # not in a worker thread: a commit that may not wait
            raise CommitRefused(f"{db.name}: a commit that cannot be forwarded") from error
        finally:
            fileops.unlink(db.dir.staged)
        if refusal is not None:
            raise CommitRefused(f"{db.name}: not accepted by the primary: {refusal}")
        return _pieces(db.dir.accepted)

    async def _ask(self, message: Staged) -> str | None:
        """The node process's answer: None if the primary has the transaction, else why it may not have it."""
        capture = self._capture(message.name)
        if capture is None or not capture.gate.deadline_ns:
            return "the HALT lock is not held any more"
        event, answer = self._answers[message.name] = trio.Event(), []
        self._post(message)
        with trio.move_on_after(FORWARD_SECONDS):
            await event.wait()
        refusal = answer[0] if answer else "no answer: its outcome is not known"
        if refusal is not None:
            capture.gate.deadline_ns = 0  # the primary may be ahead, or the lock lost: nothing may follow
        return refusal


def _pieces(path: Path) -> Iterator[bytes]:
    """The content of a file that is of no use after that. Raises OSError."""
    with path.open("rb") as file:
        fileops.unlink(path)
        while data := file.read(PIECE):
            yield data
