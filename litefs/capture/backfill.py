"""Checkpoints: writes to the database file while its WAL holds logged frames (DESIGN §3)."""

from __future__ import annotations

import os

from litefs._core.loggedframes import LoggedFrames
from litefs._core.pagesums import page_checksum
from litefs.capture.commit import Refused, Watcher
from litefs.store import fileops
from litefs.store.database import Database


class Backfill:
    """Tells checkpoints from other writes, and knows which logged pages the database file lacks.

    ``frames`` is shared with the WAL's capture, which adds to it and clears it.
    """

    def __init__(self, name: str, db: Database, frames: LoggedFrames, watcher: Watcher) -> None:
        self._name = name
        self._watcher = watcher
        self._db = db
        self._frames = frames
        self.outdated: set[int] = set()
        """Pages that the kernel caches older than the database file has them; see ``write``."""

    @property
    def unfinished(self) -> bool:
        """Whether ending this WAL would lose sight of a logged page."""
        return self._frames.pending > 0 or bool(self.outdated)

    def lacks(self, pgno: int) -> bool:
        """Whether the WAL alone has the page's newest image."""
        return bool(self._frames.is_pending(pgno))

    def write(self, fd: int, offset: int, data: bytes) -> None:
        """A write to the database file while the WAL holds logged frames. Raises Refused if it is no
        checkpoint.

        Log first (I5): what it overwrites must be recoverable.
        """
        page_size = self._db.page_size
        self._db.sync()
        end = offset + len(data)
        newest: list[int] = []
        older: list[int] = []
        for pgno in range(offset // page_size + 1, (end - 1) // page_size + 2):
            start = (pgno - 1) * page_size
            piece = data[max(0, start - offset) : start + page_size - offset]
            if len(piece) == page_size:
                page = piece
            else:
                page = self._overlaid(fd, pgno, max(offset, start) - start, piece)
            total = page_checksum(pgno, page)
            if total == self._db.sums.get(pgno):
                newest.append(pgno)
            elif self._frames.knows(pgno, total):
                older.append(pgno)
            else:
                raise Refused(
                    self._name,
                    f"write to page {pgno} that is no checkpoint while the WAL holds logged frames",
                )
        # A checkpointer that died before it said how far it came leaves newer images than the next may copy.
        # They stay: the log may lack them, and every reader of now may see them, or they would not be there.
        # The kernel caches the older ones until the newest are copied, as they are before SQLite ends this
        # WAL. A page beyond the end is none of these: the database shrank since the checkpoint began.
        pages = self._db.sums.page_count
        backfilled = [pgno for pgno in older if pgno <= pages and not self._frames.is_pending(pgno)]
        if not backfilled:
            fileops.pwrite_all(fd, data, offset)
        for pgno in newest + older if backfilled else ():
            start = max(offset, (pgno - 1) * page_size)
            if pgno not in backfilled:
                fileops.pwrite_all(fd, data[start - offset : pgno * page_size - offset], start)
        self.outdated.update(backfilled)
        self.outdated.difference_update(newest)
        for pgno in newest:
            self._frames.backfilled(pgno)

    def _overlaid(self, fd: int, pgno: int, at: int, piece: bytes) -> bytes:
        """The page as it would be after a write that covers it only in part."""
        page_size = self._db.page_size
        page = bytearray(os.pread(fd, page_size, (pgno - 1) * page_size).ljust(page_size, b"\0"))
        page[at : at + len(piece)] = piece
        return bytes(page)

    def truncate(self, size: int) -> None:
        """Allow a checkpoint to cut the database to *size* bytes; the kernel's cache of it is cut as well.

        Raises Refused if logged pages would be lost: then the wal-index knows less than the log.
        """
        kept = size // self._db.page_size
        for pgno in range(kept + 1, self._db.sums.page_count + 1):
            if not self._frames.is_pending(pgno):
                self._watcher.unpublished(self._name)
                raise Refused(
                    self._name, f"truncation to {kept} pages, page {pgno} is only in the database file"
                )
        self.outdated = {pgno for pgno in self.outdated if pgno <= kept}
