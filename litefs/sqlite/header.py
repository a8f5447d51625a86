"""The 100-byte header at the start of page 1 (https://sqlite.org/fileformat2.html, section 1.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from litefs.errors import FormatError

MAGIC = b"SQLite format 3\0"
SIZE = 100
"""Length of the header, bytes."""
MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 65536
VERSION_WAL = 2
"""Value of read and write version of a database in WAL mode; 1 in the rollback modes."""
_PAYLOAD_FRACTIONS = b"\x40\x20\x20"

_FIELDS = struct.Struct(">16sHBBB3sII60xII")


def is_page_size(size: int) -> bool:
    """True for a power of two from 512 to 65536."""
    return MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and size & (size - 1) == 0


@dataclass(frozen=True, slots=True)
class DatabaseHeader:
    """What we use of it."""

    page_size: int
    """Bytes."""
    write_version: int
    read_version: int
    reserved: int
    """Bytes at the end of each page that SQLite leaves to extensions."""
    change_counter: int
    """Raised by each rollback-mode transaction; in WAL mode only now and then."""
    page_count: int
    """In-header size of the database, pages; believe `trusted_page_count` instead."""
    version_valid_for: int
    """Change counter at which ``page_count`` was written."""

    @property
    def is_wal(self) -> bool:
        """The database is in WAL mode."""
        return self.read_version == VERSION_WAL

    def trusted_page_count(self, file_size: int) -> int:
        """Pages of the database by SQLite's rule, given the size of its file in bytes.

        That is the in-header size, unless it is zero or was left behind by a writer that does not know the
        field; then it is what the file holds.
        """
        if self.page_count and self.change_counter == self.version_valid_for:
            return self.page_count
        return file_size // self.page_size

    @classmethod
    def parse(cls, page1: bytes | bytearray | memoryview) -> Self:
        """Read the first 100 bytes of ``page1``. Raises FormatError if SQLite would not open the file."""
        if len(page1) < SIZE:
            raise FormatError(f"database header: {len(page1)} bytes, {SIZE} needed")
        (magic, raw_size, write_version, read_version, reserved, fractions, change_counter, page_count,
         version_valid_for, _version) = _FIELDS.unpack_from(page1)  # fmt: skip
        if magic != MAGIC:
            raise FormatError("database header: offset 0: not a SQLite database")
        page_size = MAX_PAGE_SIZE if raw_size == 1 else raw_size
        if not is_page_size(page_size):
            raise FormatError(f"database header: offset 16: page size {page_size}")
        if read_version > VERSION_WAL:
            raise FormatError(f"database header: offset 19: read version {read_version}")
        if fractions != _PAYLOAD_FRACTIONS:
            raise FormatError(f"database header: offset 21: payload fractions {fractions.hex()}")
        if page_size - reserved < 480:
            raise FormatError(f"database header: offset 20: {reserved} reserved bytes of {page_size}")
        return cls(
            page_size=page_size,
            write_version=write_version,
            read_version=read_version,
            reserved=reserved,
            change_counter=change_counter,
            page_count=page_count,
            version_valid_for=version_valid_for,
        )
