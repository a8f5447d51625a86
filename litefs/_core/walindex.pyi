"""SQLite's wal-index (the ``-shm`` file), read and written through a mapped buffer.

Format: comments at the top of SQLite's wal.c and https://sqlite.org/walformat.html, section 2. Integers are
native-endian except the salts, which are copied from the WAL header as bytes. The buffer is shared with other
processes: headers, marks and counters are accessed atomically and in SQLite's order. Locking is the caller's.
"""

from typing import NamedTuple

from typing_extensions import Buffer

VERSION: int
"""3007000, the only version of the format."""
REGION_SIZE: int
"""32768: the index grows by this many bytes."""
HEADER_SIZE: int
"""48: bytes of one copy of the header."""
READ_MARKS: int
"""5."""
READ_MARK_UNUSED: int
"""0xffffffff."""

class IndexHeader(NamedTuple):
    """One copy of the wal-index header (WalIndexHdr). Change fields with ``_replace``."""

    version: int = 3007000
    change: int = 0
    """Counter, raised at each commit."""
    is_init: int = 1
    big_end_cksum: int = 0
    """1 if the checksums of the WAL are over big-endian words."""
    page_size: int = 0
    """Bytes, as a number (65536, not its encoding 1)."""
    mx_frame: int = 0
    """Last committed frame, 1-based; 0: the WAL is empty."""
    n_page: int = 0
    """Size of the database, pages."""
    frame_cksum: tuple[int, int] = (0, 0)
    """Checksum of frame ``mx_frame``."""
    salt: tuple[int, int] = (0, 0)
    """Big-endian numbers, as in the WAL header."""
    cksum: tuple[int, int] = (0, 0)
    """As read; `pack` computes it anew."""

    def pack(self) -> bytes:
        """48 bytes with the right checksum. Raises ValueError for a bad page size."""

    @classmethod
    def parse(cls, data: Buffer) -> IndexHeader:
        """Raises ValueError if it is short, not initialised, of another version, the checksum is wrong, or
        the page size (0: none yet) impossible.
        """

def regions_for(frame: int) -> int:
    """Number of 32 KiB regions an index needs to hold ``frame`` frames (at least 1)."""

class WalIndex:
    """A view of the wal-index in a writable buffer of whole 32 KiB regions.

    Methods raise ValueError when a frame lies outside the buffer (map more, then `rebind`), after `release`,
    or when the hash table is damaged.
    """

    def __init__(self, buf: Buffer) -> None: ...
    def rebind(self, buf: Buffer) -> None:
        """Use another buffer (the file was mapped again after it grew)."""

    def release(self) -> None:
        """Drop the buffer, so that it can be unmapped."""

    @property
    def capacity(self) -> int:
        """Frames that fit."""
    def header(self) -> IndexHeader | None:
        """The header; None unless both copies are equal, initialised and their checksum is right."""

    def publish(self, header: IndexHeader) -> None:
        """Write copy 2, a memory barrier, then copy 1: readers see the new state or retry."""

    def invalidate(self) -> None:
        """Zero both copies: the next client runs SQLite's recovery."""

    @property
    def backfill(self) -> int:
        """Frames known to be in the database file (nBackfill)."""
    @backfill.setter
    def backfill(self, value: int) -> None: ...
    @property
    def backfill_attempted(self) -> int:
        """Frames a checkpoint may have begun to copy (nBackfillAttempted)."""
    @backfill_attempted.setter
    def backfill_attempted(self, value: int) -> None: ...
    def read_mark(self, i: int) -> int:
        """Read mark 0..4. Raises IndexError."""

    def set_read_mark(self, i: int, value: int) -> None: ...
    def regions_for(self, frame: int) -> int:
        """As the module's function."""

    def append(self, first_frame: int, pgnos: Buffer) -> None:
        """Index frames ``first_frame``… with these native u32 page numbers.

        Each region is zeroed at its first slot; what an aborted writer left at or after the first new frame
        is cleaned from the region's hash table first. Publish the header afterwards.
        """

    def trim(self, mx_frame: int) -> None:
        """Remove the entries after ``mx_frame`` from its region (SQLite's walCleanupHash)."""

    def find(self, pgno: int, max_frame: int, min_frame: int = 1) -> int:
        """Newest frame of the page within ``min_frame..max_frame``; 0: read the database file."""

    def newest(self, max_frame: int, min_frame: int = 1) -> tuple[bytes, bytes]:
        """Each page with a frame in the range once, for a checkpoint.

        Returns (page numbers ascending, newest frame of each), both native u32.
        """
