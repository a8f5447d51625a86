"""Bookkeeping over logged frames; imported by way of `walcursor`."""

from typing_extensions import Buffer

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
