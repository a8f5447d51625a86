"""Telling which pages of a database file are not what they were, and what an operator can do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from litefs._core.pagesums import PageSums
from litefs.errors import LiteFSError
from litefs.store.paths import DatabaseDir
from litefs.store.rebuild import Overlay
from litefs.store.sums import SumsFile, differing_pages


def wrong_pages(overlay: Overlay, sums: PageSums, stored: bytes) -> list[int] | None:
    """The pages of the file that are not as at the log's tip, ascending; None if not known which.

    ``sums`` has the checksums of the pages as they will be after ``overlay.write``, and the position of the
    tip; ``stored`` (native u64) those that it had before. The database checksum cannot tell alone: it is an
    XOR of CRCs, so that the same damage to two pages cancels. Therefore pages are compared one by one where
    the stored checksums give the tip's, which a stale or damaged ``sums`` file would not; it is right for
    every page that the log has no image of (``reap`` sees to that). Nothing changes.
    """
    actual = sums.array(1, sums.page_count)
    pgnos = [pgno for pgno in differing_pages(stored, actual) if pgno not in overlay.logged]
    if pgnos:
        set_checksums(sums, pgnos, stored)
        is_stored_right = sums.recompute_total() == sums.checksum
        set_checksums(sums, pgnos, actual)
        if is_stored_right:
            return pgnos
    return [] if sums.recompute_total() == sums.checksum else None


def set_checksums(sums: PageSums, pgnos: Iterable[int], array: bytes) -> None:
    """Give these pages the checksums that they have in ``array`` (native u64 from page 1), 0 beyond it."""
    for pgno in pgnos:
        sums.load(pgno, array[8 * (pgno - 1) : 8 * pgno] or bytes(8))


def mark_damaged(directory: DatabaseDir) -> None:
    """Note in the checksums, if there are any, that the file is damaged: recovery looks, and keeps it."""
    with contextlib.suppress(LiteFSError, OSError):
        file = SumsFile(directory.sums)
        if not file.distrusted:
            file.sums.database_stat = (0, 0, 0)
        file.sums.damaged = True
        file.close()


def advice(directory: DatabaseDir) -> str:
    """What to do about a database that is served for reading only (docs/compatibility.md, Damage)."""
    return (
        f"to go on with what {directory.database} holds, stop the node, move {directory.log} elsewhere and "
        f"start the node; to go on with a better copy, also put it there and remove {directory.database}-*"
    )
