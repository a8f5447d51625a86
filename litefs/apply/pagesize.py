"""A full record on a replica: the database gets pages of another size.

No WAL can carry that, so the database file itself is written, through the mount, while every connection is
between two read transactions. The next one of each finds another wal-index header, drops its cache, finds
another page size in page 1, and goes on with it (SQLite's btree.c, ``lockBtree``). If readers stay longer
than we may wait, the caller has to make their connections fail instead.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from itertools import groupby

from litefs.apply import locks
from litefs.apply.records import Incoming, page_sums, wrong_sum
from litefs.apply.retire import DEAD
from litefs.apply.wal import WalWriter, empty_wal, scan_wal
from litefs.errors import FormatError, LiteFSError
from litefs.ltx import Decoder, Header
from litefs.ltx.format import page_total
from litefs.sqlite.header import SIZE as DATABASE_HEADER
from litefs.sqlite.locks import SHM_CKPT, SHM_READ0, SHM_READ_COUNT, SHM_WRITE
from litefs.sqlite.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litefs.store import fileops
from litefs.store.database import empty_sums

log = logging.getLogger(__name__)

READERS_WAIT = 2.0
"""Seconds to wait for readers to leave before their connections are given up."""

_PAUSE = 0.002
_LOCKS = (SHM_WRITE, SHM_CKPT, *range(SHM_READ0, SHM_READ0 + SHM_READ_COUNT))
"""Not RECOVER: a reader that finds no valid header and WRITE taken waits, one that finds RECOVER taken is
busy at once."""


@dataclass(frozen=True, slots=True)
class FullRecord:
    """A record that was found whole: every page of the database, and the checksum that they give."""

    item: Incoming
    header: Header
    post_apply: int
    sums: bytes
    """The checksums of all pages (native u64), 0 for the lock page."""

    @classmethod
    def read(cls, name: str, item: Incoming) -> FullRecord:
        """Read it once, in bounded memory. Raises FormatError, also for missing pages, ChecksumMismatch."""
        decoder = Decoder(item.open())
        header = decoder.header
        pgnos, new = page_sums(decoder)
        expected = decoder.trailer.post_apply
        total = page_total(header.page_size, header.commit)
        if len(pgnos) != 4 * total:  # before so much memory is taken
            raise FormatError(
                f"{name}: record {header.max_txid:016x} changes the page size to {header.page_size}, "
                f"but holds {len(pgnos) // 4} of {total} pages"
            )
        try:
            after = empty_sums(header.page_size, header.commit)
            post = after.post(pgnos, new, header.commit)
        except ValueError as error:
            raise FormatError(f"{name}: record {header.max_txid:016x}: {error}") from error
        if post != expected:
            raise wrong_sum(name, header, post, expected)
        after.commit(pgnos, new, header.commit, header.max_txid, post, header.timestamp, 0)
        return cls(item, header, post, after.array(1, header.commit))


def write_in_place(writer: WalWriter, record: FullRecord) -> bool:
    """Make the record the content of the attached database; the writer is of no use then: make another one.

    False: readers stayed inside, or writing failed half-way. Then all connections have to be made to fail
    before the writer is closed, and the database recovered: in the second case its locks are what keeps
    them out. Raises OSError if there is not enough space, then nothing has changed, or if the mount is dead.
    """
    held = _lock_readers(writer, READERS_WAIT)
    if held is None:
        log.warning("%s: readers stay inside, their connections are given up", writer.path)
        return False
    size = record.header.commit * record.header.page_size
    try:
        _reserve(writer.db_fd, size)
    except OSError:
        _unlock(writer, held)
        raise
    try:
        _overwrite(writer, record, size)
    except (OSError, LiteFSError) as error:
        if isinstance(error, OSError) and error.errno in DEAD:
            raise  # nobody can read it, and the next mount is of a recovered database
        log.error("%s: writing pages of another size failed half-way: %s", writer.path, error)
        return False
    _unlock(writer, held)
    return True


def _lock_readers(writer: WalWriter, timeout: float) -> list[int] | None:
    """Wait until no reader is inside, and keep others out; None if that did not happen in time.

    Lock by lock, so that readers that come and go use fewer and fewer of them; who finds none waits.
    """
    deadline = time.monotonic() + timeout
    held: list[int] = []
    while True:
        held += [lock for lock in _LOCKS if lock not in held and locks.try_exclusive(writer.shm.fd, lock)]
        if len(held) == len(_LOCKS) and writer.may_checkpoint():
            return held
        if time.monotonic() >= deadline:
            _unlock(writer, held)
            return None
        time.sleep(_PAUSE)


def _unlock(writer: WalWriter, held: list[int]) -> None:
    for lock in held:
        locks.unlock(writer.shm.fd, lock)


def _reserve(fd: int, size: int) -> None:
    """Let the file have room for ``size`` bytes: what lies behind a database's last page means nothing."""
    before = os.fstat(fd).st_size
    try:
        fileops.write_zeros(fd, before, size)
    except OSError:
        fileops.truncate(fd, before)
        raise


def _overwrite(writer: WalWriter, record: FullRecord, size: int) -> None:
    """Replace database, WAL and wal-index. Nobody can read it before page 1 has a header, which comes last:
    were this process killed inside, its locks would go before the fs process notices.
    """
    page_size = record.header.page_size
    writer.shm.index.invalidate()
    fileops.pwrite_all(writer.db_fd, bytes(DATABASE_HEADER), 0)
    fileops.pwrite_all(writer.wal_fd, empty_wal(page_size), 0)
    fileops.truncate(writer.wal_fd, WAL_HEADER_SIZE)
    head = b""
    for pgnos, images in Decoder(record.item.open()):
        numbers = memoryview(pgnos).cast("I")
        if not head:
            head = bytes(images[:DATABASE_HEADER])
            images[:DATABASE_HEADER] = bytes(DATABASE_HEADER)
        view = memoryview(images)
        # Consecutive numbers keep their distance from their index; only the lock page is left out.
        for _, run in groupby(range(len(numbers)), key=lambda index: numbers[index] - index):
            first, *rest = run
            end = (rest[-1] if rest else first) + 1
            part = view[first * page_size : end * page_size]
            fileops.pwrite_all(writer.db_fd, part, (numbers[first] - 1) * page_size)
    fileops.truncate(writer.db_fd, size)
    fileops.pwrite_all(writer.db_fd, head, 0)
    writer.shm.rebuild(*scan_wal(writer.wal_fd))
