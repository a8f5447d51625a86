"""A restored database that is kept up with its archive, for readers that have it open. Blocks.

What came to the archive is laid over the file as SQLite would write it: under its exclusive lock, behind a
rollback journal, which the next reader plays back if the follower is killed. So the file is in rollback mode
whatever the database is in (bytes 18 and 19), and has a change counter of its own (bytes 24 and 92), by which
readers see that their cache is stale. ``NAME-follow`` beside it says which transaction it shows.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from litefs._core.pagesums import page_checksum, page_checksums
from litefs.backup.archive import Archive
from litefs.backup.finding import Goal, Moment, Timeline, find
from litefs.backup.pagemap import RUN_PAGES_BYTES, PageMap
from litefs.backup.pieces import Piece, read_indexes
from litefs.backup.restore import restore
from litefs.errors import ArchiveCorrupt, LiteFSError, NotRestorable
from litefs.sqlite.journal import MIN_SECTOR_SIZE, JournalHeader
from litefs.sqlite.journal import page_checksum as journal_checksum
from litefs.sqlite.locks import PENDING, RESERVED, SHARED_FIRST, SHARED_SIZE
from litefs.store import fileops
from litefs.types import CHECKSUM_FLAG

SUFFIX = "-follow"
LOCK_SECONDS = 30.0
"""How long readers may keep the follower from writing; then the next step tries again."""
SECTOR = 512
_PAUSE = 0.01
_MODES, _COUNTER, _SIZE, _VALID_FOR = slice(18, 20), slice(24, 28), slice(28, 32), slice(92, 96)
_LOCKS = ((PENDING, 1), (RESERVED, 1), (SHARED_FIRST, SHARED_SIZE))

assert SECTOR >= MIN_SECTOR_SIZE


@dataclass(frozen=True, slots=True)
class Shown:
    """What the file shows; ``first``: the checksum of page 1 as the archive has it."""

    timeline: int
    txid: int
    page_size: int
    first: int

    def pack(self) -> bytes:
        """JSON."""
        fields = {"timeline": self.timeline, "txid": f"{self.txid:016x}", "pageSize": self.page_size}
        return json.dumps({**fields, "page1": f"{self.first:016x}"}).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Shown:
        """Raises ValueError, KeyError, TypeError."""
        found = json.loads(data)
        numbers = int(found["timeline"]), int(found["txid"], 16), int(found["pageSize"])
        return cls(*numbers, int(found["page1"], 16))


class Follower:
    """``begin``, then ``step`` now and then. ``look`` gives the timelines, the oldest first."""

    def __init__(self, out: Path, look: Callable[[], Sequence[Archive]]) -> None:
        self._out = out
        self._look = look
        self._note = out.with_name(out.name + SUFFIX)
        self._journal = out.with_name(out.name + "-journal")
        self._sums = array("Q")
        """Of each page as the archive has it."""
        self._lock = -1
        self.shown: Shown | None = None

    def begin(self) -> Shown:
        """Restore the newest moment, or go on with what an earlier follower left. Raises FileExistsError if
        that is no file of a follower, LiteFSError if another one is at work, and as ``step``."""
        self._take_note()
        there = self._out.exists()
        if there and self.shown is None:
            raise FileExistsError(f"{self._out}: there is a file already, and it was not followed")
        if not there:
            self._anew()
        else:
            self._roll_back()
        self._read_sums()
        self.step()
        assert self.shown is not None
        return self.shown

    def close(self) -> None:
        """Let go; harmless if repeated."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def step(self) -> bool:
        """Bring the file to the newest moment; False if it shows it.

        Raises ArchiveCorrupt, NotRestorable, ArchiveUnavailable, OSError, TimeoutError if readers do not let
        it: then the file is as it was.
        """
        shown = self.shown
        assert shown is not None
        archive, moment = self._newest()
        if (archive.number, moment.txid) == (shown.timeline, shown.txid) and self._is_ours():
            return False
        if moment.page_size != shown.page_size:
            self._anew()
            self._read_sums()
            self.step()
            return True
        pieces: Sequence[Piece] = moment.pieces
        if archive.number == shown.timeline and moment.txid >= shown.txid:
            with suppress(NotRestorable):  # what was between is pruned: all of it, then
                pieces = Timeline(archive).after(shown.txid, moment.txid)
        self._lay(archive, moment, pieces)
        return True

    # -- the note -------------------------------------------------------------------------------------

    def _take_note(self) -> None:
        self._lock = fileops.open_file(self._note.with_name(self._note.name + "er"), os.O_RDWR | os.O_CREAT)
        if not fileops.try_lock(self._lock):
            self.close()
            raise LiteFSError(f"{self._out}: another process follows the archive there")
        try:
            self.shown = Shown.parse(self._note.read_bytes())
        except FileNotFoundError:
            self.shown = None
        except (ValueError, KeyError, TypeError) as error:
            raise LiteFSError(f"{self._note}: not the note of a follower: {error}") from None

    def _show(self, shown: Shown) -> None:
        fileops.write_file_atomic(self._note, shown.pack())
        self.shown = shown

    # -- the file -------------------------------------------------------------------------------------

    def _newest(self) -> tuple[Archive, Moment]:
        found = find(self._look(), Goal())
        if found is None:
            raise NotRestorable(f"{self._out.name}: the database was removed")
        return found

    def _anew(self) -> None:
        """The whole file; who has the old one open keeps seeing that."""
        archive, moment = self._newest()
        restored = restore(archive, moment, self._out.with_name(self._out.name + ".new"), replace=True)
        with restored.path.open("r+b", buffering=0) as file:
            page = bytearray(fileops.pread_all(file.fileno(), moment.page_size, 0))
            first = page_checksum(1, bytes(page))
            _make_ours(page, moment.commit, secrets.randbits(32))
            fileops.pwrite_all(file.fileno(), page, 0)
            fileops.fsync(file.fileno())
        # The note first: without its file a follower begins anew.
        with suppress(FileNotFoundError):
            self._out.unlink()
        self._show(Shown(archive.number, moment.txid, moment.page_size, first))
        fileops.rename(restored.path, self._out)
        fileops.sync_dir(self._out.parent)

    def _is_ours(self) -> bool:
        with self._out.open("rb", buffering=0) as file:
            return fileops.pread_all(file.fileno(), 2, 18) == b"\x01\x01"

    def _roll_back(self) -> None:
        """Have SQLite play back the journal of a follower that was killed."""
        with closing(sqlite3.connect(self._out, timeout=LOCK_SECONDS)) as db:
            db.execute("PRAGMA schema_version").fetchone()

    def _read_sums(self) -> None:
        shown = self.shown
        assert shown is not None
        size, self._sums = shown.page_size, array("Q")
        with self._out.open("rb", buffering=0) as file:
            first, step = 1, max(1, RUN_PAGES_BYTES // size)
            while data := fileops.pread_all(file.fileno(), step * size, (first - 1) * size):
                self._sums.frombytes(page_checksums(first, data, size))
                first += step
        if self._sums:
            self._sums[0] = shown.first

    # -- what is new ----------------------------------------------------------------------------------

    def _lay(self, archive: Archive, moment: Moment, pieces: Sequence[Piece]) -> None:
        pages = PageMap(moment.page_size, moment.commit)
        with closing(read_indexes(archive.target, list(reversed(pieces)))) as indexed:
            pages.lay(indexed, archive.url)
        changed = pages.laid()
        fd = fileops.open_file(self._out, os.O_RDWR)
        try:
            with _exclusive(fd):
                self._write_journal(fd, moment, changed)
                try:
                    sums = self._write_pages(fd, archive, moment, pages, changed)
                except BaseException:
                    fcntl.lockf(fd, fcntl.LOCK_UN)
                    self._roll_back()
                    raise
                fileops.fsync(fd)
                fileops.unlink_durably(self._journal)  # now it is another database
                self._sums = sums
                self._show(Shown(archive.number, moment.txid, moment.page_size, sums[0] if sums else 0))
        finally:
            os.close(fd)

    def _write_journal(self, fd: int, moment: Moment, changed: Sequence[int]) -> None:
        """Save what is about to be overwritten or cut off."""
        size, before = moment.page_size, os.fstat(fd).st_size // moment.page_size
        saved = sorted({1, *(p for p in changed if p <= before), *range(moment.commit + 1, before + 1)})
        nonce = secrets.randbits(32)
        header = JournalHeader(len(saved), nonce, before, SECTOR, size).pack().ljust(SECTOR, b"\0")
        journal = fileops.open_file(self._journal, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            at = len(header)
            for pgno in saved:
                page = fileops.pread_all(fd, size, (pgno - 1) * size)
                tail = struct.pack(">I", journal_checksum(nonce, page))
                record = struct.pack(">I", pgno) + page + tail
                fileops.pwrite_all(journal, record, at)
                at += len(record)
            fileops.fsync(journal)
            fileops.pwrite_all(journal, header, 0)  # from here on it is hot
            fileops.fsync(journal)
        finally:
            os.close(journal)
        fileops.sync_dir(self._journal.parent)

    def _write_pages(
        self, fd: int, archive: Archive, moment: Moment, pages: PageMap, changed: Sequence[int]
    ) -> array[int]:
        """Write them; the checksums afterwards. Raises ArchiveCorrupt if they are not the primary's."""
        size, commit = moment.page_size, moment.commit
        sums = self._sums[:commit]
        sums.frombytes(bytes(8 * (commit - len(sums))))
        first: bytes | None = None
        fileops.truncate(fd, commit * size)
        step = max(1, RUN_PAGES_BYTES // size)
        for start in range(0, len(changed), step):
            for run in pages.runs(changed[start : start + step]):
                found = pages.decode(run, archive.target.read(run.key, run.start, run.length))
                for pgno, page in found.items():
                    sums[pgno - 1] = page_checksum(pgno, page)
                    if pgno == 1:
                        first = page
                    else:
                        fileops.pwrite_all(fd, page, (pgno - 1) * size)
        # by this descriptor: to close another one would let go of the locks
        before = fileops.pread_all(fd, size, 0)
        own = bytearray(first if first is not None else before)
        (counter,) = struct.unpack(">I", before[_COUNTER])
        _make_ours(own, commit, (counter + 1) & 0xFFFFFFFF)
        fileops.pwrite_all(fd, own, 0)
        total = 0
        for value in sums:
            total ^= value
        total |= CHECKSUM_FLAG
        if moment.checksum not in (None, total):
            raise ArchiveCorrupt(
                f"{archive.url}: TXID {moment.txid:016x} comes out with checksum {total:016x}, "
                f"the primary had {moment.checksum:016x}"
            )
        return sums


def _make_ours(page: bytearray, commit: int, counter: int) -> None:
    """Page 1 as the file has it."""
    page[_MODES] = b"\x01\x01"
    page[_COUNTER] = page[_VALID_FOR] = struct.pack(">I", counter)
    page[_SIZE] = struct.pack(">I", commit)


@contextmanager
def _exclusive(fd: int) -> Iterator[None]:
    """SQLite's EXCLUSIVE lock, in its order, so that readers finish and none begins. Raises TimeoutError."""
    deadline = time.monotonic() + LOCK_SECONDS
    for offset, length in _LOCKS:
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, offset)
                break
            except OSError:
                if time.monotonic() > deadline:
                    fcntl.lockf(fd, fcntl.LOCK_UN)
                    raise TimeoutError(f"readers kept the file locked for {LOCK_SECONDS:g} s") from None
                time.sleep(_PAUSE)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN)
