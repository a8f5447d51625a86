"""The rollback journal, by the rules that SQLite's pager.c plays it back with.

Format: https://sqlite.org/fileformat2.html, section 3. A journal is a sequence of segments: a header padded
to a sector, then records of ``u32 page number, page, u32 checksum``. When the cache spills, another header
follows at the next multiple of the sector size. The name of a super-journal may come last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from litefs.errors import FormatError
from litefs.sqlite.header import is_page_size
from litefs.sqlite.locks import lock_pgno

Read = Callable[[int, int], bytes]
"""``read(offset, length)``: bytes of the journal, fewer only at its end."""

MAGIC = bytes.fromhex("d9d505f920a163d7")
HEADER_SIZE = 28
"""Bytes of a header that mean something; it fills a sector."""
NO_SYNC = 0xFFFFFFFF
"""Record count of a journal that is never synced: every record up to the end of the file counts."""
FIRST_SECTOR = 512
"""SQLite looks for no header in a shorter file: it knows the real sector size only from the header."""
MIN_SECTOR_SIZE = 32
MAX_SECTOR_SIZE = 65536
MAX_SUPER_NAME = 512
"""Bytes; the longest path name that SQLite on Unix accepts."""

_HEADER = struct.Struct(">8s5I")
_U32 = struct.Struct(">I")
_SUPER_TAIL = struct.Struct(">II8s")
MAX_SUPER_TAIL = MAX_SUPER_NAME + _SUPER_TAIL.size
"""What of the end of a journal `super_journal_name` looks at, bytes."""


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """One header."""

    record_count: int
    """Records that follow and are synced; `NO_SYNC`: all that are there; 0: none is synced yet."""
    nonce: int
    """Start value of the page checksums of this segment."""
    initial_pages: int
    """Size of the database before the transaction, pages."""
    sector_size: int
    """Bytes; meaningful in the first header only."""
    page_size: int
    """Bytes, 0 in journals by very old versions; meaningful in the first header only."""

    def pack(self) -> bytes:
        """The 28 bytes, without the padding to a sector."""
        return _HEADER.pack(
            MAGIC, self.record_count, self.nonce, self.initial_pages, self.sector_size, self.page_size
        )

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Self:
        """Read the first 28 bytes. Raises FormatError if there are fewer or the magic number is wrong."""
        if len(data) < HEADER_SIZE:
            raise FormatError(f"journal header: {len(data)} bytes, {HEADER_SIZE} needed")
        magic, *fields = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise FormatError("journal header: offset 0: wrong magic number")
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What playing a journal back does to the database file."""

    page_size: int
    """Bytes."""
    initial_pages: int
    """The file is first set to this many pages, cut or extended with zeros."""
    super_journal: str | None
    """The transaction was committed if a super-journal is named and does not exist: do not play back."""
    records: Iterator[tuple[int, bytes]]
    """(page number, image before the transaction) in playback order; a later one of a page wins."""


def page_checksum(nonce: int, page: bytes | bytearray | memoryview) -> int:
    """Checksum of a record: the nonce plus every 200th byte, counted from the end of the page."""
    return (nonce + sum(page[i] for i in range(len(page) - 200, 0, -200))) & 0xFFFFFFFF


def is_hot(first_bytes: bytes) -> bool:
    """A journal whose first byte is not zero is hot if no writer is alive and the database is not empty.

    An empty journal and one whose header was zeroed (journal_mode=PERSIST) end a transaction.
    """
    return first_bytes[:1] not in (b"", b"\0")


def zeroes_header(offset: int, data: bytes | bytearray | memoryview) -> bool:
    """True if a write of ``data`` at ``offset`` ends a transaction by clearing the journal's first byte."""
    return offset == 0 and len(data) > 0 and data[0] == 0


def super_journal_name(read: Read, size: int) -> str | None:
    """The super-journal named at the end of a journal of ``size`` bytes, or None.

    Bytes that are not UTF-8 come out as `os.fsdecode` would give them.
    """
    if size < _SUPER_TAIL.size:
        return None
    tail = read(size - _SUPER_TAIL.size, _SUPER_TAIL.size)
    if len(tail) < _SUPER_TAIL.size:
        return None
    length, checksum, magic = _SUPER_TAIL.unpack(tail)
    if magic != MAGIC or not 0 < length <= min(MAX_SUPER_NAME, size - _SUPER_TAIL.size):
        return None
    name = read(size - _SUPER_TAIL.size - length, length)
    # SQLite sums values of C's plain char, whose sign differs between machines.
    unsigned = sum(name)
    signed = unsigned - 256 * sum(byte >= 128 for byte in name)
    if len(name) < length or checksum not in (unsigned & 0xFFFFFFFF, signed & 0xFFFFFFFF):
        return None
    name = name.split(b"\0", 1)[0]
    return name.decode("utf-8", "surrogateescape") or None


def may_end_super_name(data: bytes | bytearray | memoryview) -> bool:
    """Whether a write of ``data`` can be the last one of a super-journal's name at the end of a journal.

    The magic number ends it, which SQLite writes by itself; it may arrive in two pieces.
    """
    return MAGIC.endswith(bytes(data[-len(MAGIC) :]))


def rollback_plan(read: Read, size: int, *, page_size: int = 0, live: bool = False) -> RollbackPlan | None:
    """How SQLite would roll back a journal of ``size`` bytes; None if it has no header.

    ``page_size`` is used if the journal's header has none. ``live``: the transaction is still open, so
    records after a header that counts none are taken too (they are there, only not synced); a hot journal's
    are not, as their pages cannot have reached the database file. ``records`` reads lazily, and ends without
    an error where SQLite stops: at the first record that is cut off, has a wrong checksum or the number 0 or
    of the lock page, and after the last valid header.
    """
    try:
        first = JournalHeader.parse(read(0, HEADER_SIZE))
    except FormatError:
        return None
    page_size = first.page_size or page_size
    sector_size = first.sector_size
    sane_sector = MIN_SECTOR_SIZE <= sector_size <= MAX_SECTOR_SIZE and sector_size & (sector_size - 1) == 0
    if not sane_sector or not is_page_size(page_size) or size < FIRST_SECTOR:
        return None
    return RollbackPlan(
        page_size=page_size,
        initial_pages=first.initial_pages,
        super_journal=super_journal_name(read, size),
        records=_records(read, size, first, page_size, live),
    )


def _records(
    read: Read, size: int, header: JournalHeader, page_size: int, live: bool
) -> Iterator[tuple[int, bytes]]:
    sector_size = header.sector_size
    initial_pages = header.initial_pages
    record_size = page_size + 8
    stop_pgnos = (0, lock_pgno(page_size))
    offset = sector_size
    while True:
        count = header.record_count
        if count == NO_SYNC:
            count = (size - sector_size) // record_size
        elif count == 0 and live:
            count = (size - offset) // record_size
        for _ in range(count):
            record = read(offset, record_size)
            offset += record_size
            if len(record) < 4 + page_size:
                return
            (pgno,) = _U32.unpack_from(record)
            if pgno in stop_pgnos:
                return
            if pgno > initial_pages:
                continue
            if len(record) < record_size:
                return
            image = record[4 : 4 + page_size]
            if page_checksum(header.nonce, image) != _U32.unpack_from(record, 4 + page_size)[0]:
                return
            yield pgno, image
        offset = -(-offset // sector_size) * sector_size
        if offset + sector_size > size:
            return
        try:
            header = JournalHeader.parse(read(offset, HEADER_SIZE))
        except FormatError:
            return
        offset += sector_size
