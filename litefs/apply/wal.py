"""The replica's writer: transactions become frames of the database's own WAL, under SQLite's own locks.

It is one more SQLite client of the directory it is given, a mount or not: it holds a SHARED lock on the
database, so that no application is ever the last to close it, takes WAL_WRITE to append, and publishes in
the wal-index. Formats and lock protocol: https://sqlite.org/walformat.html. Records are applied this way
whatever journal mode the header of the database names, because SQLite reads a WAL that is not empty beside
any database, also for connections that are open.

Nothing here syncs: a crash is recovered from the log, and the WAL is discarded then.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from litefs._core.walcursor import NEED, WalCursor, build_frames
from litefs._core.walindex import READ_MARK_UNUSED, IndexHeader
from litefs.apply import locks
from litefs.apply.shm import APPLIER, WRITE_TIMEOUT, SharedIndex, follow_owner
from litefs.errors import FormatError
from litefs.sqlite.header import SIZE as DATABASE_HEADER
from litefs.sqlite.header import DatabaseHeader
from litefs.sqlite.locks import (
    PENDING,
    SHARED_FIRST,
    SHARED_SIZE,
    SHM_CKPT,
    SHM_READ0,
    SHM_READ_COUNT,
    SHM_WRITE,
)
from litefs.sqlite.wal import FRAME_HEADER, HEADER_SIZE, WalHeader, frame_offset
from litefs.store import fileops

Buffer: TypeAlias = bytes | bytearray | memoryview

OPEN_TIMEOUT = 10.0
"""Seconds to wait for a SHARED lock on the database."""

KEEP_BYTES = 32 << 20
"""A WAL that a long reader let grow beyond this is cut when it starts again; never to nothing (see
``old_readers``)."""

PAGE_1 = struct.pack("=I", 1)
"""The number of the page that carries a change of size alone."""

_U32 = 0xFFFFFFFF


class WalAppend:
    """One open write to the WAL, from :meth:`WalWriter.writing`: its frames are in the file, but no reader
    sees them."""

    def __init__(self, writer: WalWriter, header: IndexHeader) -> None:
        self._writer = writer
        self._frame = header.mx_frame
        self._checksum = header.frame_cksum
        self.header = header
        """As it will be published: ends at the last commit added."""

    def add(self, pgnos: Buffer, images: Buffer, commit: int) -> None:
        """Append a frame per page: ``pgnos`` in native u32, ``images`` contiguous in that order.

        ``commit`` is the database size in pages if they end a transaction, else 0. One write call. Raises
        OSError or ValueError; what was added since the last commit is then overwritten by the next write.
        """
        header, writer = self.header, self._writer
        salt1, salt2 = header.salt
        data, c1, c2 = build_frames(
            pgnos, images, writer.page_size, salt1, salt2, *self._checksum, commit, bool(header.big_end_cksum)
        )
        last = self._frame + len(pgnos) // 4
        fileops.pwrite_all(writer.wal_fd, data, frame_offset(self._frame + 1, writer.page_size))
        writer.shm.cover(last)
        writer.shm.index.append(self._frame + 1, pgnos)
        self._frame, self._checksum = last, (c1, c2)
        if commit:
            self.header = header._replace(
                change=(header.change + 1) & _U32,
                page_size=writer.page_size,
                mx_frame=last,
                n_page=commit,
                frame_cksum=(c1, c2),
            )


class WalWriter:
    """The WAL of one database, attached. Used by one thread at a time.

    ``old_readers`` is true while a connection may be inside a read transaction that began before the WAL
    held anything, in a rollback mode: such a reader looks at the database file alone, so nothing may be
    checkpointed under it.
    """

    def __init__(
        self,
        path: Path,
        *,
        old_readers: bool = False,
        logged: tuple[int, int, int] = (0, 0, 0),
        applies: bool = True,
    ) -> None:
        """Attach to the database at ``path``; creates ``-wal`` and ``-shm`` if need be.

        ``logged``: salts and frames of the WAL that a primary's log holds, as ``PageSums.wal`` has them; a
        commit among them that its client did not announce is announced. ``applies``: it writes what is logged
        already; else as any client, by way of capture.

        Raises FormatError if it is not a database or its wal-index contradicts it, LockTimeout, OSError.
        """
        self.path = path
        self._mark = APPLIER if applies else 0
        self._fds: list[int] = []
        self.shm: SharedIndex | None = None  # type: ignore[assignment]
        try:
            self.db_fd = self._open(path, os.O_RDWR)
            self._share_database()
            database = DatabaseHeader.parse(fileops.pread_all(self.db_fd, DATABASE_HEADER, 0))
            self.page_size = database.page_size
            stat = os.fstat(self.db_fd)
            self.wal_fd = self._open_companion("-wal", stat)
            was_empty = os.fstat(self.wal_fd).st_size == 0
            self.old_readers = old_readers or (was_empty and not database.is_wal)
            self.shm = SharedIndex(path.with_name(path.name + "-shm"), stat)
            with locks.exclusive(self.shm.fd, SHM_WRITE, timeout=WRITE_TIMEOUT):
                if was_empty:
                    fileops.pwrite_all(self.wal_fd, empty_wal(self.page_size), 0)
                self._announce(logged)
                self._header = self._read_header()
            self.may_checkpoint()
        except BaseException:
            self.close()
            raise

    shm: SharedIndex

    def _open(self, path: Path, flags: int, mode: int = 0) -> int:
        fd = os.open(path, flags | self._mark | os.O_CLOEXEC, mode)
        self._fds.append(fd)
        return fd

    def _open_companion(self, suffix: str, like: os.stat_result) -> int:
        fd = self._open(
            self.path.with_name(self.path.name + suffix), os.O_RDWR | os.O_CREAT, like.st_mode & 0o777
        )
        follow_owner(fd, like)
        return fd

    def _share_database(self) -> None:
        """SQLite's SHARED lock, taken by way of PENDING as its readers do, so that a waiting writer is not
        starved."""
        locks.wait_shared(self.db_fd, PENDING, timeout=OPEN_TIMEOUT)
        try:
            locks.wait_shared(self.db_fd, SHARED_FIRST, SHARED_SIZE, timeout=OPEN_TIMEOUT)
        finally:
            locks.unlock(self.db_fd, PENDING)

    @property
    def frames(self) -> int:
        """Frames that this writer last published or found."""
        return self._header.mx_frame

    @property
    def page_count(self) -> int:
        """Database size in pages after the last transaction in the WAL; 0 if the WAL is empty."""
        return self._header.n_page if self._header.mx_frame else 0

    @property
    def frame_size(self) -> int:
        """Bytes of a frame."""
        return FRAME_HEADER + self.page_size

    @property
    def salt(self) -> tuple[int, int]:
        """The generation of the WAL that was last written."""
        return self._header.salt

    def can_restart(self) -> bool:
        """Whether no reader uses a frame now, so that the next write starts the WAL again if all is
        backfilled."""
        return locks.is_free(self.shm.fd, SHM_READ0 + 1, SHM_READ_COUNT - 1)

    def _read_header(self) -> IndexHeader:
        """The wal-index header, recovered from the WAL first if it is not whole. The caller holds WRITE."""
        header = self.shm.header()
        if header is None:
            header = self._recover()
        if header.mx_frame and header.page_size != self.page_size:
            raise FormatError(
                f"{self.path}: wal-index of {header.page_size}-byte pages, database of {self.page_size}"
            )
        return header

    def _announce(self, logged: tuple[int, int, int]) -> None:
        """Have the wal-index recovered if it knows less than was logged. The caller holds WRITE."""
        header, frames = self.shm.header(), logged[2]
        if header is not None and frames and (header.salt != logged[:2] or header.mx_frame < frames):
            self.shm.index.invalidate()

    def _recover(self) -> IndexHeader:
        """``walIndexRecover``: the index and its header are made anew from the committed frames in the WAL
        file."""
        with locks.exclusive(self.shm.fd, SHM_CKPT, 2, timeout=WRITE_TIMEOUT):  # and RECOVER
            header, pgnos = scan_wal(self.wal_fd)
            self.shm.rebuild(header, pgnos)
        return header

    def _writable_header(self) -> IndexHeader:
        """The header to append after; starts the WAL again if everything is backfilled and no reader uses
        frames."""
        header, index = self._read_header(), self.shm.index
        if header.mx_frame:
            if index.backfill != header.mx_frame or not locks.try_exclusive(
                self.shm.fd, SHM_READ0 + 1, SHM_READ_COUNT - 1
            ):
                return header
            try:
                header = self._next_generation(header)
                index.publish(header)
                index.backfill = 0
                index.backfill_attempted = 0
                for mark in range(1, SHM_READ_COUNT):
                    index.set_read_mark(mark, 0 if mark == 1 else READ_MARK_UNUSED)
            finally:
                locks.unlock(self.shm.fd, SHM_READ0 + 1, SHM_READ_COUNT - 1)
        else:
            header = self._next_generation(header)
        wal = WalHeader(self.page_size, *header.salt, self._sequence(), bool(header.big_end_cksum))
        fileops.pwrite_all(self.wal_fd, wal.pack(), 0)
        if os.fstat(self.wal_fd).st_size > KEEP_BYTES:  # nobody reads behind this header
            fileops.truncate(self.wal_fd, HEADER_SIZE)
        return header._replace(frame_cksum=wal.checksum)

    def _next_generation(self, header: IndexHeader) -> IndexHeader:
        salt = ((header.salt[0] + 1) & _U32, secrets.randbits(32))
        return header._replace(page_size=self.page_size, mx_frame=0, salt=salt)

    def _sequence(self) -> int:
        """The number of the generation that begins, from the header that is about to be overwritten."""
        try:
            return (WalHeader.parse(fileops.pread_all(self.wal_fd, HEADER_SIZE, 0)).checkpoint_seq + 1) & _U32
        except FormatError:
            return 0

    @contextmanager
    def writing(self) -> Iterator[WalAppend]:
        """Hold WAL_WRITE; what was committed to the :class:`WalAppend` is published at the end of the block.

        Published at once and whole: a reader sees the state before or after all of it. If the block raises,
        readers see nothing of it. Raises LockTimeout, OSError (ENOTCONN, ECONNABORTED, EIO: the fs process
        is gone), FormatError.
        """
        with locks.exclusive(self.shm.fd, SHM_WRITE, timeout=WRITE_TIMEOUT), self.appending() as append:
            yield append

    @contextmanager
    def appending(self) -> Iterator[WalAppend]:
        """As :meth:`writing`, for a caller that holds WAL_WRITE already."""
        self.may_checkpoint()  # looked at often: a permanent connection may follow the last old reader
        append = WalAppend(self, self._writable_header())
        yield append
        self.shm.index.publish(append.header)
        self._header = append.header

    def settle(self, logged: tuple[int, int, int]) -> None:
        """Look at the wal-index anew, after others have written, and recover it if it announces less than is
        in the log: a client died, or was failed, between the two. The caller holds WAL_WRITE.

        ``logged``: salts and frames of the WAL that the log has, as of ``PageSums.wal``; 0 frames: not known.
        Raises FormatError if they are not in the WAL either, LockTimeout, OSError.
        """
        if self._lacks(self._read_header(), logged):
            self.shm.index.invalidate()
            if self._lacks(self._read_header(), logged):
                raise FormatError(f"{self.path}: the WAL lacks commits that the log has")
        self._header = self._read_header()

    @staticmethod
    def _lacks(header: IndexHeader, logged: tuple[int, int, int]) -> bool:
        salt1, salt2, frames = logged
        return frames > 0 and (header.salt != (salt1, salt2) or header.mx_frame < frames)

    def apply(self, transactions: Iterable[tuple[Buffer, Buffer, int]]) -> None:
        """Append and publish (pgnos, images, commit) transactions in order. Raises as :meth:`writing`."""
        with self.writing() as append:
            for pgnos, images, commit in transactions:
                append.add(pgnos, images, commit)

    def apply_batches(self, batches: Iterable[tuple[Buffer, Buffer]], commit: int) -> None:
        """Append and publish (pgnos, images) batches as one transaction that leaves ``commit`` pages.

        Raises as :meth:`writing`.
        """
        held: tuple[Buffer, Buffer] | None = None
        with self.writing() as append:
            for batch in batches:
                if held is not None:
                    append.add(*held, 0)
                held = batch
            append.add(*(held or (PAGE_1, self.read_page(1))), commit)

    def may_checkpoint(self) -> bool:
        """Whether no reader from before the WAL can be left: once nobody else holds SHARED, all later ones
        see the WAL.

        Asked without taking the lock, so that no reader is turned away.
        """
        if self.old_readers and locks.is_free(self.db_fd, SHARED_FIRST, SHARED_SIZE):
            self.old_readers = False
        return not self.old_readers

    def is_rollback_mode(self) -> bool:
        """Whether the database would have no WAL if its node were not a replica."""
        return not DatabaseHeader.parse(self.read_page(1)[:DATABASE_HEADER]).is_wal

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold EXCLUSIVE on the database for the block if nobody else has it open: whether that is so."""
        got = locks.try_exclusive(self.db_fd, SHARED_FIRST, SHARED_SIZE)
        try:
            yield got
        finally:
            if got:
                locks.try_shared(self.db_fd, SHARED_FIRST, SHARED_SIZE)

    def empty(self) -> None:
        """Cut the WAL to nothing, as the last of SQLite's connections removes it. Only while ``alone``, with
        every frame backfilled; close this writer then."""
        fileops.truncate(self.wal_fd, 0)

    def has_frame(self, pgno: int) -> bool:
        """Whether the WAL has an image of a page, so that readers do not look at the database file for it."""
        return bool(self._header.mx_frame and self.shm.index.find(pgno, self._header.mx_frame))

    def read_page(self, pgno: int) -> bytes:
        """The newest image of a page, from the WAL or the database file. Raises FormatError if there is
        none."""
        frame = self.shm.index.find(pgno, self._header.mx_frame) if self._header.mx_frame else 0
        if frame:
            fd, offset = self.wal_fd, frame_offset(frame, self.page_size) + FRAME_HEADER
        else:
            fd, offset = self.db_fd, (pgno - 1) * self.page_size
        page = fileops.pread_all(fd, self.page_size, offset)
        if len(page) < self.page_size:
            raise FormatError(f"{self.path}: page {pgno} is not in the file")
        return page

    def close(self) -> None:
        """Detach: give up every lock and descriptor. WAL and wal-index stay for the readers. Harmless if
        repeated."""
        if self.shm is not None:
            self.shm.close()
            self.shm = None  # type: ignore[assignment]
        while self._fds:
            locks.close(self._fds.pop())


def empty_wal(page_size: int) -> bytes:
    """A WAL of 32 bytes without frames: enough that SQLite opens it beside a database in a rollback mode."""
    return WalHeader(page_size, secrets.randbits(32), secrets.randbits(32)).pack()


def seed_wal(database: Path) -> bool:
    """Put an empty WAL beside a database that has none, before any application can open it.

    For replicas: without it a WAL database cannot be opened read-only, and a connection to a rollback-mode
    database would begin without the WAL (see ``old_readers``). ``database`` must not be reached through our
    own mount. True if one was made. Raises FormatError if the file is not a database, OSError.
    """
    wal = database.with_name(database.name + "-wal")
    fd = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = DatabaseHeader.parse(fileops.pread_all(fd, DATABASE_HEADER, 0))
        stat = os.fstat(fd)
    finally:
        os.close(fd)
    if wal.exists() and wal.stat().st_size:
        return False
    fd = os.open(wal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, stat.st_mode & 0o777)
    try:
        follow_owner(fd, stat)
        fileops.pwrite_all(fd, empty_wal(header.page_size), 0)
    finally:
        os.close(fd)
    return True


def scan_wal(fd: int) -> tuple[IndexHeader, bytes]:
    """What the committed frames of a WAL file say: the wal-index header, and each frame's page number
    (native u32).

    A file without a valid header counts as empty, as in SQLite's recovery. Raises OSError.
    """
    try:
        wal = WalHeader.parse(fileops.pread_all(fd, HEADER_SIZE, 0))
    except FormatError:
        return IndexHeader(), b""
    cursor = WalCursor()
    cursor.reset(wal.pack())
    answer = cursor.propose(HEADER_SIZE, b"", os.fstat(fd).st_size)
    while answer == NEED:
        offset, length = cursor.want()
        answer = cursor.supply(offset, fileops.pread_all(fd, length, offset))
    cursor.accept()
    pgnos, size = bytearray(), 0
    while (transaction := cursor.take()) is not None:
        pgnos += transaction.frame_pgnos
        size = transaction.commit
        cursor.advance(transaction.last_frame)
    header = IndexHeader(
        big_end_cksum=int(wal.big_endian),
        page_size=wal.page_size,
        mx_frame=cursor.logged_frames,
        n_page=size,
        frame_cksum=cursor.checksum,
        salt=(wal.salt1, wal.salt2),
    )
    return header, bytes(pgnos)
