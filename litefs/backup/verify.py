"""Prove that an archive restores: its newest moment to a scratch place, and every object in it. Blocks."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from litefs._core.pagesums import page_checksums
from litefs.backup.archive import Archive
from litefs.backup.audit import Advance, Audit, Auditor, Listing, check_names
from litefs.backup.finding import Moment, Timeline
from litefs.backup.restore import Check, integrity, write_moment
from litefs.errors import ArchiveCorrupt, LiteFSError, NotRestorable
from litefs.store import fileops
from litefs.types import CHECKSUM_FLAG

SPARE = 1.25
"""Free space that a scratch copy takes for granted, in sizes of the database: a drill must fill no disk."""
SPARE_BYTES = 64 << 20
_CHECK_BYTES = 4 << 20
_SCRATCH = "verify-"


@dataclass(slots=True)
class Verified:
    """What came of one timeline. ``txid`` and ``time`` (Unix ms) of the moment that was restored, ``size`` in
    bytes; ``proved``: its checksum is the one that the primary had at that transaction. ``audit``: of all
    objects, None if only the newest moment was restored. ``seconds``: that it took.
    """

    name: str
    timeline: int
    txid: int = 0
    time: int = 0
    size: int = 0
    proved: bool = False
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    audit: Audit | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    archive: Archive, scratch: Path, *, every_object: bool = True, advance: Advance = lambda count: None
) -> Verified:
    """Restore the newest moment of a timeline below ``scratch``, check every page against the recorded
    checksum, have SQLite check it; with ``every_object`` look at everything that the archive holds as well.

    What is wrong is in the result. Raises ArchiveUnavailable, OSError.
    """
    begun = time.monotonic()
    found = Verified(archive.name, archive.number)
    if every_object:
        found.audit = Auditor(archive, advance).run()
        found.problems += found.audit.problems
    else:
        names = Audit()
        check_names(Listing.of(archive), names)
        found.problems += names.problems
    try:
        _restore(archive, scratch, found, advance)
    except (ArchiveCorrupt, NotRestorable) as error:
        found.problems.append(f"the newest moment cannot be restored: {error}")
    found.seconds = time.monotonic() - begun
    return found


def _restore(archive: Archive, scratch: Path, found: Verified, advance: Advance) -> None:
    timeline = Timeline(archive)
    at = timeline.newest()
    if at is None:
        return
    moment = timeline.moment(at)
    found.txid, found.time, found.size = moment.txid, moment.time, moment.size
    with _place(scratch, moment) as path:
        fd = fileops.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            write_moment(archive, moment, fd, advance=advance)
        finally:
            os.close(fd)
        expected = moment.checksum
        if expected is not None:
            checksum = database_checksum(path, moment.page_size)
            if checksum != expected:
                found.problems.append(
                    f"TXID {moment.txid:016x} is restored with checksum {checksum:016x}, "
                    f"the primary had {expected:016x}"
                )
            found.proved = checksum == expected
        found.problems += [f"integrity_check: {line}" for line in integrity(path, Check.FULL)]


@contextmanager
def _place(scratch: Path, moment: Moment) -> Iterator[Path]:
    """A file for a copy, which is removed afterwards. Raises OSError, LiteFSError if it has no room."""
    scratch.mkdir(parents=True, exist_ok=True)
    stat = os.statvfs(scratch)
    free, needed = stat.f_bavail * stat.f_frsize, int(moment.size * SPARE) + SPARE_BYTES
    if free < needed:
        raise LiteFSError(f"{moment.name}: {scratch} has {free} bytes free, a copy to verify takes {needed}")
    path = scratch / f"{_SCRATCH}{secrets.token_hex(8)}.db"
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def clear(scratch: Path) -> None:
    """Remove what a killed process left there."""
    for path in scratch.glob(f"{_SCRATCH}*.db"):
        with suppress(FileNotFoundError):
            path.unlink()


def database_checksum(path: Path, page_size: int) -> int:
    """The rolling checksum of a database file's pages."""
    total, first, step = 0, 1, max(1, _CHECK_BYTES // page_size)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while (offset := (first - 1) * page_size) < size:
            data = fileops.pread_all(file.fileno(), min(step * page_size, size - offset), offset)
            for value in memoryview(page_checksums(first, data, page_size)).cast("Q"):
                total ^= value
            first += step
    return total | CHECKSUM_FLAG
