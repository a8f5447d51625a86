"""Files of one level into one of the next: on the boundaries of the level's interval, never across a gap or a
change of the page size.

Nothing here is the only copy of anything: a file appears whole or not at all, what it was made of goes later
(pruning.py), and whoever compacts again after a crash, or at the same time on a node that does not know yet
that it is no longer primary, writes the same file or one that overlaps it, which readers may meet anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain as chain_pieces
from itertools import takewhile
from pathlib import Path

from litefs.backup.archive import Archive, LtxFile
from litefs.backup.layout import SNAPSHOT_LEVEL
from litefs.backup.merge import merge
from litefs.errors import ArchiveCorrupt
from litefs.ltx.compactor import PageSizeChanges

_YEAR_ONE = 62_135_596_800_000
"""Milliseconds from the start of year 1, which Go's Time.Truncate counts from, to 1970."""


def boundary(now: int, interval: int) -> int:
    """The last multiple of ``interval`` (both Unix ms, ms) at or before ``now``, where Litestream has it."""
    return now - (now + _YEAR_ONE) % interval


def chain(files: Sequence[LtxFile], after: int) -> list[LtxFile]:
    """Files that follow TXID ``after`` without a gap, as few as possible, up to the first gap.

    Of the files that begin at or before the next transaction the one that ends last follows (of these the
    widest), as Litestream restores: files of two archivers may overlap.
    """
    found: list[LtxFile] = []
    rest = sorted(files, key=lambda file: (file.min_txid, -file.max_txid))
    at = 0
    while True:
        best: LtxFile | None = None
        while at < len(rest) and rest[at].min_txid <= after + 1:
            if rest[at].max_txid > (after if best is None else best.max_txid):
                best = rest[at]
            at += 1
        if best is None:
            return found
        found.append(best)
        after = best.max_txid


def pending(archive: Archive, level: int, source: int, before: int, after: int | None) -> list[LtxFile]:
    """The files of level ``source`` that are to be merged into ``level``: those behind its last one, up to
    the first one not written before ``before``, and up to the first gap.

    Raises ArchiveCorrupt if the gap is before all of them, unless a snapshot covers it.
    """
    if after is None:
        after = max((file.max_txid for file in archive.files(level)), default=0)
    files = _older(archive.files(source, after), before)
    found = chain(files, after)
    if found or not files:
        return found
    # The next file may overlap the level's last one.
    files = [file for file in _older(archive.files(source), before) if file.max_txid > after]
    first = min((file.min_txid for file in files), default=1)
    found = chain(files, after)
    if not found and any(snapshot.max_txid >= first - 1 for snapshot in archive.files(SNAPSHOT_LEVEL)):
        found = chain(files, first - 1)
    if not found and files:
        missing = f"{after + 1:016x} to {first - 1:016x}"
        raise ArchiveCorrupt(f"{archive.url}: level {source} lacks transactions {missing}")
    return found


def _older(files: list[LtxFile], before: int) -> list[LtxFile]:
    return list(takewhile(lambda file: file.modified < before, files))


def compact_level(
    archive: Archive,
    level: int,
    before: int,
    scratch: Path,
    *,
    source: int | None = None,
    after: int | None = None,
) -> list[LtxFile]:
    """Merge what has come to level ``source`` (by default the one below) since the last time into one file of
    ``level``; one more for each change of the page size in it. Returns the new files, ascending.

    ``before``: Unix ms, the ``boundary``; ``after``: the last TXID of ``level`` if known, which saves listing
    it; ``scratch``: a directory for temporary files, needed if there are more than ``merge.MAX_OPEN`` files.
    Raises ArchiveCorrupt, also FormatError, if the files cannot be merged: nothing is stored then but files
    that are good; ArchiveUnavailable, ArchiveMissing if the store fails or a file is pruned meanwhile.
    """
    files = pending(archive, level, level - 1 if source is None else source, before, after)
    written = []
    while files:
        some = files
        try:
            written.append(_merged(archive, level, some, scratch))
        except PageSizeChanges as change:
            some = [file for file in files if file.max_txid < change.txid]
            if not some:
                raise
            written.append(_merged(archive, level, some, scratch))
        files = files[len(some) :]
    return written


def _merged(archive: Archive, level: int, files: Sequence[LtxFile], scratch: Path) -> LtxFile:
    first, last = files[0].min_txid, files[-1].max_txid
    timestamp = archive.header(files[-1]).timestamp
    size = 0

    def counted(pieces: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            size += len(piece)
            yield piece

    with closing(merge([partial(archive.open, file) for file in files], scratch, timestamp)) as pieces:
        head = next(pieces)  # before anything is sent: whether the files fit each other
        key = archive.write(level, first, last, timestamp, counted(chain_pieces([head], pieces)))
    return LtxFile(level, first, last, size, timestamp, key)
