"""One database of a replica as the stream knows it, and replacing its files while no mount shows them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
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
from litefs.types import Position

log = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """One database: its order of work, and what it is made of so far."""

    directory: DatabaseDir
    applier: Applier | None = None
    target: SnapshotTarget | None = None
    broken: str | None = None
    """Why nothing can be applied here before the next recovery."""
    complaint: str = ""
    """What was last said about its checkpoints."""
    lock: trio.Lock = field(default_factory=trio.Lock)

    def check(self) -> None:
        """Raises LiteFSError if nothing can be applied here before a recovery."""
        if self.broken is not None:
            raise LiteFSError(self.broken)
        if self.applier is not None:
            self.applier.check_usable()

    def receiving(self) -> SnapshotTarget:
        """The snapshot that is being received. Raises PositionMismatch without one."""
        if self.target is None:
            raise PositionMismatch(
                f"{self.directory.name}: snapshot pages without the beginning of a snapshot"
            )
        return self.target


def lay_records(target: SnapshotTarget, bodies: Sequence[Buffer]) -> Position:
    """Lay records over a snapshot; raises as ``SnapshotTarget.record``."""
    for body in bodies:
        target.record(body)
    return target.position


def put_in_place(directory: DatabaseDir, target: SnapshotTarget) -> None:
    """Install a received database; a file that lies there without a history is set aside before.

    Raises OSError.
    """
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
