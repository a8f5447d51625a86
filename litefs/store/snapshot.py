"""Whole databases on their way: read from a primary that keeps committing, received beside or over what a
replica has.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from litefs._core.pagesums import PageSums, page_checksum, page_checksums
from litefs.errors import ChecksumMismatch, FormatError, LiteFSError, LogCorrupt, PositionMismatch
from litefs.ltx.decoder import Decoder
from litefs.ltx.format import lock_pgno
from litefs.store import fileops
from litefs.store.install import complete_install, discard, write_intent
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import Image, ImageReader, newest_images
from litefs.store.rebuild import file_checksums
from litefs.store.segments import record_hash
from litefs.store.sums import SumsFile, differing_pages
from litefs.types import Point, Position

if TYPE_CHECKING:
    from typing_extensions import Buffer

BATCH_BYTES = 256 << 10
"""Raw pages in one batch."""
RETRY_SECONDS = 30.0
"""A page that stays unlike its checksum for this long, with no image in the log, ends the snapshot."""
_RETRY_PAUSE = 0.02


class SnapshotSource:
    """A walk over the pages of a database, beside its writers and without a lock.

    Every page that it gives was committed at ``at`` or later: the receiver needs the records after ``at`` up
    to the database's position when the walk ended, and then has exactly that position. Retention must not
    remove records after ``at.txid`` before that. Made and iterated in a worker thread.
    """

    def __init__(self, directory: DatabaseDir) -> None:
        """Fix the starting point. Raises DatabaseNotFound, LiteFSError for a damaged database, OSError."""
        self._dir = directory
        self._file = SumsFile(directory.sums)
        self._fd = -1
        self._images: dict[int, Image] = {}
        self._reader = ImageReader()
        try:
            if self._file.sums.damaged:
                raise LiteFSError(f"{directory.name}: the database is damaged, no snapshot can be taken")
            self._mapped_txid = self._file.sums.durable_txid
            txid, checksum, self.timestamp, self.page_size, self.commit, digest = self._file.sums.snapshot()
            self.at = Point(txid, checksum, digest)
            self._fd = os.open(directory.database, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Batches of page numbers (native u32, ascending within a batch) and their images.

        Pages that cannot be had yet come last. If the page size changes meanwhile the walk ends: among the
        records that follow, one holds every page anew. Raises LiteFSError after ``RETRY_SECONDS`` without
        progress, LogCorrupt.
        """
        per_batch = max(1, BATCH_BYTES // (self.page_size or 1))
        late: list[int] = []
        for first in range(1, self.commit + 1, per_batch):
            batch = self._batch(first, min(per_batch, self.commit - first + 1), late)
            if self._ended:
                return
            if batch[0]:
                yield batch
        deadline = time.monotonic() + RETRY_SECONDS
        while late:
            pages: list[tuple[int, bytes]] = []
            waiting: list[int] = []
            for pgno in late:
                page = self._page(pgno)
                if page is None:
                    waiting.append(pgno)
                elif page:
                    pages.append((pgno, page))
            if self._ended:
                return
            for start in range(0, len(pages), per_batch):
                yield _joined(pages[start : start + per_batch])
            if len(waiting) < len(late):
                deadline = time.monotonic() + RETRY_SECONDS
            elif time.monotonic() > deadline:
                raise LiteFSError(
                    f"{self._dir.name}: page {waiting[0]} does not become what its checksum says"
                )
            late = waiting
            if late:
                time.sleep(_RETRY_PAUSE)

    def close(self) -> None:
        """Harmless if repeated."""
        self._file.close()
        self._reader.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _batch(self, first: int, count: int, late: list[int]) -> tuple[bytes, bytes]:
        """The given consecutive pages, one read for all if nobody touches them; what must wait goes to
        ``late``.
        """
        size = self.page_size
        data = fileops.pread_all(self._fd, count * size, (first - 1) * size)
        whole = len(data) // size
        found = page_checksums(first, memoryview(data)[: whole * size], size)
        self._refresh()
        sums = self._file.sums
        if whole == count and found == sums.array(first, count) and not _has_gap(found):
            return struct.pack(f"={count}I", *range(first, first + count)), data
        pages: list[tuple[int, bytes]] = []
        for pgno in range(first, first + count):
            page = self._page(pgno)
            if page is None:
                late.append(pgno)
            elif page:
                pages.append((pgno, page))
        return _joined(pages)

    @property
    def _ended(self) -> bool:
        """Whether the page size has changed since this snapshot began."""
        return self._file.sums.page_size != self.page_size

    def _refresh(self) -> None:
        if max(self._file.sums.page_count, self.commit) > self._file.sums.capacity:
            self._file.refresh()

    def _page(self, pgno: int) -> bytes | None:
        """The page as of its checksum, from file or log; b"" if the database has none, None if it is not to
        be had.
        """
        size = self.page_size
        page = os.pread(self._fd, size, (pgno - 1) * size)
        self._refresh()
        wanted = self._file.sums.get(pgno) if pgno <= self._file.sums.capacity else 0
        if not wanted:
            return b""
        if len(page) == size and page_checksum(pgno, page) == wanted:
            return page
        image = self._image(pgno)
        return image if image is not None and page_checksum(pgno, image) == wanted else None

    def _image(self, pgno: int) -> bytes | None:
        """The newest image in the log of a page that the database file does not durably hold, or None."""
        sums = self._file.sums
        txid, _, _, page_size, *_ = sums.snapshot()
        if page_size != self.page_size:
            return None
        # Retention may remove what has become durable meanwhile, here too between two steps: then
        # try again later.
        start = max(self._mapped_txid, sums.durable_txid)
        try:
            if txid > start:
                newest_images(self._dir.log, start, txid, page_size=page_size, images=self._images)
                self._mapped_txid = txid
            image = self._images.get(pgno)
            return self._reader.page(pgno, image, self.page_size) if image is not None else None
        except (FileNotFoundError, LogCorrupt):
            self._images.pop(pgno, None)
            return None


class SnapshotTarget:
    """A database that is being received, in ``database.tmp`` beside the present one.

    ``pages`` and ``record`` until all has come, then ``verify``, then either ``install`` (no mount shows the
    database) or ``seal``, ``differing``, ``rebase_log`` and ``finish`` (the new content is written through
    the mount).
    """

    def __init__(
        self, directory: DatabaseDir, page_size: int, commit: int, at: Point, timestamp: int
    ) -> None:
        """Begin with an empty file; an earlier unfinished snapshot is removed. Raises ValueError, OSError."""
        directory.create()
        discard(directory)
        self.dir = directory
        self.page_size = page_size
        self.commit = commit
        """Pages of the database, as of the last record."""
        self.point = at
        """Where what was received so far leads."""
        self.timestamp = timestamp
        self._file = SumsFile(directory.incoming_sums, create=True)
        self._fd = -1
        try:
            self._file.sums.format(page_size)
            self._file.ensure(commit)
            self._fd = fileops.open_file(directory.incoming, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            fileops.truncate(self._fd, commit * page_size)
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> Position:
        """As ``point``, for people."""
        return self.point.position

    @property
    def sums(self) -> PageSums:
        """The checksums of what was received."""
        return self._file.sums

    def pages(self, pgnos: Buffer, images: Buffer) -> None:
        """Lay pages (native u32 ascending, contiguous images) into the file. Raises FormatError, OSError."""
        numbers = memoryview(pgnos).cast("B").cast("I")
        data = memoryview(images).cast("B")
        size = self.page_size
        if len(data) != len(numbers) * size:
            raise FormatError(f"{self.dir.name}: {len(data)} bytes for {len(numbers)} snapshot pages")
        # Consecutive numbers keep their distance from their index: each such run is one write.
        for _, run in groupby(range(len(numbers)), key=lambda index: numbers[index] - index):
            first, *rest = run
            last = rest[-1] if rest else first
            if not 1 <= numbers[first] <= numbers[last] <= self.commit:
                raise FormatError(
                    f"{self.dir.name}: snapshot page {numbers[last]} of a database of {self.commit}"
                )
            fileops.pwrite_all(self._fd, data[first * size : (last + 1) * size], (numbers[first] - 1) * size)
            self._file.sums.load(
                numbers[first], page_checksums(numbers[first], data[first * size : (last + 1) * size], size)
            )

    def record(self, body: Buffer) -> None:
        """Lay a later record over the file; one of another page size is a full record, and takes its place.

        Raises PositionMismatch, FormatError, ChecksumMismatch, OSError.
        """
        view = memoryview(body).cast("B")
        at = 0

        def read(size: int) -> memoryview:
            nonlocal at
            at += size
            return view[at - size : at]

        decoder = Decoder(lambda size: bytes(read(size)))
        header = decoder.header
        if header.min_txid != self.point.txid + 1 or header.pre_apply != self.point.checksum:
            raise PositionMismatch(
                f"{self.dir.name}: record {header.min_txid:016x} does not follow {self.position}"
            )
        if header.page_size != self.page_size:
            self._empty(header.page_size)
        self._resize(header.commit)
        for pgnos, images in decoder:
            self.pages(pgnos, images)
        self.point = Point(header.max_txid, decoder.trailer.post_apply, record_hash(view, len(view)))
        self.timestamp = header.timestamp

    def _empty(self, page_size: int) -> None:
        """Forget all pages: a full record follows. Whether it was one, ``verify`` tells."""
        self._file.sums.format(page_size)
        fileops.truncate(self._fd, 0)
        self.page_size, self.commit = page_size, 0

    def _resize(self, commit: int) -> None:
        if commit > self.commit:
            self._file.ensure(commit)
        elif commit < self.commit:
            self._file.sums.load(commit + 1, bytes(8 * (self.commit - commit)))
        fileops.truncate(self._fd, commit * self.page_size)
        self.commit = commit

    def verify(self, point: Point) -> None:
        """Check that what was received is the database at ``point``.

        Raises PositionMismatch, ChecksumMismatch.
        """
        if point != self.point:
            raise PositionMismatch(f"{self.dir.name}: the snapshot is at {self.point}, not at {point}")
        sums = self._file.sums
        sums.reset(self.commit, point.txid, point.checksum, self.timestamp, point.hash)
        total = sums.recompute_total()
        if total != point.checksum:
            raise ChecksumMismatch(
                f"{self.dir.name}: the snapshot's checksum is {total:016x}, not {point.checksum:016x}"
            )

    def seal(self) -> None:
        """Make what was received durable: from here on a crash leads to it, not back to what was there
        before.

        Call after ``verify``; ``recovery.recover`` completes what a crash interrupted.
        """
        fileops.fsync(self._fd)
        self._file.sums.durable_txid = self._file.sums.synced_txid = self.point.txid
        self._file.flush()
        write_intent(self.dir, self.point, self.page_size)

    def install(self) -> None:
        """Put it in place of what was there, which no mount may show. Closes this object. Raises OSError."""
        self.seal()
        self.close()
        complete_install(self.dir)

    def differing(self, sums: PageSums) -> Iterator[tuple[bytes, bytes]]:
        """The pages (native u32 ascending, images) that are not as in ``sums``, or that the database file has
        otherwise, in batches; ``commit`` is the new size.

        The checksums are right also for pages in the WAL, but the file may be damaged.
        """
        size = self.page_size
        new = self._file.sums.array(1, self.commit)
        old = sums.array(1, min(sums.page_count, self.commit))
        found = file_checksums(self.dir.database, size, self.commit)
        pgnos = sorted({*differing_pages(old, new), *differing_pages(found, new)})
        skip = lock_pgno(size)
        per_batch = max(1, BATCH_BYTES // size)
        for start in range(0, len(pgnos), per_batch):
            some = [pgno for pgno in pgnos[start : start + per_batch] if pgno != skip]
            yield _joined([(pgno, fileops.pread_all(self._fd, size, (pgno - 1) * size)) for pgno in some])

    def rebase_log(self, live: SumsFile, log: Log | None) -> Log:
        """Start the log anew at this position and show it in ``live``; the old segments are gone, the new log
        is returned.

        Call ``seal`` and write ``differing`` through the mount before. What must be kept of the old log is
        set aside before, too (``lost.keep_diverged``). ``durable_txid`` becomes 0; once a checkpoint has
        raised it to this position or beyond, call ``finish``.
        """
        # Before the log is this snapshot's: an old, higher value would say that the database file holds it.
        live.sums.durable_txid = 0
        live.flush()
        if log is not None:
            log.close()
        fileops.remove_tree(self.dir.log)
        fresh = Log.create(self.dir.log, self.point, self.page_size)
        live.ensure(self.commit)
        sums = live.sums
        stale = sums.page_count - self.commit
        sums.load(1, self._file.sums.array(1, self.commit))
        if stale > 0:
            sums.load(self.commit + 1, bytes(8 * stale))
        sums.page_size = self.page_size
        at = self.point
        sums.reset(self.commit, at.txid, at.checksum, self.timestamp, at.hash)
        sums.synced_txid = at.txid
        sums.damaged = False
        return fresh

    def finish(self) -> None:
        """Forget the received file: the database file durably holds all of it. Closes this object."""
        self.close()
        discard(self.dir)

    def close(self) -> None:
        """Close files, and keep them if ``seal`` was called; harmless if repeated."""
        self._file.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def abort(self) -> None:
        """Give up and remove what was received (not after ``seal``), the directory too if it was the first of
        this database: none may follow. Harmless if repeated.
        """
        self.close()
        discard(self.dir)
        fileops.remove_empty_dir(self.dir.path)


def _has_gap(sums: bytes) -> bool:
    """Whether one of the pages is no page (the lock page has no checksum)."""
    return 0 in memoryview(sums).cast("Q")


def _joined(pages: list[tuple[int, bytes]]) -> tuple[bytes, bytes]:
    return struct.pack(f"={len(pages)}I", *(pgno for pgno, _ in pages)), b"".join(page for _, page in pages)
