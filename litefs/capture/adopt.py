"""Taking over a WAL that a replica's applier wrote, so that a promotion waits for no reader.

The applier logs a record before it lays its frames, so all of them are in the log; what is built here is the
state that capture would have had had it logged them itself. That is checked by content, not taken on trust:
the newest image of each page must be what the log's checksums say.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from litefs._core.pagesums import checksums_of, page_checksum
from litefs._core.walcursor import LoggedFrames, Transaction, WalCursor
from litefs.capture.batches import FrameBatches
from litefs.capture.judging import judge
from litefs.errors import LogCorrupt
from litefs.sqlite.wal import HEADER_SIZE
from litefs.store.database import Database


def adopt(
    fd: int,
    db: Database,
    cursor: WalCursor,
    frames: LoggedFrames,
    read_page: Callable[[int, int], bytes],
) -> None:
    """Move a new ``cursor`` behind the commits in the WAL behind *fd*, and enter their frames in ``frames``:
    pages that the database file holds as well count as backfilled.

    ``read_page``: as of ``WalCapture``. Raises LogCorrupt if the WAL is not what the log says, OSError.
    """
    header = os.pread(fd, HEADER_SIZE, 0)
    try:
        cursor.reset(header)
    except ValueError:
        return  # SQLite reads nothing behind such a header
    judge(cursor, fd, HEADER_SIZE, b"", os.fstat(fd).st_size)
    cursor.accept()
    newest: dict[int, int] = {}
    pages = db.sums.page_count
    while (txn := cursor.take()) is not None:
        if cursor.page_size != db.page_size:
            raise LogCorrupt(f"{db.dir.name}: WAL of {cursor.page_size}-byte pages, log of {db.page_size}")
        sums = _sums_of(fd, cursor.page_size, txn)
        frames.add_transaction(txn.first_frame, txn.frame_pgnos, txn.pgnos, sums, txn.commit)
        if txn.commit < pages:
            newest = {pgno: total for pgno, total in newest.items() if pgno <= txn.commit}
        newest.update(zip(memoryview(txn.pgnos).cast("I"), memoryview(sums).cast("Q"), strict=True))
        pages = txn.commit
        cursor.advance(txn.last_frame)
    if pages != db.sums.page_count:
        raise LogCorrupt(f"{db.dir.name}: the WAL ends at {pages} pages, the log at {db.sums.page_count}")
    _compare(db, newest, frames, read_page)


def _sums_of(fd: int, page_size: int, txn: Transaction) -> bytes:
    """Checksums of the pages of ``txn.pgnos`` (native u64), read in batches."""
    batches = FrameBatches(fd, page_size, txn, 0, b"", [], read_page=_no_page)
    return b"".join(checksums_of(pgnos, images, page_size) for pgnos, images in batches)


def _no_page(pgno: int, page_size: int) -> bytes:
    raise LogCorrupt(f"page {pgno} has no frame")


def _compare(
    db: Database, newest: dict[int, int], frames: LoggedFrames, read_page: Callable[[int, int], bytes]
) -> None:
    """Hold the newest image of each page to the log, and see which are in the database file."""
    page_size = db.page_size
    in_file = os.stat(db.dir.database).st_size // page_size if newest else 0
    for pgno, total in newest.items():
        if total != db.sums.get(pgno):
            raise LogCorrupt(f"{db.dir.name}: the WAL's image of page {pgno} is not the log's")
        if pgno <= in_file and page_checksum(pgno, read_page(pgno, page_size)) == total:
            frames.backfilled(pgno)
