"""Databases that were removed on purpose: what proves it to replicas, and what is kept for a while.

``DATA/dropped/ENC`` (a *tombstone*) holds the position at which a database was removed, as ``NAME-pos`` shows
it. It is written before anything is removed and stays: replicas that were away learn of the removal when
they come back, however late. It counts only while no database of that name has a transaction.
``DATA/lost/ENC-TIME-dropped/`` takes the files.
"""

from __future__ import annotations

import calendar
import contextlib
import glob
import re
import time
from pathlib import Path

from litefs.errors import FormatError
from litefs.store import fileops
from litefs.store.paths import DataDir, encode_name
from litefs.store.reader import LogReader
from litefs.types import Point, Position

_DROPPED = re.compile(r"-(\d{8}T\d{6})Z-dropped(-\d+)?\Z")


def drop(data: DataDir, name: str, position: Position, *, keep_file: bool) -> Path:
    """Remove a database durably; returns the directory that keeps its log.

    ``keep_file``: keep the database file as well, else its space is free once the last client closed it.
    Three syncs: of the tombstone and of its name, or replicas that are away would keep what is gone here; and
    of the name that goes. That of the log in ``lost/`` may be lost with it. A crash leads to the whole
    database or to none. Raises OSError, and then nothing is removed, unless the last sync failed.
    """
    _mark(data, name, position)
    target = _lost(data, name)
    source = data.database_dir(name).path
    fileops.rename(source, target)
    fileops.sync_dir(source.parent)
    if not keep_file:
        tidy(target)
    return target


def tidy(target: Path) -> None:
    """Delete all but the log of what ``drop`` moved to ``target``; what fails is left to ``reap_dropped``."""
    with contextlib.suppress(OSError):
        for path in target.iterdir():
            if path.name != "log":
                fileops.unlink(path)


def rename(data: DataDir, name: str, position: Position, new: str) -> None:
    """Give the database ``name`` another name, which must be free, durably; replicas see a removal.

    A crash leads to the one name or the other. Raises OSError.
    """
    source, target = data.database_dir(name).path, data.database_dir(new).path
    _mark(data, name, position)
    fileops.rename(source, target)
    fileops.sync_dir(source.parent)


def replace(data: DataDir, name: str, position: Position, new: str, replaced: Position) -> Path:
    """``rename`` in place of the database that has the name ``new`` and is at ``replaced``; returns the
    directory that keeps that one whole.

    A directory with files in it cannot be replaced by one rename(2). An intent file tells of a crash between
    the two that it takes, so that ``complete_replacing`` makes it all or nothing. Raises OSError; then both
    are as they were, unless what failed was a sync.
    """
    source, target = data.database_dir(name).path, data.database_dir(new).path
    kept = _lost(data, new)
    _mark(data, name, position)
    _mark(data, new, replaced)
    intent = _intent(data)
    data.part("dropped")
    fileops.write_file_atomic(intent, f"{source.name}\0{target.name}".encode())
    try:
        fileops.rename(target, kept)
        try:
            fileops.rename(source, target)
        except OSError:
            fileops.rename(kept, target)
            raise
        fileops.sync_dir(source.parent)
    finally:
        if target.exists():
            _forget(intent)
    return kept


def complete_replacing(data: DataDir) -> None:
    """End a ``replace`` that a crash cut short; before any database is looked at. Raises OSError."""
    intent = _intent(data)
    try:
        source, target = (data.path / "dbs" / part for part in intent.read_text().split("\0"))
    except FileNotFoundError:
        return
    if source.exists() and not target.exists():
        fileops.rename(source, target)
        fileops.sync_dir(source.parent)
    _forget(intent)


def _intent(data: DataDir) -> Path:
    return data.path / "dropped" / "renaming"  # no tombstone: these end in .pos


def _lost(data: DataDir, name: str) -> Path:
    """Where a database's directory may be moved to. Raises OSError."""
    data.part("lost")
    for path in data.database_dir(name).lost_names("dropped"):
        if not path.exists():
            return path
    raise FileExistsError(f"{name}: removed too often within this second")


def _forget(intent: Path) -> None:
    """Durably: what it tells of would come to pass again, once both names had other databases."""
    fileops.unlink_durably(intent)


def _mark(data: DataDir, name: str, position: Position) -> None:
    known = tombstone(data, name)
    if position.txid and (known is None or known.txid < position.txid):
        data.part("dropped")
        fileops.write_file_atomic(_path(data, name), f"{position}\n".encode())


def tombstone(data: DataDir, name: str) -> Position | None:
    """Where the last removal of a database of that name was, None if there was none.

    A damaged tombstone is none: what replicas hold is then kept. Raises OSError.
    """
    try:
        return Position.parse(_path(data, name).read_text("ascii", errors="replace").strip())
    except (FileNotFoundError, FormatError, ValueError):
        return None


def was_removed(data: DataDir, name: str, point: Point) -> bool:
    """Whether a database of that name was at ``point`` when it was removed here, or before.

    As far as its log tells, which is kept for the time of retention. Raises FormatError, OSError.
    """
    last = tombstone(data, name)
    if last is None or last.txid <= point.txid:
        return last == point.position
    for path, _ in kept_logs(data, name):
        with LogReader(path) as log:
            if log.point_at(point.txid) == point:
                return True
    return False


def kept_logs(data: DataDir, name: str) -> list[tuple[Path, int]]:
    """Logs of removed databases of that name, as far as retention has kept them, and when each was removed
    (Unix s); the newest first. Raises OSError."""
    encoded = encode_name(name)
    found = []
    for path in (data.path / "lost").glob(glob.escape(encoded) + "-*"):
        match = _DROPPED.fullmatch(path.name.removeprefix(encoded))
        if match is not None:
            found.append((path / "log", _removed_at(match)))
    return sorted(found, key=lambda log: (log[1], log[0].parent.name), reverse=True)


def _removed_at(match: re.Match[str]) -> int:
    return calendar.timegm(time.strptime(match[1], "%Y%m%dT%H%M%S"))


def reap_dropped(data: DataDir, max_age: float) -> list[Path]:
    """Delete what removed databases left behind more than ``max_age`` seconds ago. Raises OSError."""
    lost = data.path / "lost"
    if not lost.is_dir():
        return []
    limit = time.time() - max_age
    old = []
    for path in sorted(lost.iterdir()):
        match = _DROPPED.search(path.name)
        # by its name: moving a directory leaves its mtime as it is
        if match and _removed_at(match) < limit:
            fileops.remove_tree(path)
            old.append(path)
    return old


def _path(data: DataDir, name: str) -> Path:
    # a suffix, because a database may have the name of another one's temporary file
    return data.path / "dropped" / (encode_name(name) + ".pos")
