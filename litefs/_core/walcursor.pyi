"""The WAL cursor: which commits a WAL file would hold after a write that has not happened yet.

No I/O is done here. "Beyond the tip" means: after the last frame that is in the replication log.
"""

from typing_extensions import Buffer

from litefs._core.loggedframes import LoggedFrames as LoggedFrames
from litefs._core.walframes import build_frames as build_frames
from litefs._core.walframes import wal_checksum as wal_checksum
from litefs._core.waltransaction import Transaction as Transaction

NEED: int
"""Result of `propose` and `supply`: old bytes of the file are needed; see `want`."""

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
    def commit_end(self) -> int:
        """File offset after the last commit frame of the chain; `tip_offset` if there is none."""
    @property
    def checksum(self) -> tuple[int, int]:
        """Running checksum at the tip."""
    @property
    def buffered(self) -> int:
        """Bytes of the file held in memory."""
