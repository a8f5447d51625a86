"""Open files of the mount."""

from __future__ import annotations

import os
from dataclasses import dataclass

from litefs.fs.inodes import Inode


@dataclass(slots=True, eq=False)
class Handle:
    """An open file. ``closed``: a client closed a descriptor of it; it may have others. ``applies``: the
    replica's applier opened it, and no other part of the node process.
    """

    inode: Inode
    fd: int
    writable: bool
    from_node: bool
    applies: bool
    closed: bool = False
    unconfirmed: bool = False
    """Of a WAL: something was committed through this file that no sync through it has confirmed."""


def may_be_sqlite(flags: int) -> bool:
    """Whether a database opened so may be locked: close(2) must not wait for us then, invariant I25.

    SQLite opens to read, and never truncates. Who copies a file into place wants the FLUSH: it logs the copy.
    """
    return flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_TRUNC
