"""Writes to the database file with no hot journal and no logged WAL frame behind them.

Two kinds of writers make them. SQLite with journal_mode MEMORY or OFF holds the EXCLUSIVE lock meanwhile;
its commit is the fsync of the database, or, with synchronous=OFF, only the end of the lock. Everybody else
copies a file into place (cp, dd, rsync --inplace) and is done when the file is a whole database.

What was written is *pending* until it is logged; nothing is logged that did not change.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from litefs.capture.changes import FileChanges
from litefs.capture.commit import BigCommit, Gate, Refused, Watcher
from litefs.errors import FormatError, LiteFSError
from litefs.sqlite.header import SIZE as DATABASE_HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.store import fileops
from litefs.store.database import Database

log = logging.getLogger("litefs.capture")


class RawCapture:
    """The pending writes of one database on the primary. Owned by the request loop."""

    def __init__(
        self, name: str, db: Database, gate: Gate, watcher: Watcher, exclusive_held: Callable[[], bool]
    ) -> None:
        """``exclusive_held``: whether a SQLite client holds the EXCLUSIVE lock of this database now."""
        self._name = name
        self._db = db
        self._gate = gate
        self._watcher = watcher
        self._exclusive_held = exclusive_held
        self._changes = FileChanges(name, db)
        self._pages: set[int] = set()
        self._writer: int | None = None
        self._copiers: set[int] = set()
        self._copied = False
        """Some of what is pending was copied: it counts only once the file is a whole database."""
        self._told = ""
        self.pending = False
        """The file may differ from the log."""
        self.pending_bytes = 0
        self.broken: str | None = None
        """Why the file is not what it should be: a copy that ended half-way."""

    @property
    def local(self) -> bool:
        """The file is no database: it stays on this node."""
        return self.broken is not None and not self._db.sums.txid

    @property
    def copying(self) -> bool:
        """Somebody has the file open who copied into it."""
        return bool(self._copiers)

    def made(self, handle: int) -> bool:
        """Whether what is pending was, at least in part, copied through that handle."""
        return self.pending and handle in self._copiers

    # -- writes ------------------------------------------------------------------------------------

    def write(self, fd: int, offset: int, data: bytes, handle: int | None) -> None:
        """Lay *data* at *offset*. ``handle`` tells writers apart. Raises Refused, OSError."""
        self._admit(handle)
        page_size = self._db.page_size
        if page_size:
            self._pages.update(range(offset // page_size + 1, (offset + len(data) - 1) // page_size + 2))
        self._pend(len(data))
        fileops.pwrite_all(fd, data, offset)

    def truncate(self, fd: int, size: int, handle: int | None) -> None:
        """Cut the file to *size* bytes, which cuts off pages that the log counts. Raises Refused, OSError."""
        self._admit(handle)
        page_size, count = self._db.page_size, self._db.sums.page_count
        if page_size:
            self._pages.update(range(size // page_size + 1, count + 1))
            self._pend(count * page_size - size)
        else:
            self._pend(1)
        fileops.truncate(fd, size)

    def join(self, handle: int) -> None:
        """That handle was opened with a truncation, which began a copy."""
        if self.pending and self._copied:
            self._copiers.add(handle)

    def found(self) -> None:
        """There is a file, but no transaction: whoever put it there was not seen."""
        self._copied = True
        self._pend(1)

    def leave(self, handle: int) -> None:
        """That handle was closed."""
        self._copiers.discard(handle)

    def _admit(self, handle: int | None) -> None:
        if handle is not None and (handle in self._copiers or handle == self._writer):
            return
        if not self._exclusive_held():
            self._copied = True
            if handle is not None:
                self._copiers.add(handle)
        elif self.broken is not None and self._db.sums.txid:
            raise Refused(self._name, self.broken)
        else:
            self._writer = handle
            if not self._copiers:  # SQLite takes it for a database, whatever lies behind its end
                self._copied, self.broken = False, None

    def _pend(self, size: int) -> None:
        self.pending = True
        self.pending_bytes += size

    # -- commits -----------------------------------------------------------------------------------

    def synced(self, fd: int, handle: int | None) -> BigCommit | None:
        """``commit`` at the fsync of that handle, unless it comes amid a transaction or a copy by others."""
        others = self.pending and handle != self._writer and handle not in self._copiers
        if others and (self._copiers if self._copied else self._exclusive_held()):
            return None
        return self.commit(fd)

    def commit(self, fd: int) -> BigCommit | None:
        """What logs the pending changes; None if there are none, or a copy is not complete yet.

        Running it raises what ``Database.commit`` does and CommitRefused; then they stay pending.
        """
        if not self.pending or (self._copied and self._incomplete(fd) is not None):
            return None
        changed: list[bool] = []

        def run() -> None:
            changed.append(self._changes.log(fd, self._pages, self._db.page_size, self._gate.check))

        def finish(error: Exception | None) -> None:
            if error is not None:
                raise error
            self.clear()
            if any(changed):
                self._watcher.logged(self._name)

        return BigCommit(run, finish)

    def sweep(self, fd: int) -> BigCommit | None:
        """Log what is pending if nobody is at it: what synchronous=OFF, a killed client, or the end of a copy
        leaves. None if there is nothing to do. Whoever runs it gives errors to ``refused``.
        """
        if not self.pending or self._copiers or self.broken is not None or self._exclusive_held():
            return None
        if self._copied and (reason := self._incomplete(fd)) is not None:
            self._break(reason)
            return None
        return self.commit(fd)

    def refused(self, error: Exception) -> None:
        """A sweep failed: what can succeed later is tried again."""
        if isinstance(error, FormatError):
            self._break(str(error).removeprefix(f"{self._name}: "))
        elif str(error) != self._told:
            self._told = str(error)
            log.warning("%s: the file has changes that are not in the log: %s", self._name, error)

    def take(self) -> set[int]:
        """The pending pages, for a transaction of another kind that will log them too, and then ``clear``.

        Of a database without a transaction every page is looked at, whatever is given.
        """
        return (self._pages | {1}) if self.pending else set()

    def clear(self) -> None:
        """What was pending is in the log, or as it was."""
        self._pages, self._writer = set(), None
        self.pending = self._copied = False
        self.pending_bytes, self.broken, self._told = 0, None, ""

    def check(self, file: str) -> None:
        """Raises Refused while the database may only be read or copied over."""
        if self._db.sums.txid and self.broken is not None:
            raise Refused(file, f"{self.broken}; copy the whole database again")

    def flush(self, fd: int) -> BigCommit | None:
        """As ``commit``, before a transaction of another kind. Raises Refused if that must not be."""
        job = self.commit(fd)
        if job is None and self.pending:
            raise Refused(self._name, "a copy of the database is not complete yet", errno.EBUSY)
        return job

    def close(self) -> None:
        """Before the log is let go: what is pending is not in it, so the file cannot be trusted."""
        if self.pending and self._db.sums.txid:
            self._db.sums.damaged = True
            log.warning("%s: the file has changes that are not in the log", self._name)

    def _incomplete(self, fd: int) -> str | None:
        """Why the file is not a whole database; None if it is one, or empty as it was at first."""
        size = os.fstat(fd).st_size
        if not size and not self._db.sums.txid:
            return None
        try:
            header = DatabaseHeader.parse(os.pread(fd, DATABASE_HEADER_SIZE, 0))
        except LiteFSError as error:
            return f"not a database: {error}"
        pages = header.trusted_page_count(size)
        if pages * header.page_size != size:
            return f"incomplete copy: {pages} pages of {header.page_size} by its header, {size} bytes long"
        return None

    def _break(self, reason: str) -> None:
        self.broken = reason
        kept = "served for reading only" if self._db.sums.txid else "the file stays on this node"
        log.warning("%s: %s: %s", self._name, reason, kept)
