"""On the primary: SQLite's write lock of one database, held for a replica that writes in its place (HALT).

What the replica committed is written as any client of the mount would write it, so that capture logs it,
and that record goes to every replica. It always goes through the WAL. A database in a rollback mode therefore
gets a WAL, as the replica has one; its connections find it at their next transaction, and the last one to
close removes it again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from litefs.apply import locks
from litefs.apply.ownprocess import call
from litefs.apply.records import page_sums, wrong_sum
from litefs.apply.shm import follow_owner
from litefs.apply.transfer import recover
from litefs.apply.wal import WalWriter, empty_wal
from litefs.errors import (
    CommitRefused,
    DatabaseBusy,
    LiteFSError,
    NotSupported,
    OutcomeUnknown,
    PositionMismatch,
)
from litefs.ltx import Decoder, Header
from litefs.sqlite.header import SIZE as DATABASE_HEADER
from litefs.sqlite.header import DatabaseHeader
from litefs.sqlite.locks import PENDING, RESERVED, SHARED_FIRST, SHARED_SIZE, SHM_WRITE
from litefs.store import fileops
from litefs.store.paths import DatabaseDir
from litefs.store.reader import Entry, LogReader
from litefs.store.sums import SumsFile
from litefs.types import Point, Position


class WriteHold:
    """The write lock of the database at ``path`` on this primary's mount. Blocking; for one thread at a time.

    ``directory``: where its log is.
    """

    def __init__(self, path: Path, directory: DatabaseDir, timeout: float) -> None:
        """Take it, waiting ``timeout`` seconds for each lock.

        Raises DatabaseBusy, DatabaseNotFound, FormatError, LiteFSError, OSError.
        """
        self._path = path
        self._sums = SumsFile(directory.sums)
        self._log = LogReader(directory.log)
        self._writer: WalWriter | None = None
        try:
            call(recover, path, timeout)
            with _with_wal(path, timeout):
                self._writer = writer = WalWriter(path, applies=False)
            locks.wait_exclusive(writer.shm.fd, SHM_WRITE, timeout=timeout)
            writer.settle(self._sums.sums.wal())
            if not self._log.seek(self.point):
                raise LiteFSError(f"{path.name}: its log does not hold {self.point}")
        except locks.LockTimeout as error:
            self.close()
            raise DatabaseBusy(f"{path.name}: others go on writing or reading: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> Position:
        """The last transaction."""
        return self.point.position

    @property
    def point(self) -> Point:
        """As ``position``, for other nodes."""
        return self._sums.read_point()

    def apply(self, body: Callable[[], Callable[[int], bytes]]) -> Entry:
        """Commit the transaction of one LTX record, which ``body()`` reads from its start.

        Returns the record that was logged of it: another one. Raises PositionMismatch, ChecksumMismatch,
        FormatError or NotSupported for a record that does not fit, CommitRefused if it was refused: nothing
        has happened then. OutcomeUnknown, OSError, LiteFSError: it may have been committed; take no other.
        """
        decoder = Decoder(body())
        header = decoder.header
        self._check(header)
        pgnos, new = page_sums(decoder)
        self._sums.refresh()
        sums = self._sums.sums
        post = sums.post(pgnos, new, header.commit)
        if post != decoder.trailer.post_apply:
            raise wrong_sum(self._path.name, header, post, decoder.trailer.post_apply)
        numbers, values = memoryview(pgnos).cast("I"), memoryview(new).cast("Q")
        if header.commit == sums.page_count and all(
            sums.get(pgno) == value for pgno, value in zip(numbers, values, strict=True)
        ):
            raise NotSupported(f"{self._path.name}: a transaction that changes nothing has no record here")
        after = Position(header.max_txid, post)
        try:
            self._write(Decoder(body()), len(pgnos))
        except (OSError, LiteFSError) as error:
            if self.position.txid < after.txid:
                raise CommitRefused(f"{self._path.name}: {error}") from error
            raise OutcomeUnknown(f"{self._path.name}: logged, but not completed: {error}") from error
        if self.position != after:
            raise OutcomeUnknown(f"{self._path.name}: led to {self.position} instead of {after}")
        try:
            (entry,) = self._log.read(after.txid)
        except (LiteFSError, OSError, ValueError) as error:
            raise OutcomeUnknown(f"{self._path.name}: committed, but it cannot be read: {error}") from error
        return entry

    def _check(self, header: Header) -> None:
        at, name = self.position, self._path.name
        if header.min_txid != header.max_txid or (header.min_txid - 1, header.pre_apply) != (
            at.txid,
            at.checksum,
        ):
            raise PositionMismatch(f"{name}: transaction {header.min_txid:016x} does not follow {at}")
        if not header.commit or header.page_size != self._sums.sums.page_size:
            raise NotSupported(f"{name}: a transaction under HALT keeps the page size")

    def _write(self, pages: Decoder, left: int) -> None:
        assert self._writer is not None
        with self._writer.appending() as append:
            for pgnos, images in pages:
                left -= len(pgnos)
                append.add(pgnos, images, 0 if left else pages.header.commit)

    def close(self) -> None:
        """Give the lock up, after publishing what is logged and not published yet. Harmless if repeated."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(LiteFSError, OSError):
                writer.settle(self._sums.sums.wal())
            rollback = self._is_rollback(writer)
            writer.close()
            if rollback:
                with contextlib.suppress(LiteFSError):
                    call(recover, self._path, 0.1)  # who is the last to close it ends the WAL
        self._log.close()
        self._sums.close()

    def _is_rollback(self, writer: WalWriter) -> bool:
        try:
            return not DatabaseHeader.parse(writer.read_page(1)[:DATABASE_HEADER]).is_wal
        except (LiteFSError, OSError):
            return False


@contextlib.contextmanager
def _with_wal(path: Path, timeout: float) -> Iterator[None]:
    """Within the block the database has a WAL, or is in WAL mode and may get one.

    One in a rollback mode gets it while nobody else is in a transaction: every later one sees it, whoever
    makes it; under one that began before, the next checkpoint would change the database file. Raises
    LockTimeout, DatabaseBusy, FormatError, OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        locks.wait_shared(fd, SHARED_FIRST, SHARED_SIZE, timeout=timeout)
        if not _has_wal(path, fd):  # else its connections hold SHARED for as long as they are open
            locks.wait_exclusive(fd, RESERVED, timeout=timeout)
            locks.wait_exclusive(fd, PENDING, timeout=timeout)
            locks.wait_exclusive(fd, SHARED_FIRST, SHARED_SIZE, timeout=timeout)
            _make_wal(path, fd)
            locks.try_shared(fd, SHARED_FIRST, SHARED_SIZE)  # nobody is the last to close it meanwhile
            locks.unlock(fd, RESERVED)
            locks.unlock(fd, PENDING)
        yield
    finally:
        locks.close(fd)


def _has_wal(path: Path, fd: int) -> bool:
    """Whether every transaction of the database open as ``fd`` uses a WAL."""
    wal = path.with_name(path.name + "-wal")
    is_wal = DatabaseHeader.parse(fileops.pread_all(fd, DATABASE_HEADER, 0)).is_wal
    return is_wal or (wal.exists() and wal.stat().st_size > 0)


def _make_wal(path: Path, fd: int) -> None:
    """Put an empty WAL beside the database open as ``fd``, of which we hold EXCLUSIVE."""
    if _has_wal(path, fd):
        return
    wal, journal = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
    if journal.exists() and any(journal.read_bytes()[:8]):
        raise DatabaseBusy(f"{path.name}: a transaction that was broken off has to be rolled back first")
    page_size = DatabaseHeader.parse(fileops.pread_all(fd, DATABASE_HEADER, 0)).page_size
    like = os.fstat(fd)
    new = os.open(wal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, like.st_mode & 0o777)
    try:
        follow_owner(new, like)
        fileops.pwrite_all(new, empty_wal(page_size), 0)
    finally:
        os.close(new)
