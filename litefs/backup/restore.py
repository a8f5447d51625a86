"""A moment of an archive as a database file, proved by the checksum that the primary had then. Blocks.

The file gets its name when it is whole, durable and checked; until then it is ``NAME.restoring`` beside it,
which a later restore to the same name takes over if its writer was killed.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from litefs._core.pagesums import page_checksums
from litefs.backup.archive import Archive
from litefs.backup.finding import Moment
from litefs.backup.pagemap import RUN_PAGES_BYTES, PageMap
from litefs.backup.pieces import read_indexes
from litefs.errors import ArchiveCorrupt, LiteFSError
from litefs.store import fileops
from litefs.types import CHECKSUM_FLAG

PARALLELISM = 4
"""Requests for pages at a time; each takes up to three times RUN_PAGES_BYTES of memory."""
SPAN_BYTES = RUN_PAGES_BYTES
SUFFIX = ".restoring"
_COMPANIONS = ("-wal", "-shm", "-journal")

Advance = Callable[[int], object]
"""Told of each piece of work done, in bytes of the database."""


class Check(StrEnum):
    """What SQLite is asked about the restored file."""

    NONE = "none"
    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: ``size`` bytes at ``path``; ``proved``: by the checksum that the primary had at that
    transaction, else the archive has none. ``time``: Unix ms of the transaction."""

    path: Path
    name: str
    timeline: int
    txid: int
    time: int
    size: int
    checksum: int
    proved: bool
    seconds: float


def restore(
    archive: Archive,
    moment: Moment,
    out: Path,
    *,
    check: Check = Check.NONE,
    parallelism: int = PARALLELISM,
    replace: bool = False,
    advance: Advance = lambda count: None,
) -> Restored:
    """Restore to ``out``, which must not exist unless ``replace``.

    Raises FileExistsError, ArchiveCorrupt if what comes out is not what was archived, ArchiveUnavailable,
    LiteFSError if another restore writes there, OSError. Then ``out`` is as it was.
    """
    begun = time.monotonic()
    _check_free(out, replace)
    with _incoming(out) as (fd, path):
        checksum = write_moment(archive, moment, fd, parallelism=parallelism, advance=advance)
        if moment.checksum is not None and checksum != moment.checksum:
            raise ArchiveCorrupt(
                f"{archive.url}: TXID {moment.txid:016x} comes out with checksum {checksum:016x}, "
                f"the primary had {moment.checksum:016x}"
            )
        fileops.fsync(fd)
        if check is not Check.NONE and (problems := integrity(path, check)):
            raise ArchiveCorrupt(f"{archive.url}: TXID {moment.txid:016x}: {'; '.join(problems)}")
        _check_free(out, replace)
        if replace:
            fileops.rename(path, out)
        else:
            fileops.link(path, out)  # unlike a rename it never takes the place of a file
            fileops.unlink(path)
        fileops.sync_dir(out.parent)
    return Restored(
        out,
        moment.name,
        archive.number,
        moment.txid,
        moment.time,
        moment.size,
        checksum,
        moment.checksum is not None,
        time.monotonic() - begun,
    )


def _check_free(out: Path, replace: bool) -> None:
    if not replace and os.path.lexists(out):
        raise FileExistsError(f"{out}: there is a file already")
    for suffix in _COMPANIONS:
        path = out.with_name(out.name + suffix)
        if os.path.lexists(path):
            raise FileExistsError(f"{path}: SQLite would take it for a part of the restored database")


@contextmanager
def _incoming(out: Path) -> Iterator[tuple[int, Path]]:
    """The file that becomes ``out``, empty; it is removed unless it was renamed."""
    path = out.with_name(out.name + SUFFIX)
    fd = fileops.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LiteFSError(f"{path}: another restore writes there") from None
        os.ftruncate(fd, 0)
        try:
            yield fd, path
        finally:
            with suppress(FileNotFoundError):
                path.unlink()
    finally:
        os.close(fd)


def write_moment(
    archive: Archive,
    moment: Moment,
    fd: int,
    *,
    parallelism: int = PARALLELISM,
    advance: Advance = lambda count: None,
) -> int:
    """Write the pages of a moment to an empty file, and return their rolling checksum.

    Each object is asked for the newest images it has, several at a time. Memory: 16 bytes a page, and what
    PARALLELISM says. Raises ArchiveCorrupt, ArchiveUnavailable, OSError.
    """
    pages = PageMap(moment.page_size, moment.commit)
    with closing(read_indexes(archive.target, list(reversed(moment.pieces)))) as indexed:
        pages.fill(indexed, archive.url)
    os.ftruncate(fd, moment.size)
    work = _Spans(archive, pages, fd)
    step = max(1, SPAN_BYTES // moment.page_size)
    total = 0
    waiting: deque[Future[tuple[int, int]]] = deque()
    pool = ThreadPoolExecutor(parallelism, "restore")

    def finish() -> None:
        nonlocal total
        checksum, done = waiting.popleft().result()
        total ^= checksum
        advance(done)

    try:
        for first in range(1, moment.commit + 1, step):
            waiting.append(pool.submit(work.write, first, min(step, moment.commit - first + 1)))
            if len(waiting) >= 2 * parallelism:
                finish()
        while waiting:
            finish()
    finally:
        work.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return total | CHECKSUM_FLAG


class _Spans:
    """Neighbouring pages of the file, written together."""

    def __init__(self, archive: Archive, pages: PageMap, fd: int) -> None:
        self._archive = archive
        self._pages = pages
        self._fd = fd
        self.stopped = threading.Event()
        """Another one failed: what is still waiting need not begin."""

    def write(self, first: int, count: int) -> tuple[int, int]:
        """(what the pages add to the checksum, bytes)."""
        if self.stopped.is_set():
            return 0, 0
        pages, size = self._pages, self._pages.page_size
        span = bytearray(count * size)
        for run in pages.runs([pgno for pgno in range(first, first + count) if pages.has(pgno)]):
            found = pages.decode(run, self._archive.target.read(run.key, run.start, run.length))
            for pgno, page in found.items():
                at = (pgno - first) * size
                span[at : at + size] = page
        total = 0
        for value in memoryview(page_checksums(first, span, size)).cast("Q"):
            total ^= value
        fileops.pwrite_all(self._fd, span, (first - 1) * size)
        return total & ~CHECKSUM_FLAG, len(span)


def integrity(path: Path, check: Check) -> Sequence[str]:
    """What SQLite finds wrong with a file that nobody writes; nothing if it is sound."""
    if check is Check.NONE:
        return []
    pragma = "integrity_check(20)" if check is Check.FULL else "quick_check(20)"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            lines = [str(row[0]) for row in db.execute(f"PRAGMA {pragma}")]
    except sqlite3.Error as error:
        return [str(error)]
    return [] if lines == ["ok"] else lines
