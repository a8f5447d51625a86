"""A replica that cannot trust its own files mends itself: it keeps them, and takes the primary's database.

Damage is found by recovery, by a record that does not give its checksum, or by the :class:`Scrubber`, which
reads the file behind the mount: nothing else would notice a page that no transaction changes.
"""

from __future__ import annotations

import contextlib

from litefs.apply.applier import Applier, give_up
from litefs.errors import FormatError, LiteFSError
from litefs.store.damage import mark_damaged
from litefs.store.lost import keep_diverged
from litefs.store.paths import DatabaseDir
from litefs.store.snapshot import SnapshotTarget
from litefs.store.sums import SumsFile, read_pages

SCRUB_BYTES = 1 << 20
"""Read of a database file in one step, while its applier waits: a millisecond, if the file is cached."""


class Scrubber:
    """Walks round and round through database files and compares them with their page checksums."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def step(self, applier: Applier) -> list[int]:
        """Look at the next pages; returns those that are wrong, of which the checksums file then tells, too.

        ``applier`` must be idle. Pages with a frame in the WAL are passed over: what the file has of them
        does not count. Raises OSError.
        """
        writer, sums = applier.writer, applier.database.sums
        if writer is None or applier.is_behind or applier.needs_recovery:
            return []
        first = self._next.get(applier.dir.name, 1)
        first = first if first <= sums.page_count else 1
        count = min(max(1, SCRUB_BYTES // sums.page_size), sums.page_count - first + 1)
        self._next[applier.dir.name] = first + count
        with applier.dir.database.open("rb", buffering=0) as file:
            _, differing = read_pages(file.fileno(), sums, first, count)
        wrong = [pgno for pgno in differing if not writer.has_frame(pgno)]
        if wrong:
            mark_damaged(applier.dir)
        return wrong


def can_attach(applier: Applier) -> bool:
    """Whether the database can be written through the mount. Raises OSError, LiteFSError."""
    try:
        applier.attach()
    except FormatError:
        return False
    return True


def leave_to_recovery(directory: DatabaseDir, target: SnapshotTarget) -> None:
    """Have the next recovery put a verified snapshot in the place of files that cannot be attached to.

    The log, of which the primary may not know all, is copied to ``lost/`` before. Closes ``target``. Raises
    OSError; then nothing is left to recovery.
    """
    kept = None
    try:
        kept = keep_diverged(directory, 0, "damaged")
        # Else the mark might say that what recovery is to replace holds the snapshot already.
        with contextlib.suppress(LiteFSError):
            file = SumsFile(directory.sums)
            file.sums.durable_txid = 0
            file.flush()
            file.close()
        target.seal()
    except BaseException:
        give_up(target, kept)
        raise
    target.close()


def describe(pgnos: list[int]) -> str:
    """What the scrubber says about pages."""
    shown = ", ".join(map(str, pgnos[:20]))
    return f"{len(pgnos)} pages are not what their checksums say: {shown}{' …' if len(pgnos) > 20 else ''}"
