"""Header and trailer of an LTX v3 file, all integers big-endian (github.com/superfly/ltx, README and ltx.go).

A file is: header (100 bytes), page frames, page index, trailer (16 bytes). The middle is in
``litefs._core.pageblock``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from litefs._core import pagedecode
from litefs.errors import ChecksumMismatch, FormatError
from litefs.types import CHECKSUM_FLAG, MAX_TXID

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"LTX1"
HEADER_SIZE = 100
TRAILER_SIZE = 16
INDEX_LENGTH_SIZE = 8
FLAG_NO_CHECKSUM = 2
"""Pre- and post-apply checksums are not known and 0 (as in every file of Litestream)."""
MAX_PAGE_SIZE = 65536
EMPTY_CHECKSUM = CHECKSUM_FLAG
"""The rolling checksum of a database without pages."""

_HEADER = struct.Struct(">4sIIIQQqQqqIIQ20x")
_TRAILER = struct.Struct(">QQ")
_LOCK_BYTE = 0x40000000
_MIN_RECORD_SIZE = HEADER_SIZE + 6 + 1 + INDEX_LENGTH_SIZE + TRAILER_SIZE


def lock_pgno(page_size: int) -> int:
    """The page that holds SQLite's lock bytes (offset 0x40000000).

    It is never part of a record or a checksum.
    """
    return _LOCK_BYTE // page_size + 1


def page_total(page_size: int, commit: int) -> int:
    """How many pages a record with all pages of a database of ``commit`` pages holds."""
    return commit - (lock_pgno(page_size) <= commit)


@dataclass(frozen=True, slots=True)
class Header:
    """The first 100 bytes of a record.

    ``commit``: pages of the database after it (0: dropped). ``timestamp``: Unix ms. ``pre_apply``: rolling
    checksum before it, 0 in a record from transaction 1 on. The WAL fields say where the transaction came
    from and may be 0.
    """

    flags: int
    page_size: int
    commit: int
    min_txid: int
    max_txid: int
    timestamp: int
    pre_apply: int
    wal_offset: int = 0
    wal_size: int = 0
    salt1: int = 0
    salt2: int = 0
    node_id: int = 0

    @property
    def is_full(self) -> bool:
        """From transaction 1 on: the record holds every page of the database."""
        return self.min_txid == 1

    def pack(self) -> bytes:
        """The 100 bytes. Raises FormatError if the fields contradict each other or do not fit."""
        self.validate()
        try:
            return _HEADER.pack(
                MAGIC,
                self.flags,
                self.page_size,
                self.commit,
                self.min_txid,
                self.max_txid,
                self.timestamp,
                self.pre_apply,
                self.wal_offset,
                self.wal_size,
                self.salt1,
                self.salt2,
                self.node_id,
            )
        except struct.error as error:
            raise FormatError(f"a field of the LTX header does not fit: {error}") from None

    @classmethod
    def unpack(cls, data: Buffer) -> Header:
        """Read the first 100 bytes of ``data``. Raises FormatError; the reserved bytes are not looked at."""
        try:
            magic, *fields = _HEADER.unpack_from(data)
        except struct.error:
            raise FormatError("the LTX header ends before byte 100") from None
        if magic != MAGIC:
            raise FormatError(f"not an LTX file: it starts with {magic!r} (at byte 0)")
        header = cls(*fields)
        header.validate()
        return header

    def validate(self) -> None:
        """Raises FormatError, naming the byte offset of the field, if the fields contradict each other."""
        if self.flags and self.flags != FLAG_NO_CHECKSUM:
            raise FormatError(f"unknown LTX flags {self.flags:#x} (at byte 4)")
        size = self.page_size
        if size < 512 or size > MAX_PAGE_SIZE or size & (size - 1):
            raise FormatError(f"page size {size} is not a power of two from 512 to 65536 (at byte 8)")
        if self.min_txid < 1:
            raise FormatError("transactions start from 0 instead of 1 (at byte 16)")
        if self.max_txid < self.min_txid:
            raise FormatError(f"transactions {self.min_txid} to {self.max_txid} go backwards (at byte 24)")
        if self.max_txid > MAX_TXID:
            raise FormatError(f"no transaction could follow transaction {self.max_txid} (at byte 24)")
        self._validate_pre_apply()
        if self.wal_offset < 0 or self.wal_size < 0:
            raise FormatError("negative WAL offset or size (at byte 48)")
        if self.wal_offset == 0 and (self.wal_size or self.salt1 or self.salt2):
            raise FormatError("WAL size or salts without a WAL offset (at byte 48)")

    def _validate_pre_apply(self) -> None:
        if self.min_txid == 1 or self.flags & FLAG_NO_CHECKSUM:
            if self.pre_apply:
                raise FormatError("a pre-apply checksum where none is allowed (at byte 40)")
        elif not self.pre_apply & CHECKSUM_FLAG:
            raise FormatError(f"pre-apply checksum {self.pre_apply:#x} lacks bit 63 (at byte 40)")

    def check_post_apply(self, post_apply: int, offset: int | None = None) -> None:
        """Raises FormatError unless ``post_apply`` can be the checksum after this record."""
        if self.flags & FLAG_NO_CHECKSUM:
            valid = post_apply == 0
        elif self.commit == 0:
            valid = post_apply == EMPTY_CHECKSUM
        else:
            valid = bool(post_apply & CHECKSUM_FLAG)
        if not valid:
            place = "" if offset is None else f" (at byte {offset})"
            raise FormatError(f"impossible post-apply checksum {post_apply:#x}{place}")


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last 16 bytes: rolling checksum after it (0 with FLAG_NO_CHECKSUM), checksum of the file."""

    post_apply: int
    file_checksum: int

    def pack(self) -> bytes:
        return _TRAILER.pack(self.post_apply, self.file_checksum)

    @classmethod
    def unpack(cls, data: Buffer) -> Trailer:
        """Read 16 bytes. Raises FormatError if there are not exactly as many."""
        try:
            return cls(*_TRAILER.unpack(data))
        except struct.error:
            raise FormatError("the LTX trailer is not 16 bytes long") from None


def index_span(tail: Buffer, size: int) -> tuple[int, int]:
    """(offset, length) of the page index in a record of ``size`` bytes whose last 24 bytes are ``tail``.

    The length counts the terminating 0 of the index. Raises FormatError if it cannot lie there.
    """
    length = int.from_bytes(memoryview(tail)[:INDEX_LENGTH_SIZE], "big")
    end = size - TRAILER_SIZE - INDEX_LENGTH_SIZE
    if size < _MIN_RECORD_SIZE or not 1 <= length <= end - HEADER_SIZE - 6:
        place = f"at byte {max(end, 0)}"
        raise FormatError(f"a page index of {length} bytes cannot be in a record of {size} ({place})")
    return end - length, length


def parse_index(data: Buffer, offset: int = 0) -> list[tuple[int, int, int]]:
    """(pgno, offset, size) of each page frame, from the bytes that ``index_span`` names.

    Raises FormatError.
    """
    try:
        return pagedecode.parse_index(data, offset)
    except pagedecode.BlockError as error:
        raise FormatError(str(error)) from None


def index_of(record: Buffer) -> list[tuple[int, int, int]]:
    """(pgno, offset, size) of each page frame of a whole record, from its index alone. Raises FormatError."""
    view = memoryview(record)
    offset, length = index_span(view[-TRAILER_SIZE - INDEX_LENGTH_SIZE :], len(view))
    return parse_index(view[offset : offset + length], offset)


def format_error(error: pagedecode.BlockError) -> FormatError:
    """What the kernel refused, as the exception of this project."""
    return (ChecksumMismatch if error.is_checksum else FormatError)(str(error))
