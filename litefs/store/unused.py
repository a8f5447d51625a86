"""Pages that a rollback leaves with another content than they had, because SQLite did not journal them.

The leaves of the free list: SQLite does not care what they hold, but the checksum of the database counts
them, and replicas have them as they were. While a client runs, capture logs the difference at the end of the
rollback; recovery does the same for a journal that it played back itself.
"""

from __future__ import annotations

import time
from array import array
from pathlib import Path

from litefs.sqlite.freelist import free_leaves
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.rebuild import Overlay
from litefs.store.sums import SumsFile


def stored_checksums(file: SumsFile, page_count: int) -> bytes:
    """The checksums (native u64) that the file has of the first ``page_count`` pages; perhaps of fewer."""
    return file.sums.array(1, min(page_count, file.sums.capacity)) if file.sums.page_size else b""


def are_unused(overlay: Overlay, database: Path, file: SumsFile, pgnos: list[int]) -> bool:
    """Whether these pages, which are not as at the log's tip, all are leaves of the free list.

    ``file`` has the size of the database; pages are looked at as they will be after ``overlay.write``.
    Raises FormatError, OSError.
    """
    with database.open("rb", buffering=0) as source:
        leaves = free_leaves(lambda pgno: overlay.page(pgno, source.fileno()), file.sums.page_count)
    return leaves.issuperset(pgnos)


def relog(db: Database, pgnos: list[int]) -> None:
    """Log these pages as they are in the file, durably.

    To be called while the journal is still there, so that recovery begins again after a crash. Raises
    LiteFSError, OSError.
    """
    size = db.page_size

    def page(pgno: int) -> bytes:
        return fileops.pread_all(source.fileno(), size, (pgno - 1) * size)

    with db.dir.database.open("rb", buffering=0) as source:
        db.commit_stream(
            array("I", pgnos),
            lambda: ((array("I", [pgno]), page(pgno)) for pgno in pgnos),
            db.sums.page_count,
            time.time_ns() // 10**6,
            size,
        )
    db.sync()
