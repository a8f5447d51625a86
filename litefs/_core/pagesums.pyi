from typing_extensions import Buffer

HEADER_SIZE: int
"""Bytes before the checksum array."""

def page_checksum(pgno: int, page: Buffer) -> int:
    """Bit 63 | CRC-64/ISO(pgno as big-endian u32, then the page): the page checksum of LTX."""

def page_checksums(first_pgno: int, data: Buffer, page_size: int) -> bytes:
    """The checksums of consecutive pages as a native u64 array; 0 for the lock page.

    Raises ValueError if ``data`` is not whole pages or the page size is not one of SQLite's.
    """

def checksums_of(pgnos: Buffer, images: Buffer, page_size: int) -> bytes:
    """The checksums (native u64) of pages ``pgnos`` (native u32, ascending) with contiguous ``images``.

    Raises ValueError if the lengths disagree, the numbers do not ascend, or one is the lock page.
    """

class PageSums:
    """The ``sums`` file (ARCHITECTURE.md) in a writable, 8-byte aligned buffer, usually a shared map.

    One process writes, any number read. Every method raises ValueError after ``release``.
    """

    capacity: int
    """Pages whose checksums fit into the buffer."""
    page_size: int
    """Bytes per page; 0 before the first transaction."""
    durable_txid: int
    """The database file durably holds every page as of this transaction."""
    synced_txid: int
    """The log is synced up to this transaction."""
    clean: bool
    damaged: bool
    database_stat: tuple[int, int, int]
    """Size in bytes, mtime and ctime in ns of the database file, valid while ``clean``."""
    wal_salt1: int
    wal_salt2: int
    wal_frames: int
    """Frames of that WAL generation that are logged."""

    def __init__(self, buf: Buffer) -> None:
        """Raises ValueError if the buffer is smaller than the header or not aligned."""

    @property
    def page_count(self) -> int: ...
    @property
    def txid(self) -> int: ...
    @property
    def checksum(self) -> int: ...
    @property
    def hash(self) -> int:
        """XXH3-64 that the log has of the last transaction's record."""

    @property
    def timestamp(self) -> int: ...
    @property
    def formatted(self) -> bool:
        """Whether the buffer starts with the magic of a sums file and a page size (or 0: not known yet)."""

    def format(self, page_size: int) -> None:
        """Write a fresh header (page size 0: not known yet) and zero all checksums."""

    def set_wal(self, salt1: int, salt2: int, frames: int) -> None:
        """Set the WAL generation and its logged frames together."""

    def wal(self) -> tuple[int, int, int]:
        """(salt1, salt2, frames) as one ``set_wal`` wrote them. Raises TimeoutError as ``snapshot``."""

    def snapshot(self) -> tuple[int, int, int, int, int, int]:
        """(txid, checksum, timestamp, page size, page count, hash) of one moment, in any process.

        Raises TimeoutError after 1 s if the writer stopped inside an update (it was killed).
        """

    def get(self, pgno: int) -> int:
        """The checksum of a page; 0 if the database has no such page, or it is the lock page."""

    def matches(self, pgno: int, page: Buffer) -> bool:
        """Whether ``page`` is page ``pgno`` as of the last transaction."""

    def array(self, first_pgno: int, n: int) -> bytes:
        """The checksums of ``n`` pages as a native u64 array. Raises ValueError beyond the capacity."""

    def load(self, first_pgno: int, sums_bytes: Buffer) -> None:
        """Set many checksums (native u64 array) without touching the total.

        Raises ValueError beyond the capacity.
        """

    def recompute_total(self) -> int:
        """Bit 63 | XOR of the checksums of pages 1 to ``page_count``."""

    def preview(self, pgnos: Buffer, images: Buffer, commit: int) -> tuple[int, bytes]:
        """The database checksum after a transaction, and its pages' checksums (native u64); changes nothing.

        ``pgnos``: native u32, ascending, no lock page; ``images``: as many pages, contiguous; ``commit``:
        database size after it, in pages. Costs O(pages given + pages cut off). Raises ValueError if the
        numbers do not ascend, exceed ``commit``, leave out a page that the database grows by, or do not fit
        the images.
        """

    def post(self, pgnos: Buffer, new: Buffer, commit: int) -> int:
        """The first half of what ``preview`` returns, for page checksums from ``checksums_of``."""

    def commit(
        self, pgnos: Buffer, new: Buffer, commit: int, txid: int, post: int, timestamp: int, hash: int
    ) -> None:
        """Publish a transaction that ``preview`` or ``post`` described; ``timestamp`` in Unix ms.

        Raises ValueError as they do, and if ``commit`` exceeds the capacity.
        """

    def replace(
        self, page_size: int, sums_bytes: Buffer, txid: int, post: int, timestamp: int, hash: int
    ) -> None:
        """Publish a transaction that replaces every page, with pages of another size.

        ``sums_bytes``: the checksums (native u64) of all pages from 1 on, 0 for the lock page; ``timestamp``:
        Unix ms. Raises ValueError for an impossible page size, or more checksums than the capacity.
        """

    def reset(self, commit: int, txid: int, post: int, timestamp: int, hash: int) -> None:
        """Set the position and page count alone, for checksums that ``load`` filled in.

        Raises ValueError if ``commit`` exceeds the capacity.
        """

    def release(self) -> None:
        """Let go of the buffer, so that a map can be closed."""
