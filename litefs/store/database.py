"""One database's durable state, held by the writer of its log: checksums, position, log."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from litefs._core.pageblock import encode_record
from litefs._core.pagesums import HEADER_SIZE, PageSums, checksums_of
from litefs.errors import CommitRefused, FormatError, LogCorrupt, LogSyncFailed, NotSupported
from litefs.ltx.encoder import Encoder, encode
from litefs.ltx.format import Header, lock_pgno
from litefs.meters import METERS, now_ns
from litefs.store import fileops
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.rewrite import write_again
from litefs.store.segments import list_segments
from litefs.store.sums import SumsFile
from litefs.trace import TRACE
from litefs.types import START, Point, Position

if TYPE_CHECKING:
    from typing_extensions import Buffer

Batch = tuple["Buffer", "Buffer"]
"""Page numbers (native u32, ascending) and as many contiguous page images."""

Forward = Callable[[Position, Iterable[bytes]], Iterable[bytes]]
"""Has a transaction, by the position after it and its record in pieces, accepted elsewhere; blocks. Returns
the record that was logged there, to be appended here: all logs are alike. Raises LiteFSError if nothing must
be appended."""

_HEADER = struct.Struct(">4sIIIQQqQqqIIQ20x")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A transaction that is encoded and checked, but not in the log yet."""

    pgnos: Buffer
    new_sums: bytes
    """Checksums of its pages, native u64."""
    record: bytes
    """Empty if it came in pieces (``append_stream``)."""
    commit: int
    position: Position
    """The position after it."""
    timestamp: int
    full: PageSums | None = None
    """Of a full record: checksums of the new page size, for the pages to be put in."""


class Database:
    """The durable state of a database.

    One process may have it open for writing; not for use by two threads at once.
    """

    def __init__(self, directory: DatabaseDir, sums: SumsFile, log: Log | None, node_id: int) -> None:
        """Use ``open``."""
        self.dir = directory
        self.node_id = node_id
        self.compress = True
        """Whether records are compressed."""
        self.stopped: str | None = None
        """Why nothing more can be committed here, once ``stop`` was called."""
        self.forward: Forward | None = None
        """Asked before each append."""
        self._until_synced = False
        self._file = sums
        self._log = log
        self._room = 0

    @classmethod
    def open(cls, directory: DatabaseDir, *, node_id: int = 0) -> Database:
        """Open a recovered database, or a new one whose directory exists (its log begins with the first
        commit).

        Raises LogCorrupt if log and checksums are at different positions (``recovery.recover`` sets that
        right), OSError.
        """
        sums = SumsFile(directory.sums, create=True)
        log = None
        try:
            if list_segments(directory.log):
                log = Log.open(directory.log, synced_txid=sums.sums.synced_txid, trusted=sums.point)
            tip = log.tip if log is not None else START
            if tip != sums.point:
                raise LogCorrupt(
                    f"{directory.path}: log at {tip}, checksums at {sums.point}: recovery is needed"
                )
        except BaseException:
            if log is not None:
                log.close()
            sums.close()
            raise
        return cls(directory, sums, log, node_id)

    @property
    def sums(self) -> PageSums:
        """The checksums.

        Take it anew each time: a commit that grows the database may map the file elsewhere.
        """
        return self._file.sums

    @property
    def sums_file(self) -> SumsFile:
        return self._file

    @property
    def log(self) -> Log:
        """The log. Raises LogCorrupt before the first transaction, when there is none."""
        if self._log is None:
            raise LogCorrupt(f"{self.dir.log}: no transaction yet")
        return self._log

    @property
    def page_size(self) -> int:
        """Bytes; 0 before the first transaction."""
        sums = self._file.sums
        return sums.page_size if sums.txid else 0

    @property
    def position(self) -> Position:
        """The last published transaction."""
        return self._file.position

    @property
    def point(self) -> Point:
        """As ``position``, for other nodes."""
        return self._file.point

    def stop(self, reason: str, *, until_synced: bool = False) -> None:
        """Refuse all commits from now on; the first reason stays.

        ``until_synced``: nothing but a sync failed, so ``resume`` may end it; else only the next start may.
        """
        self._until_synced = until_synced and (self.stopped is None or self._until_synced)
        self.stopped = self.stopped or reason

    def file_unsynced(self, reason: str) -> None:
        """``stop`` because a sync of the database file failed."""
        self._file.distrust()
        self.stop(reason, until_synced=True)

    @property
    def can_resume(self) -> bool:
        """Whether nothing but failed syncs stopped it."""
        return self._until_synced

    def resume(self, lacks: Callable[[int], bool]) -> bool:
        """Whether all that could not be synced is durable now: then commits go on. ``lacks``: as of
        ``write_again``; nothing may write to the database meanwhile.
        """
        if not self._until_synced:
            return False
        try:
            self.sync()  # the log in a new segment
            if self._file.distrusted:
                write_again(self.dir, self._file, lacks)
        except (LogSyncFailed, FormatError, OSError):
            return False
        self.stopped, self._until_synced = None, False
        return True

    def check(self) -> None:
        """Raises CommitRefused while nothing can be committed here."""
        if self.stopped is not None:
            raise CommitRefused(f"{self.dir.name}: {self.stopped}")
        if self._log is not None and self._log.tip.txid != self._file.sums.txid:
            raise CommitRefused(f"{self.dir.name}: the log holds a transaction that was not published")

    def prepare(
        self,
        pgnos: Buffer,
        images: Buffer,
        commit: int,
        timestamp: int,
        page_size: int = 0,
        fill: Callable[[int], bytes] | None = None,
    ) -> Prepared:
        """Encode a transaction; nothing changes, except that space is made ready.

        ``pgnos``: native u32, ascending, no lock page; ``images``: as many pages, contiguous; ``commit``:
        database size after it, in pages; ``timestamp``: Unix ms (raised to the last one's). Every page that
        the database grows by must be given, or ``fill(pgno)`` is asked for it. ``page_size`` is needed if a
        first transaction has no pages. Raises CommitRefused after ``stop``, NotSupported for another page
        size, FormatError for pages that do not fit, OSError.
        """
        begin = now_ns()
        sums = self._begin(commit, page_size or _infer_page_size(pgnos, images))
        if fill is not None and commit > sums.page_count:
            pgnos, images = _filled(pgnos, images, sums, commit, fill)
        try:
            post, new = sums.preview(pgnos, images, commit)
            position = Position(sums.txid + 1, post)
            stamp = max(timestamp, sums.timestamp)
            if self.compress:
                record = encode_record(self._header(commit, position.txid, stamp), pgnos, images, post)
            else:
                fields = self._fields(commit, position.txid, stamp, sums.page_size)
                record = encode(fields, pgnos, images, post, compress=False)
        except ValueError as error:
            raise FormatError(f"{self.dir.name}: not a transaction: {error}") from error
        METERS.prepare.since(begin)
        return Prepared(pgnos, new, record, commit, position, stamp)

    def changes(self, prepared: Prepared) -> bool:
        """Whether a prepared transaction leaves another database than it found.

        The database checksum alone cannot tell: it is an XOR of CRCs, so two pages that change by the same
        bits at the same place, as when one row gives what another gets, leave it as it was.
        """
        sums = self.sums
        if prepared.commit != sums.page_count or prepared.position.checksum != sums.checksum:
            return True
        pgnos = memoryview(prepared.pgnos).cast("B").cast("I")
        new_sums = memoryview(prepared.new_sums).cast("Q")
        return any(sums.get(pgno) != new for pgno, new in zip(pgnos, new_sums, strict=True))

    def append(self, prepared: Prepared, *, publish: bool = True) -> None:
        """Append to the log: from the return on the transaction exists. ``publish`` it too, unless told to
        wait.

        Raises OSError, LogSyncFailed; then log and checksums are as before.
        """
        begin = now_ns()
        record = prepared.record
        if self.forward is not None:
            record = b"".join(self.forward(prepared.position, (record,)))
        self.log.append(record, prepared.position.txid, prepared.position.checksum)
        METERS.append.since(begin)
        if publish:
            self.publish(prepared)

    def publish(self, prepared: Prepared) -> None:
        """Show the last transaction in the log to everybody who reads the position. Cannot fail."""
        sums, full, at, stamp = self._file.sums, prepared.full, self.log.tip, prepared.timestamp
        (full or sums).commit(
            prepared.pgnos, prepared.new_sums, prepared.commit, at.txid, at.checksum, stamp, at.hash
        )
        if full is not None:
            new = full.array(1, prepared.commit)
            sums.replace(full.page_size, new, at.txid, at.checksum, stamp, at.hash)
        METERS.commits[self.dir.name] += 1
        if TRACE.enabled:
            pages = memoryview(prepared.pgnos).nbytes // 4
            TRACE("Commit", self.dir.name, pos=at.position, pages=pages, commit=prepared.commit)

    def commit(
        self,
        pgnos: Buffer,
        images: Buffer,
        commit: int,
        timestamp: int,
        *,
        page_size: int = 0,
        fill: Callable[[int], bytes] | None = None,
        before_publish: Callable[[], None] | None = None,
    ) -> Position:
        """``prepare``, ``append``, ``publish``; returns the new position.

        If ``before_publish`` raises, the transaction is in the log but unpublished, and nothing can be
        committed before the database was recovered.
        """
        prepared = self.prepare(pgnos, images, commit, timestamp, page_size, fill)
        self.append(prepared, publish=False)
        if before_publish is not None:
            before_publish()
        self.publish(prepared)
        return prepared.position

    def commit_stream(
        self,
        pgnos: Buffer,
        batches: Iterable[Batch] | Callable[[], Iterable[Batch]],
        commit: int,
        timestamp: int,
        page_size: int = 0,
    ) -> bytes:
        """Commit a transaction of any size in memory bounded by its batches; returns its pages' checksums
        (native u64). As ``append_stream``, and published.
        """
        prepared = self.append_stream(pgnos, batches, commit, timestamp, page_size)
        self.publish(prepared)
        return prepared.new_sums

    def append_stream(
        self,
        pgnos: Buffer,
        batches: Iterable[Batch] | Callable[[], Iterable[Batch]],
        commit: int,
        timestamp: int,
        page_size: int = 0,
    ) -> Prepared:
        """Append a transaction of any size, in memory bounded by its batches, without publishing it.

        ``batches`` (or what it returns, if callable) is iterated twice and yields the pages of ``pgnos`` in
        order, first for the checksums, then for the record. Another ``page_size`` than the database's makes a
        full record: ``pgnos`` are then all pages of the database. Runs in a worker thread: the kernels drop
        the GIL. Raises as ``append``, CommitRefused after ``stop``, FormatError for pages that do not fit,
        also if the second pass gives other pages than the first.
        """
        start = now_ns()
        sums = self._file.sums
        full = bool(sums.txid and page_size and page_size != sums.page_size)
        sums = self._begin(commit, 0 if full else page_size)
        repeat: Callable[[], Iterable[Batch]] = batches if callable(batches) else lambda: batches
        size = page_size if full else sums.page_size
        after = empty_sums(size, commit) if full else sums
        try:
            new = b"".join(checksums_of(some, images, size) for some, images in repeat())
            post = after.post(pgnos, new, commit)
        except ValueError as error:
            raise FormatError(f"{self.dir.name}: not a transaction: {error}") from error
        position = Position(sums.txid + 1, post)
        stamp = max(timestamp, sums.timestamp)
        encoder = Encoder(self._fields(commit, position.txid, stamp, size), compress=self.compress)
        with self.log.begin_segment(size) if full else self.log.begin() as record:
            record.write(encoder.begin())
            for some, images, expected in _aligned(repeat(), new):
                if checksums_of(some, images, size) != expected:
                    raise FormatError(f"{self.dir.name}: pages changed while they were being logged")
                record.write(encoder.add(some, images))
            record.write(encoder.finish(post))
            if self.forward is not None:
                accepted = self.forward(position, record.read_back())
                record.rewind()
                for piece in accepted:
                    record.write(piece)
            record.commit(position.txid, post)
        METERS.append.since(start)
        return Prepared(pgnos, new, b"", commit, position, stamp, after if full else None)

    def retract(self, position: Position) -> None:
        """Take the last record, not published yet, out of the log, so that it ends at ``position``.

        Durable on return. Raises as ``Log.retract``.
        """
        self.log.retract(position)
        self._file.sums.synced_txid = min(self._file.sums.synced_txid, position.txid)

    def sync(self) -> None:
        """Make the log durable, if need be in a new segment. Raises LogSyncFailed; see ``Log.sync``."""
        if self._log is not None:
            tip = self._log.tip.txid
            try:
                self._log.sync()
            except LogSyncFailed:
                self._log.sync()  # not that file again: what it may lack goes into a new one
            self._file.sums.synced_txid = tip

    def close(self) -> None:
        """Close files without a sync; harmless if repeated."""
        if self._log is not None:
            self._log.close()
        self._file.close()

    def _begin(self, commit: int, page_size: int) -> PageSums:
        """Check that a commit may begin, and make what it needs: log, page size, room for checksums."""
        sums = self._file.sums
        self.check()
        if self._log is None or (not sums.txid and page_size and page_size != sums.page_size):
            self._start_log(page_size)
        if page_size and page_size != sums.page_size:
            raise NotSupported(f"{self.dir.name}: page size changes from {sums.page_size} to {page_size}")
        if commit > self._room:
            self._room = self._file.ensure(commit)
        return self._file.sums

    def _start_log(self, page_size: int) -> None:
        if not page_size:
            raise FormatError(f"{self.dir.name}: the first transaction has no pages")
        try:
            self._file.sums.format(page_size)
        except ValueError as error:
            raise FormatError(f"{self.dir.name}: {error}") from None
        if self._log is not None:
            self._log.close()
        # What a first transaction that was refused left: a log without a record, perhaps of another
        # page size.
        fileops.remove_tree(self.dir.log)
        self._log = Log.create(self.dir.log, START, page_size)

    def _fields(self, commit: int, txid: int, timestamp: int, page_size: int) -> Header:
        pre_apply = self._file.sums.checksum
        return Header(0, page_size, commit, txid, txid, timestamp, pre_apply, node_id=self.node_id)

    def _header(self, commit: int, txid: int, timestamp: int) -> bytes:
        """The bytes of ``_fields(..., sums.page_size).pack()`` without its checks, which all hold here."""
        sums = self._file.sums
        return _HEADER.pack(
            b"LTX1", 0, sums.page_size, commit, txid, txid, timestamp, sums.checksum, 0, 0, 0, 0, self.node_id
        )


def empty_sums(page_size: int, pages: int) -> PageSums:
    """Checksums of a database without pages, with room for that many: what a full record is laid over.

    Raises ValueError for an impossible page size.
    """
    sums = PageSums(bytearray(HEADER_SIZE + 8 * pages))
    sums.format(page_size)
    return sums


def _infer_page_size(pgnos: Buffer, images: Buffer) -> int:
    count = memoryview(pgnos).nbytes // 4
    return memoryview(images).nbytes // count if count else 0


def _aligned(batches: Iterable[Batch], new: bytes) -> Iterator[tuple[Buffer, Buffer, bytes]]:
    """Each batch with the part of ``new`` that belongs to it."""
    at = 0
    for pgnos, images in batches:
        size = memoryview(pgnos).nbytes * 2
        yield pgnos, images, new[at : at + size]
        at += size
    if at != len(new):
        raise FormatError("pages disappeared while they were being logged")


def _filled(
    pgnos: Buffer, images: Buffer, sums: PageSums, commit: int, fill: Callable[[int], bytes]
) -> tuple[bytes, bytes]:
    """The transaction with every page that the database grows by."""
    numbers = memoryview(pgnos).cast("B").cast("I").tolist()
    size = sums.page_size
    data = memoryview(images).cast("B")
    pages = {pgno: data[index * size : (index + 1) * size] for index, pgno in enumerate(numbers)}
    skip = lock_pgno(size)
    for pgno in range(sums.page_count + 1, commit + 1):
        if pgno not in pages and pgno != skip:
            pages[pgno] = memoryview(fill(pgno))
    ordered = sorted(pages)
    return struct.pack(f"={len(ordered)}I", *ordered), b"".join(pages[pgno] for pgno in ordered)
