"""Putting a received snapshot in place so that a crash at any moment leads to the old or to the new database.

A file ``install`` beside the database says that ``database.tmp`` and ``sums.tmp`` are complete and what
position they are at. From then on recovery carries the install out, unless the live database is known to hold
all of it already.
"""

from __future__ import annotations

import json
from pathlib import Path

from litefs.errors import FormatError, LiteFSError, LogCorrupt
from litefs.store import fileops
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.segments import SegmentMap, list_segments
from litefs.store.sums import SumsFile
from litefs.types import Point


def write_intent(directory: DatabaseDir, point: Point, page_size: int) -> None:
    """Declare ``database.tmp`` and ``sums.tmp``, which are durable, to be the database at ``point``."""
    intent = {"at": str(point), "page_size": page_size}
    fileops.write_file_atomic(directory.install, json.dumps(intent).encode() + b"\n")


def discard(directory: DatabaseDir) -> None:
    """Remove a received snapshot and its intent, the intent first."""
    if fileops.unlink(directory.install):
        fileops.sync_dir(directory.path)
    fileops.unlink(directory.incoming)
    fileops.unlink(directory.incoming_sums)


def complete_install(directory: DatabaseDir) -> bool:
    """Carry out the install that a sealed snapshot intends; returns whether there was one. No mount may be
    serving.

    Every step may have been done before a crash. Without an intent, an unfinished snapshot is removed.
    """
    intent = _read_intent(directory.install)
    if intent is None:
        discard(directory)
        return False
    base, page_size = intent
    if _is_durable(directory, base):
        discard(directory)
        return True
    if directory.incoming.exists():
        fileops.rename(directory.incoming, directory.database)
    if not _is_based(directory.log, base):
        fileops.remove_tree(directory.log)
        Log.create(directory.log, base, page_size).close()
    if directory.incoming_sums.exists():
        fileops.rename(directory.incoming_sums, directory.sums)
    for path in (directory.wal, directory.shm, directory.journal):
        fileops.unlink(path)
    fileops.sync_dir(directory.path)
    fileops.unlink(directory.install)
    fileops.sync_dir(directory.path)
    return True


def _read_intent(path: Path) -> tuple[Point, int] | None:
    try:
        fields = json.loads(path.read_bytes())
        return Point.parse(fields["at"]), int(fields["page_size"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not an install intent: {error}") from None


def _is_based(log: Path, base: Point) -> bool:
    """Whether the log begins at ``base`` (then its records, if any, follow the snapshot)."""
    segments = list_segments(log)
    if not segments:
        return False
    try:
        with SegmentMap(segments[0][1]) as segment:
            return segment.header.base == base
    except LogCorrupt:
        return False  # the snapshot is to replace what is damaged


def _is_durable(directory: DatabaseDir, base: Point) -> bool:
    """Whether the live database already holds the snapshot: written through the mount, and checkpointed
    since.
    """
    if not directory.database.exists() or not _is_based(directory.log, base):
        return False
    try:
        live = SumsFile(directory.sums)
    except LiteFSError:
        return False
    is_durable = live.sums.durable_txid >= base.txid and not live.sums.damaged
    live.close()
    return is_durable
