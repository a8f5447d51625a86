"""Bringing a database to its log's tip while no mount serves it, and leaving it so that the next start reads
nothing.

The log decides. The old WAL is never read: what it held and the file does not is in the log. What the file
holds and the log does not know of is set aside under ``lost/``, and the database is served for reading only.
"""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from litefs.errors import LiteFSError
from litefs.ltx.format import lock_pgno
from litefs.sqlite.journal import is_hot, rollback_plan
from litefs.store import fileops
from litefs.store.damage import set_checksums, wrong_pages
from litefs.store.database import Database
from litefs.store.install import complete_install
from litefs.store.log import Log
from litefs.store.lost import keep_file
from litefs.store.offline import offline_database
from litefs.store.paths import DatabaseDir
from litefs.store.rebuild import Overlay, file_checksums
from litefs.store.segments import list_segments
from litefs.store.sums import SumsFile
from litefs.store.tip import Tip, tip_of
from litefs.store.unused import are_unused, relog, stored_checksums
from litefs.types import START, ZERO, Point, Position

_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """What recovery found and did. ``position`` is the log's tip, ``ZERO`` if there is no transaction."""

    name: str
    position: Position = ZERO
    clean: bool = False
    """The stop was clean: no page was read."""
    installed: bool = False
    """A received snapshot was put in place, which a crash had interrupted."""
    cut: str | None = None
    """The torn tail that was removed from the log."""
    rolled_back: bool = False
    """A hot journal was played back."""
    relogged: int = 0
    """Unused pages that the journal did not hold: logged as they are, as another transaction."""
    restored: int = 0
    """Pages laid over the file from the log."""
    adopted: bool = False
    """A database that was put there offline became transaction 1."""
    ignored: str | None = None
    """Why the file was left alone."""
    damaged: bool = False
    """The file is not as the log says, and the log no longer has the images: served for reading only."""
    damaged_pages: tuple[int, ...] = ()
    """Which pages are wrong, if the stored checksums tell."""
    lost: Path | None = None
    """Where the file was copied before it was changed."""

    def lines(self) -> list[str]:
        """What an operator should know, a line each; nothing after a clean stop."""
        lines = []
        if self.installed:
            lines.append(f"completed an interrupted snapshot at {self.position}")
        if self.cut:
            lines.append(f"torn log tail: {self.cut}")
        if self.rolled_back:
            lines.append("rolled back an open transaction from its journal")
        if self.relogged:
            lines.append(f"logged {self.relogged} unused pages that its journal did not hold")
        if self.restored:
            lines.append(f"restored {self.restored} pages from the log, now at {self.position}")
        if self.adopted:
            lines.append(f"took over a database that was not in the log, now at {self.position}")
        if self.ignored:
            lines.append(f"not served: {self.ignored}")
        if self.damaged:
            pages = ", ".join(map(str, self.damaged_pages[:20])) or "not known which"
            where = f"; the file was copied to {self.lost}" if self.lost else ""
            lines.append(
                f"damaged: the file does not match {self.position} (pages: {pages}), reading only{where}"
            )
        return lines


def recover(directory: DatabaseDir, *, clean_allowed: bool = True, node_id: int = 0) -> Report:
    """Bring database, checksums and log to the log's tip, durably; no mount may be serving the database.

    After a clean stop, if the file has the size and times stored then, no page is read (not with
    ``clean_allowed`` False). Afterwards there is no WAL, shm or journal. A database without a log is taken
    over as transaction 1; an empty file, or one that is no database, is left alone and reported. Raises
    LogCorrupt (nothing was changed but a torn tail, and an interrupted snapshot's install), FormatError,
    OSError.
    """
    installed = complete_install(directory)
    if not list_segments(directory.log):
        return _without_log(directory, node_id)
    sums_file = SumsFile(directory.sums, create=True)
    log: Log | None = None
    try:
        clean = clean_allowed and sums_file.sums.clean and not sums_file.sums.damaged
        log = Log.open(
            directory.log,
            synced_txid=sums_file.sums.synced_txid,
            trusted=sums_file.point if clean else None,
        )
        if log.tip == START:
            log.close()
            sums_file.close()
            return _without_log(directory, node_id)
        if clean and _as_stored(directory, sums_file, log.tip):
            _remove_companions(directory)
            sums_file.unmark_clean()
            return Report(directory.name, log.tip.position, clean=True)
        with _distrusting(sums_file):
            return _rebuild(directory, sums_file, log, installed, node_id)
    finally:
        if log is not None:
            log.close()
        sums_file.close()


@contextlib.contextmanager
def _distrusting(file: SumsFile) -> Iterator[None]:
    """If it fails, a sync of the database file may be what failed."""
    try:
        yield
    except OSError:
        file.distrust()
        raise


def _as_stored(directory: DatabaseDir, file: SumsFile, tip: Point) -> bool:
    try:
        stat = os.stat(directory.database)
    except FileNotFoundError:
        return False
    sums = file.sums
    return (
        file.point == tip
        and file.same_stat(stat)
        and stat.st_size == sums.page_count * sums.page_size
        and sums.recompute_total() == tip.checksum
    )


def _rebuild(directory: DatabaseDir, file: SumsFile, log: Log, installed: bool, node_id: int) -> Report:
    """Lay what the log has over the file; the whole file is read once, in parallel."""
    log.sync()
    if file.distrusted and directory.database.exists():
        fileops.reread(directory.database)
    is_current = file.point == log.tip
    tip = tip_of(directory, file, log)
    rolled_back = _roll_back(directory.database, directory.journal, tip.page_size)
    stored = stored_checksums(file, tip.commit)
    known_damage = file.sums.damaged and directory.database.exists()
    seen_before = known_damage and file.same_stat(os.stat(directory.database))
    first = log.first_txid - 1
    durable = max(first, min(file.sums.durable_txid, tip.point.txid)) if is_current else first

    found = file_checksums(directory.database, tip.page_size, tip.commit)
    _refill(file, found, tip)
    with Overlay(directory.log, tip.page_size, tip.commit) as overlay:
        overlay.collect(durable, tip.point.txid, file.sums)
        wrong = wrong_pages(overlay, file.sums, stored)
        if wrong != [] and durable > first:
            overlay.collect(first, tip.point.txid, file.sums)
            wrong = wrong_pages(overlay, file.sums, stored)
        unused = []
        if wrong and rolled_back and are_unused(overlay, directory.database, file, wrong):
            unused = wrong
        damaged = wrong != unused
        set_checksums(file.sums, wrong or (), stored)  # as they should be: the next recovery compares again
        lost = keep_file(directory.database, directory, "damaged") if damaged and not seen_before else None
        overlay.write(directory.database)
    if unused:
        relog(Database(directory, file, log, node_id), unused)
    _remove_companions(directory)
    _settle_sums(directory, file, damaged=damaged)
    return Report(
        directory.name,
        log.tip.position,
        installed=installed,
        cut=str(log.cut) if log.cut is not None else None,
        rolled_back=rolled_back,
        relogged=len(unused),
        restored=overlay.count,
        damaged=damaged,
        damaged_pages=tuple(wrong or ()) if damaged else (),
        lost=lost,
    )


def _refill(file: SumsFile, found: bytes, tip: Tip) -> None:
    """Make the checksums those of the file as it is, under the tip's position; nothing counts as durable."""
    file.sums.clean = False
    file.ensure(tip.commit)
    file.sums.format(tip.page_size)
    file.sums.load(1, found)
    at = tip.point
    file.sums.reset(tip.commit, at.txid, at.checksum, tip.timestamp, at.hash)


def _settle_sums(directory: DatabaseDir, file: SumsFile, *, damaged: bool) -> None:
    """The database file is durable and as the checksums say."""
    stat = os.stat(directory.database)
    sums = file.sums
    sums.database_stat = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    sums.synced_txid = sums.durable_txid = sums.txid
    sums.set_wal(0, 0, 0)
    sums.damaged = damaged
    file.unmark_clean()


def _remove_companions(directory: DatabaseDir) -> None:
    removed = [fileops.unlink(path) for path in (directory.wal, directory.shm, directory.journal)]
    if any(removed):
        fileops.sync_dir(directory.path)


def _roll_back(database: Path, journal: Path, page_size: int) -> bool:
    """Play a hot journal back, durably; returns whether there was one. The journal itself is left.

    A journal that names a super-journal is played back too: whether that transaction is committed, the log
    says.
    """
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(fd).st_size
        plan = None
        if is_hot(os.pread(fd, 1, 0)) and database.exists():
            plan = rollback_plan(
                lambda offset, length: fileops.pread_all(fd, length, offset), size, page_size=page_size
            )
        if plan is None:
            return False
        with database.open("r+b", buffering=0) as file:
            fileops.truncate(file.fileno(), plan.initial_pages * plan.page_size)
            for pgno, image in plan.records:
                fileops.pwrite_all(file.fileno(), image, (pgno - 1) * plan.page_size)
            fileops.fsync(file.fileno())
        return True
    finally:
        os.close(fd)


def _has_hot_journal(directory: DatabaseDir) -> bool:
    try:
        return is_hot(directory.journal.read_bytes()[:1])
    except FileNotFoundError:
        return False


def _without_log(directory: DatabaseDir, node_id: int) -> Report:
    """A directory without a transaction: take over the database that lies there, if it is one."""
    database = directory.database
    # Checksums may have reached the disk when the first record did not.
    if fileops.unlink(directory.sums):
        fileops.sync_dir(directory.path)
    rolled_back = _roll_back(database, directory.journal, 0)
    if rolled_back:
        fileops.unlink(directory.journal)
        fileops.sync_dir(directory.path)
    try:
        header, commit = offline_database(directory)
    except LiteFSError as error:
        return Report(directory.name, rolled_back=rolled_back, ignored=str(error))
    _remove_companions(directory)
    size = header.page_size
    skip = lock_pgno(size)
    with database.open("r+b", buffering=0) as file:
        fileops.truncate(file.fileno(), commit * size)
        fileops.fsync(file.fileno())
        db = Database.open(directory, node_id=node_id)
        try:
            pgnos = array("I", (pgno for pgno in range(1, commit + 1) if pgno != skip))
            db.commit_stream(
                pgnos,
                lambda: _file_batches(file.fileno(), pgnos, size),
                commit,
                time.time_ns() // 10**6,
                size,
            )
            db.sync()
            _settle_sums(directory, db.sums_file, damaged=False)
            return Report(directory.name, db.position, rolled_back=rolled_back, adopted=True)
        finally:
            db.close()


def _file_batches(fd: int, pgnos: array[int], page_size: int) -> Iterator[tuple[array[int], bytes]]:
    per_batch = max(1, _BATCH // page_size)
    start = 0
    while start < len(pgnos):
        some = pgnos[start : start + per_batch]
        # The numbers have at most one gap, at the lock page; a batch ends there.
        if some[-1] - some[0] >= len(some):
            some = some[: lock_pgno(page_size) - some[0]]
        yield some, fileops.pread_all(fd, len(some) * page_size, (some[0] - 1) * page_size)
        start += len(some)


def settle(directory: DatabaseDir) -> Report:
    """At a clean stop, after the unmount: as ``recover``, but trusting the checksums of this run, then
    ``mark_clean``.

    Only pages that the file may lack are read, so a big database costs no more than a small one. Raises as
    ``recover``.
    """
    if not list_segments(directory.log) or not directory.database.exists():
        return recover(directory)
    with_sums = SumsFile(directory.sums, create=True)
    log: Log | None = None
    try:
        sums = with_sums.sums
        log = Log.open(directory.log, synced_txid=sums.synced_txid)
        if sums.damaged or log.tip == START or with_sums.point != log.tip or directory.install.exists():
            log.close()
            with_sums.close()
            return recover(directory, clean_allowed=False)
        # the file may lack pages that only a look at all of them shows
        if with_sums.distrusted or _has_hot_journal(directory):
            log.close()
            with_sums.close()
            report = recover(directory, clean_allowed=False)
            mark_clean(directory)
            return report
        log.sync()
        with (
            _distrusting(with_sums),
            Overlay(directory.log, sums.page_size, sums.page_count) as overlay,
        ):
            durable = max(log.first_txid - 1, min(sums.durable_txid, log.tip.txid))
            overlay.collect_missing(durable, log.tip.txid, sums, directory.database)
            overlay.write(directory.database)
        _remove_companions(directory)
        _settle_sums(directory, with_sums, damaged=False)
        with_sums.mark_clean(os.stat(directory.database))
        return Report(directory.name, log.tip.position, restored=overlay.count)
    finally:
        if log is not None:
            log.close()
        with_sums.close()


def mark_clean(directory: DatabaseDir) -> None:
    """Store durably that the file is as the checksums say, so that the next start reads nothing.

    Nothing happens for a damaged database, one without a transaction, or one whose file does not hold all
    transactions (``recover`` or ``settle`` comes before). Raises DatabaseNotFound without checksums, OSError.
    """
    if not directory.sums.exists() or not directory.database.exists():
        return
    file = SumsFile(directory.sums)
    try:
        sums = file.sums
        if sums.txid and sums.durable_txid >= sums.txid and not sums.damaged:
            file.mark_clean(os.stat(directory.database))
    finally:
        file.close()
