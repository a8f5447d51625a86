"""What a replica knows of one database while it follows its primary, and the steps of its snapshots."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import trio

from litefs.apply.applier import Applier
from litefs.apply.shm import follow_owner
from litefs.apply.wal import Buffer, seed_wal
from litefs.errors import LiteFSError, PositionMismatch
from litefs.store import fileops
from litefs.store.paths import DatabaseDir
from litefs.store.recovery import recover
from litefs.store.snapshot import SnapshotTarget
from litefs.types import ZERO, Position

log = logging.getLogger(__name__)


@dataclass(slots=True)
class DatabaseState:
    """One database: its order of work, and what it is made of so far."""

    directory: DatabaseDir
    applier: Applier | None = None
    target: SnapshotTarget | None = None
    broken: str | None = None
    """Why nothing can be applied here before the next recovery."""
    damage: str | None = None
    """What is wrong with the files that are here: the primary is asked for a snapshot in their place."""
    kept: bool = False
    """The damaged files were copied to ``lost/`` already."""
    lent: Applier | None = None
    """While the fs process writes this database under HALT: its applier, which does nothing."""
    written: int = 0
    """The last TXID that the fs process wrote under HALT."""
    complaint: str = ""
    """What was last said about its checkpoints."""
    lock: trio.Lock = field(default_factory=trio.Lock)
    _behind: bool = False

    @property
    def position(self) -> Position | None:
        """What the primary is told: the last transaction, ZERO if a snapshot is needed, None if nothing is
        here."""
        if self.damage is not None:
            return ZERO
        if self.lent is not None:
            return self.lent.position
        return self.applier.position if self.applier is not None else None

    def is_behind(self) -> bool:
        """Whether readers lack something that its log holds; while a task has the lock, as of when that was
        free: its thread may have closed the database for a moment, to put a snapshot in its place."""
        if not self.lock.locked():
            self._note()
        return self._behind

    def _note(self) -> None:
        applier = self.applier
        self._behind = applier is not None and (applier.needs_recovery or applier.is_behind)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Hold the lock for what may leave it behind."""
        async with self.lock:
            try:
                yield
            finally:
                self._note()

    @property
    def held(self) -> tuple[Position, Position] | None:
        """The last transaction in the log, and the last one that is durable there; None if nothing is here,
        or it is damaged."""
        applier = self.lent or self.applier
        if applier is None or self.damage is not None:
            return None
        durable = applier.durable  # first: a thread may append and sync meanwhile
        return applier.position, durable

    def check(self) -> None:
        """Raises LiteFSError if nothing can be applied here before a recovery."""
        if self.broken is not None:
            raise LiteFSError(self.broken)
        if self.lent is not None:
            raise LiteFSError(f"{self.directory.name}: is being written under HALT")
        if self.applier is not None:
            self.applier.check_usable()

    def incoming(self) -> SnapshotTarget:
        """The snapshot under way. Raises PositionMismatch if there is none."""
        if self.target is None:
            raise PositionMismatch(
                f"{self.directory.name}: snapshot pages without the beginning of a snapshot"
            )
        return self.target


def lay_records(target: SnapshotTarget, bodies: Sequence[Buffer]) -> Position:
    """Lay records over a snapshot; the position after them. Raises as ``SnapshotTarget.record``."""
    for body in bodies:
        target.record(body)
    return target.position


def put_in_place(directory: DatabaseDir, target: SnapshotTarget) -> None:
    """Install a database that no mount shows; a file that lies there without a history is set aside
    before."""
    if directory.database.exists():
        fileops.rename(directory.database, directory.lost("replaced") / "database")
    target.install()
    seed_wal(directory.database)


def rebuild(directory: DatabaseDir) -> None:
    """Make a database's files anew, from a full record in its log or from a snapshot that was received.

    The old file stays as it is for those who have it open. Raises LiteFSError, OSError.
    """
    if not directory.install.exists():
        fd = fileops.open_file(directory.incoming, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            follow_owner(fd, os.stat(directory.database))
        finally:
            os.close(fd)
        fileops.rename(directory.incoming, directory.database)
    for line in recover(directory).lines():
        log.info("%s: %s", directory.name, line)
    seed_wal(directory.database)
