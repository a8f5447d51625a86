"""The archive of one database, kept up from its log; what it promises is in docs/concurrency.md (I76 to I82).

No clock, no task: who calls decides when, and in which thread; one call at a time, but for the snapshots.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from litefs.backup.archive import Archive, Start, timelines
from litefs.backup.chain import Chain
from litefs.backup.fenced import FencedTarget
from litefs.backup.layout import SNAPSHOT_LEVEL, prefix_of
from litefs.backup.snapshots import Local, Scratch, copy, write_snapshot
from litefs.backup.target import Target
from litefs.backup.tip import Tip
from litefs.errors import ArchiveUnavailable, DatabaseNotFound, LiteFSError, PositionMismatch
from litefs.store.dropped import kept_logs, tombstone
from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.types import START, Point

log = logging.getLogger("litefs.archive")

BATCH_BYTES = 8 << 20
"""Of records that are read and sent at a time; the last one may be as big again."""
TURN_BYTES = 64 << 20
"""After which ``sync`` returns though there is more: others wait for the thread."""
RESOLVE_ATTEMPTS = 8
"""How often another archiver may come before, until the next call."""

News = Callable[[str, Mapping[str, object]], None]
"""What happened, for events: ``timeline`` opened, ``snapshot`` stored. Called in the worker's thread."""


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """``node``: what this node is called in the archive; ``scratch``: for copies; ``news``: of events."""

    node: str
    scratch: Path
    news: News = field(default=lambda kind, data: None)
    now: Callable[[], int] = now_ms


class Archiver:
    """Follows the log of ``local``, as long as ``may`` (asked from worker threads) says that this node is
    primary. After any error call again: it looks at what the archive holds then."""

    def __init__(
        self, target: Target, data: DataDir, local: Local, may: Callable[[], bool], settings: Settings
    ) -> None:
        self.name = local.name
        self.target = FencedTarget(target, may)
        self._data = data
        self._local = local
        self._settings = settings
        self._chain: Chain | None = None
        self._reader: LogReader | None = None
        self._number = 0
        self._doubtful = False
        """The last answer of the store was lost, or another archiver was first."""

    # -- what it knows --------------------------------------------------------------------------------

    @property
    def archive(self) -> Archive | None:
        """The timeline that it follows; None before it found one."""
        return self._chain.archive if self._chain is not None else None

    @property
    def tip(self) -> Tip | None:
        """Up to where this database is archived; None before that is known."""
        return self._chain.tip if self._chain is not None else None

    @property
    def timeline(self) -> int:
        """Its number; 0 before it is known."""
        return self._number

    # -- keeping up -----------------------------------------------------------------------------------

    def sync(self) -> bool:
        """Archive what was committed until now; False if there is more, after a good deal of it.

        Raises ArchiveUnavailable, ArchiveCorrupt, NotPrimary, LogCorrupt, LiteFSError, OSError, TimeoutError.
        """
        self._check_current()
        wanted, *_ = self._local.header()
        if wanted.txid == 0:
            return True
        try:
            chain, reader = self._current(wanted)
            done = 0
            while chain.tip.point.txid < wanted.txid and done < TURN_BYTES:
                entries = reader.read(wanted.txid, BATCH_BYTES)
                done += sum(entry.size for entry in entries)
                if not chain.add(entries):
                    self._doubtful = True
                    chain, reader = self._current(wanted)
            chain.derive()
            return chain.tip.point.txid >= wanted.txid
        except PositionMismatch:
            self._forget()  # retention was faster: the next call finds a gap
            return False
        except BaseException:
            self._doubtful = True
            self._let_go()
            raise

    def note_head(self) -> bool:
        """Note in the archive how far it goes; whether it was complete a moment ago. Raises as ``sync``."""
        as_of = self._settings.now()
        wanted, *_ = self._local.header()
        chain = self._chain
        if chain is None or self._doubtful or not chain.derived:
            return False
        complete = chain.tip.point == wanted
        chain.note_head(as_of if complete else chain.tip.time)
        return complete

    def close(self) -> None:
        """Let go of the log; harmless if repeated."""
        self._let_go()

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _forget(self) -> None:
        self._let_go()
        self._chain = None

    def _current(self, wanted: Point) -> tuple[Chain, LogReader]:
        """The chain, and a reader at its tip: looked up where anything is in doubt."""
        for _ in range(RESOLVE_ATTEMPTS):
            if self._chain is None:
                self._resolve()
            elif self._doubtful:
                self._look_again(self._chain)
            chain = self._chain
            if chain is None:
                continue
            tip = chain.tip.point
            at_tip = self._reader is not None and self._reader.point == tip
            known = at_tip and (wanted == tip or wanted.txid > tip.txid)
            if not known and not self._seek(tip):
                self._forget()
                continue
            assert self._reader is not None
            self._doubtful = False
            return chain, self._reader
        raise ArchiveUnavailable(f"{self.target.name}: {self.name}: another archiver is always first")

    def _seek(self, point: Point) -> bool:
        """Whether this log knows ``point``; then the reader is there."""
        self._let_go()
        reader = LogReader(self._local.directory.log)
        try:
            if reader.seek(point):
                self._reader = reader
                return True
        except BaseException:
            reader.close()
            raise
        reader.close()
        return False

    def _look_again(self, chain: Chain) -> None:
        """Go on behind what another archiver appended, or we did unheard, if it is this log's history.

        The place may be another one by now: a directory that was unmounted, a bucket that was emptied.
        """
        if not chain.is_there():
            self._forget()
            return
        while (found := chain.look_again()) is not None:
            self._let_go()
            if found.dropped or not self._seek(found.last):
                self._forget()
                return
            chain.adopt(found)

    def _check_current(self) -> None:
        """Another database may have the name by now."""
        if not self._local.is_current():
            raise DatabaseNotFound(f"{self.name}: it was removed, or replaced")

    # -- timelines ------------------------------------------------------------------------------------

    def _resolve(self) -> None:
        """Find the newest timeline, and go on with it if this log does; else open the next."""
        lines = timelines(self.target, self.name)
        number = lines[-1].number if lines else 0
        for archive in reversed(lines):
            start = archive.start()
            if start is None:
                continue
            chain = Chain.found(archive, start)
            if not chain.tip.dropped and self._seek(chain.tip.point):
                self._chain, self._number, self._doubtful = chain, archive.number, False
                return
            self._open(number + 1, self._why(chain))
            return
        self._open(number + 1, "new")

    def _why(self, chain: Chain) -> str:
        """Why the log does not go on where a timeline ends."""
        if chain.tip.dropped or finish_removed(self._data, self.name, chain):
            return "recreated"
        with LogReader(self._local.directory.log) as reader:
            first = reader.first_txid
        return "gap" if first > chain.tip.point.txid + 1 else "diverged"

    def _open(self, number: int, reason: str) -> None:
        """Claim the next timeline and begin it: with all transactions, or with a snapshot."""
        self._check_current()
        settings = self._settings
        archive = Archive(self.target, prefix_of(self.name, number), self.name, number)
        if not archive.claim(settings.node, settings.now()):
            return  # somebody did: look anew
        if self._seek(START):
            tip = Tip(START, 0, 0)
        else:
            with copy(self._local, settings.scratch) as scratch:
                self._send(archive, scratch)
                tip = Tip(scratch.point, scratch.time, scratch.page_size)
        start = Start(tip.point, tip.time, reason, settings.node)
        if not archive.begin(start):
            return
        self._chain, self._number, self._doubtful = Chain(archive, start, tip), number, False
        point = tip.point
        log.log(
            logging.INFO if reason in ("new", "recreated") else logging.WARNING,
            "%s: opened timeline %d of the archive (%s) at TXID %016x",
            self.name,
            number,
            reason,
            point.txid,
        )
        settings.news("timeline", {"timeline": number, "reason": reason, "txID": f"{point.txid:016x}"})

    # -- snapshots ------------------------------------------------------------------------------------

    def snapshot_due(self, boundary: int) -> bool:
        """Whether there is something to take a snapshot of, and none since ``boundary`` (Unix ms)."""
        archive, tip = self.archive, self.tip
        if archive is None or tip is None or tip.point.txid == 0:
            return False
        files = archive.files(SNAPSHOT_LEVEL)
        if not files:
            start = archive.start()
            first = archive.bundle(start.point.txid + 1) if start is not None else None
            return first is not None and bool(first.entries) and first.entries[0].time < boundary
        newest = max(files, key=lambda file: file.max_txid)
        return newest.modified < boundary and newest.max_txid < tip.point.txid

    def copy(self) -> Scratch:
        """A copy of the database for ``send``; may be made while another thread is in ``sync``."""
        return copy(self._local, self._settings.scratch)

    def send(self, scratch: Scratch) -> bool:
        """Store a snapshot; False if its transactions are not archived yet, or never will be in this
        timeline: then whoever follows might go on otherwise. Raises ArchiveUnavailable, NotPrimary,
        OSError."""
        archive, tip = self.archive, self.tip
        if archive is None or tip is None or not self._holds(archive, tip, scratch.point):
            return False
        self._send(archive, scratch)
        return True

    def _holds(self, archive: Archive, tip: Tip, point: Point) -> bool:
        """Whether the timeline, whose tip this log knows, has come through ``point``."""
        if tip.point.txid < point.txid:
            return False
        with LogReader(self._local.directory.log) as reader:
            return reader.seek(tip.point) and (point == tip.point or reader.point_at(point.txid) == point)

    def _send(self, archive: Archive, scratch: Scratch) -> None:
        if scratch.commit == 0:
            raise LiteFSError(f"{self.name}: a database without pages has no snapshot")
        write_snapshot(archive, scratch.path, scratch.page_size, scratch.commit, scratch.point, scratch.time)
        txid = scratch.point.txid
        log.info("%s: stored a snapshot at TXID %016x in the archive", self.name, txid)
        self._settings.news("snapshot", {"txID": f"{txid:016x}", "bytes": scratch.commit * scratch.page_size})


def finish_removed(data: DataDir, name: str, chain: Chain) -> bool:
    """If ``chain`` ends with a database that was removed on this node: archive what its log has beyond, and
    say that it was removed. Raises as ``Archiver.sync``."""
    for path, removed in kept_logs(data, name):
        with LogReader(path) as reader:
            if not reader.seek(chain.tip.point):
                continue
            with LogReader(path) as end:
                last = end.tip()
            while chain.tip.point.txid < last.txid:
                if not chain.add(reader.read(last.txid, BATCH_BYTES)):
                    return False
            chain.derive()
            return chain.drop(removed * 1000 + 999)
    if tombstone(data, name) == chain.tip.point.position:
        return chain.drop(chain.tip.time)
    return False


def end_removed(target: Target, data: DataDir, name: str, may: Callable[[], bool]) -> bool:
    """Say in the archive that a database was removed that this node does not have any more; False if nothing
    says so, or was to be said. Raises as ``Archiver.sync``."""
    for archive in reversed(timelines(FencedTarget(target, may), name)):
        start = archive.start()
        if start is not None:
            chain = Chain.found(archive, start)
            return not chain.tip.dropped and finish_removed(data, name, chain)
    return False
