"""Deleting what the log no longer needs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from litefs._core.pagesums import PageSums
from litefs.store import fileops
from litefs.store.segments import list_segments


def reap(
    directory: Path, sums: PageSums, max_age: float, max_bytes: int, pinned_txid: int | None = None
) -> list[Path]:
    """Delete whole segments of the log in ``directory``, oldest first, that are too old or too much; returns
    them.

    ``max_age``: seconds since the segment was written to last; ``max_bytes``: of all segments together. Never
    deleted are the last segment, one with a record that the database file does not durably hold (beyond
    ``sums.durable_txid``), and one with a record beyond ``pinned_txid``, which a snapshot under way or an
    archive still needs. Raises OSError.
    """
    segments = list_segments(directory)
    limit = sums.durable_txid if pinned_txid is None else min(sums.durable_txid, pinned_txid)
    stats = [path.stat() for _, path in segments]
    total = sum(stat.st_size for stat in stats)
    now = time.time()
    removed: list[Path] = []
    for index, (_, path) in enumerate(segments[:-1]):
        last_txid = segments[index + 1][0] - 1
        expired = now - stats[index].st_mtime > max_age
        if last_txid > limit or not (expired or total > max_bytes):
            break
        if not removed:
            # The end of a journal may have been its unlink or truncation, which nobody synced: if it came
            # back after a power failure, only the log could undo what recovery plays back from it. And of
            # pages whose images go now, the checksums must be there to tell what a journal did not hold
            # (unused.py).
            with contextlib.suppress(FileNotFoundError):
                fileops.sync_file(directory.parent / "database-journal")
            fileops.sync_dir(directory.parent)
            fileops.sync_file(directory.parent / "sums")
        fileops.unlink_durably(path)  # one by one: if an older one came back, the log would have a gap
        removed.append(path)
        total -= stats[index].st_size
    return removed
