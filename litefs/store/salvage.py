"""What a node set aside under ``lost/``, and making a database of it again.

A log that was set aside holds whole pages, of the transactions that retention had left. Laid over a copy of
the database of another history they give the database as the log's node had it, wherever the other history
changed no further page; the checksum of the last record tells whether that is so.
"""

from __future__ import annotations

import functools
import operator
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from litefs.errors import FormatError, InvalidName, LogCorrupt
from litefs.ltx.format import HEADER_SIZE as LTX_HEADER_SIZE
from litefs.ltx.format import Header
from litefs.sqlite.header import SIZE as HEADER_SIZE
from litefs.sqlite.header import DatabaseHeader
from litefs.store import fileops
from litefs.store.paths import decode_name
from litefs.store.rebuild import Overlay, file_checksums
from litefs.store.segments import Extent, extents, list_segments
from litefs.types import Position

_DIRECTORY = re.compile(r"(?P<name>.+)-(?P<time>\d{8}T\d{6}Z)-(?P<reason>[a-z]+)(?:-\d+)?")
_FLAG = 1 << 63
"""Set in every checksum of a database (LTX)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A directory under ``lost/``: of which database, since when and why; ``log`` has the segments, None if
    there are none."""

    path: Path
    name: str
    time: datetime
    reason: str
    log: Path | None


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A database that was made: the position it is to have, how many ``pages`` came from the log, and whether
    it is ``exact``, by its checksum."""

    position: Position
    pages: int
    exact: bool


def kept(data: Path) -> Iterator[Kept]:
    """All that a data directory has under ``lost/``, by name. Raises OSError."""
    lost = data / "lost"
    for path in sorted(lost.iterdir()) if lost.is_dir() else ():
        match = _DIRECTORY.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        try:
            name = decode_name(match["name"])
        except InvalidName:
            continue
        time = datetime.strptime(match["time"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        yield Kept(path, name, time, match["reason"], log_of(path))


def log_of(directory: Path) -> Path | None:
    """Where the segments of a directory under ``lost/`` are: in it, or in its ``log``."""
    return next((one for one in (directory, directory / "log") if one.is_dir() and list_segments(one)), None)


def salvage(log: Path, base: Path, target: Path) -> Salvaged:
    """Lay the newest images of a log over a copy of the database file ``base``, as the new file ``target``.

    Raises FormatError (also LogCorrupt) if the log is damaged or empty, or of another page size than
    ``base``, or a journal or WAL lies beside one of the files; FileExistsError, OSError. Then there is no
    ``target``, unless it was there before.
    """
    if (beside := _companion(base)) is not None:
        raise FormatError(f"{base} is not complete without {beside.name}: take a copy by `litefs export`")
    if (beside := _companion(target)) is not None:
        raise FormatError(f"{beside} lies there, which SQLite would take for {target}'s: remove it")
    first, last = _ends(log)
    with last.path.open("rb") as file:
        file.seek(last.body_offset)
        header = Header.unpack(file.read(LTX_HEADER_SIZE))
    with base.open("rb") as file:
        page_size = DatabaseHeader.parse(file.read(HEADER_SIZE)).page_size
    if page_size != header.page_size:
        raise FormatError(
            f"{base} has pages of {page_size} bytes, the log of {header.page_size}: take a copy from before"
        )
    with Overlay(log, header.page_size, header.commit) as overlay:
        overlay.collect_all(first.txid_min - 1, last.txid_max)
        try:
            fileops.copy_file(base, target)
            overlay.write(target)
            checksums = array("Q", file_checksums(target, header.page_size, header.commit))
        except FileExistsError:
            raise
        except BaseException:
            target.unlink(missing_ok=True)  # nobody is to take half of it for a database
            raise
        total = functools.reduce(operator.xor, checksums, 0) | _FLAG
        position = Position(last.txid_max, last.post_apply)
        return Salvaged(position, overlay.count, total == last.post_apply)


def _companion(path: Path) -> Path | None:
    """A journal or WAL beside a database file, which SQLite would read with it."""
    beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
    return next((one for one in beside if one.exists() and one.stat().st_size), None)


def _ends(log: Path) -> tuple[Extent, Extent]:
    """The first and the last record, all of them read. Raises LogCorrupt, OSError."""
    segments = list_segments(log)
    first = last = None
    for last in extents(log, segments[0][0] - 1, verify=True) if segments else ():
        first = first or last
    if first is None or last is None:
        raise LogCorrupt(f"{log}: no transaction is kept here")
    return first, last
