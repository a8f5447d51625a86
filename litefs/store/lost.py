"""Setting transactions aside that this node must give up: nothing that a client was told is deleted by us."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from litefs.errors import InvalidName
from litefs.store import fileops
from litefs.store.paths import DatabaseDir, DataDir, decode_name
from litefs.store.segments import list_segments

_NAME = re.compile(r"(.+)-\d{8}T\d{6}Z-([a-z]+)(?:-\d+)?\Z")


def lost_names(data: DataDir) -> dict[str, tuple[str, str]]:
    """What lies in ``lost/``: by directory, the database and why it was set aside. What is kept of removed
    databases until retention is left out. Raises OSError."""
    found = {}
    with contextlib.suppress(FileNotFoundError, InvalidName):
        for directory in os.listdir(data.path / "lost"):
            match = _NAME.fullmatch(directory)
            if match is not None and match[2] != "dropped":
                found[directory] = decode_name(match[1]), match[2]
    return found


def keep_diverged(directory: DatabaseDir, after_txid: int, reason: str) -> Path | None:
    """Copy, durably, every log segment with transactions beyond ``after_txid`` to a new directory under
    ``lost/``.

    ``reason`` becomes part of the directory's name. Returns that directory; None if there is no such segment.
    A segment is copied whole, so it may begin before ``after_txid``. Raises OSError.
    """
    segments = list_segments(directory.log)
    ends = [first for first, _ in segments[1:]]
    kept = [
        path for index, (_, path) in enumerate(segments) if index >= len(ends) or ends[index] > after_txid + 1
    ]
    if not kept:
        return None
    target = directory.lost(reason)
    _copy(kept, target)
    return target


def keep_file(source: Path, directory: DatabaseDir, reason: str) -> Path | None:
    """Copy a file, durably, to a new directory under ``lost/``; None if there is no such file.

    Raises OSError.
    """
    if not source.exists():
        return None
    target = directory.lost(reason)
    _copy([source], target)
    return target


def _copy(paths: Iterable[Path], target: Path) -> None:
    try:
        for path in paths:
            fileops.copy_file(path, target / path.name)
    except BaseException:
        # What is tried again on a full disk must not fill it further; the files themselves are still there.
        fileops.remove_tree(target)
        raise
