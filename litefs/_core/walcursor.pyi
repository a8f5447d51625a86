"""The WAL cursor: which commits a WAL file would hold after a write that has not happened yet.

No I/O is done here. "Beyond the tip" means: after the last frame that is in the replication log.
"""

from typing_extensions import Buffer

NEED: int
"""Result of `propose` and `supply`: old bytes of the file are needed; see `want`."""

def wal_checksum(data: Buffer, c1: int, c2: int, big_endian: bool) -> tuple[int, int]:
    """SQLite's WAL checksum of ``data``, continued from ``(c1, c2)`` (start of a WAL: 0, 0).

    ``big_endian``: the words of the data are read big-endian (WAL magic 0x377f0683).
    Raises ValueError if the length is not a multiple of 8.
    """

def build_frames(
    pgnos: Buffer,
    images: Buffer,
    page_size: int,
    salt1: int,
    salt2: int,
    c1: int,
    c2: int,
    commit: int,
    big_endian: bool,
) -> tuple[bytes, int, int]:
    """WAL frames for one transaction, to be appended after a frame whose checksum is ``(c1, c2)``.

    ``pgnos``: native u32 in frame order; ``images``: ``len(pgnos) * page_size`` bytes in that order;
    ``commit``: database size in pages, written to the last frame only (0: to none).
    Returns the frames (24 + page_size bytes each) and the checksum after them.
    Raises ValueError for a bad page size, a zero page number or lengths that do not match.
    """

class Transaction:
    """One committed transaction of a WAL. Immutable."""

    commit: int
    """Size of the database after it, pages."""
    first_frame: int
    last_frame: int
    """1-based in the WAL generation, both inclusive."""
    frame_pgnos: bytes
    """Native u32 page number of each frame, in frame order."""
    pgnos: bytes
    """Native u32, ascending, each page once; pages beyond ``commit`` and the lock page left out."""
    offsets: bytes
    """Native u64 file offset of the newest image of each page of ``pgnos``."""
    images: bytearray | None
    """Those images, contiguous in the order of ``pgnos``; None if they are no longer in memory: read the
    file at ``offsets``, and lay `WalCursor.pending` over it."""

class WalCursor:
    """The bytes of a WAL file beyond the logged tip, and the salt-and-checksum chain over them.

    A write is proposed, judged by what the file would hold after it, and then accepted or rejected:
    every `propose` must be followed by one of the two before the next one.
    """

    def __init__(self, buffer_limit: int = 8 << 20) -> None:
        """``buffer_limit``: bytes beyond the tip that are kept in memory between calls."""

    def reset(self, header: Buffer) -> None:
        """Start a generation from the 32 bytes of a WAL header; nothing of it is logged.

        Frames may lie behind the header already: ``propose(32, b"", file_size)`` judges them.
        Raises ValueError if magic, version, page size or checksum is wrong; the state is then as before.
        """

    def deactivate(self) -> None:
        """There is no WAL (removed, or truncated to nothing)."""

    def propose(self, offset: int, data: Buffer, file_size: int) -> int:
        """Lay ``data`` at ``offset`` over the file as it is (``file_size`` bytes before this write).

        Returns the number of complete commits beyond the tip as the file would be after the write, or
        `NEED`. ``data`` is kept until `accept` or `reject` and must not change meanwhile.
        Raises ValueError: no generation, offset below the tip, or a proposal is pending.
        """

    def want(self) -> tuple[int, int]:
        """(offset, length) of the old file bytes that are needed. Raises ValueError if none are."""

    def supply(self, offset: int, data: Buffer) -> int:
        """Give the bytes asked for by `want` as they are in the file now; fewer mean that the file ends
        there. Result as of `propose`."""

    def accept(self) -> None:
        """The proposed bytes are in the file."""

    def reject(self) -> None:
        """The proposed bytes are not in the file: the chain is again as before `propose`.

        After an `advance` over the proposed bytes everything beyond the tip is forgotten instead, and
        will be asked for again.
        """

    def pending(self) -> tuple[int, Buffer] | None:
        """(offset, data) of the proposed write, if one is neither accepted nor rejected."""

    def take(self) -> Transaction | None:
        """The first complete commit beyond the tip. Changes nothing."""

    def advance(self, last_frame: int) -> None:
        """The frames up to ``last_frame`` (1-based in the generation) are logged: the tip moves past them.

        Allowed between `propose` and `accept`. Raises ValueError if they are not in the valid chain.
        """

    @property
    def active(self) -> bool:
        """A WAL header is known."""
    @property
    def page_size(self) -> int: ...
    @property
    def big_endian(self) -> bool: ...
    @property
    def salt1(self) -> int: ...
    @property
    def salt2(self) -> int: ...
    @property
    def logged_frames(self) -> int: ...
    @property
    def tip_offset(self) -> int:
        """File offset after the last logged frame."""
    @property
    def valid_frames(self) -> int:
        """Chain-valid frames beyond the tip, counted to the first that is not."""
    @property
    def commits(self) -> int:
        """Commit frames among `valid_frames`."""
    @property
    def checksum(self) -> tuple[int, int]:
        """Running checksum at the tip."""
    @property
    def buffered(self) -> int:
        """Bytes of the file held in memory."""

class LoggedFrames:
    """The logged frames of the present WAL generation, and which pages wait for their checkpoint.

    A page is *pending* while its newest logged image has not been seen written to the database file.
    """

    def __init__(self) -> None: ...
    def clear(self) -> None:
        """A new generation: no frames, nothing pending."""

    def add_transaction(
        self, first_frame: int, frame_pgnos: Buffer, pgnos: Buffer, new_sums: Buffer, commit: int
    ) -> None:
        """Add what `Transaction` names, with the page checksums (native u64) of ``pgnos``.

        All of ``pgnos`` become pending; pages beyond ``commit`` no longer are.
        Raises ValueError if ``first_frame`` is not the next frame or the lengths do not match.
        """

    def newest(self, pgno: int) -> int:
        """Newest logged frame of the page, 0 if there is none."""

    def is_pending(self, pgno: int) -> bool: ...
    def backfilled(self, pgno: int) -> None:
        """The newest logged image of the page is in the database file."""

    def knows(self, pgno: int, page_sum: int) -> bool:
        """True if a logged frame of this page has this checksum (the newest one of its transaction)."""

    def truncate(self, commit: int) -> None:
        """Pages beyond ``commit`` are no longer pending."""

    def pending_pages(self) -> bytes:
        """Native u32 page numbers, ascending."""

    @property
    def pending(self) -> int:
        """Number of pending pages."""
    @property
    def frames(self) -> int:
        """Number of frames added since `clear`."""
