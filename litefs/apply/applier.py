"""One database of a replica: records are checked, logged, applied to the WAL, and then shown as the position.

The order is the rule: a transaction exists once it is in the log. Whatever fails after that is made up for
from the log, by the next call (:meth:`Applier.apply`) or, after the process died, by recovery before the
next mount.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from litefs.apply.checkpoint import Checkpointer, CheckpointPolicy
from litefs.apply.pagesize import FullRecord, write_in_place
from litefs.apply.records import Incoming, merge, page_sums, wrong_sum
from litefs.apply.wal import PAGE_1, Buffer, WalWriter
from litefs.errors import FormatError, LiteFSError, NotSupported, PositionMismatch
from litefs.ltx import Decoder, Header, Record, decode
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.lost import keep_diverged
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.store.rewrite import write_again
from litefs.store.snapshot import SnapshotTarget
from litefs.types import Position

log = logging.getLogger(__name__)

BIG_RECORD = 8 << 20
"""Bytes of a record from which it is decoded in batches, three times over, instead of in memory."""

MERGE_BYTES = 16 << 20
"""Bytes of page images that are merged into one write to the WAL."""

SYNC_INTERVAL = 0.1
"""Seconds that appended records may stay unsynced; what a power failure takes from a replica, its primary
still has."""


class Applier:
    """The apply of one database. Methods block and are for one thread at a time, except ``sync_database``
    and ``position``.

    ``mounted`` is the database as clients see it; ``directory`` holds its log and checksums. The WAL is
    attached at the first use and stays so until ``close``. When the fs process has died every call raises
    OSError (ENOTCONN, ECONNABORTED or EIO): close, and make a new one after recovery.
    """

    def __init__(
        self,
        directory: DatabaseDir,
        mounted: Path,
        *,
        sync_interval: float = SYNC_INTERVAL,
        policy: CheckpointPolicy | None = None,
    ) -> None:
        """Open log and checksums of a recovered or installed database. Raises LogCorrupt, OSError."""
        self.dir = directory
        self.last_used = time.monotonic()
        """When the last transaction was applied, on the monotonic clock."""
        self._mounted = mounted
        self.sync_interval = sync_interval
        """Seconds that records may stay unsynced; 0: each call syncs what it appended."""
        self._policy = policy
        self._database = Database.open(directory)
        self.writer: WalWriter | None = None  # the WAL on the mount, once it is attached
        self._checkpointer: Checkpointer | None = None
        self._old_readers = False
        self._unsynced_since: float | None = None
        self._room = 0
        self._closing = threading.Lock()
        self._received: SnapshotTarget | None = None
        self._failed: str | None = None
        self.must_reopen = False
        """The page size changes in a way that no open connection can follow: make all of them fail,
        ``close``, recover the database, and make a new applier."""

    @property
    def position(self) -> Position:
        """The last transaction in the log: what this replica has. Readers may see it a moment later."""
        return self._database.log.tip

    @property
    def durable(self) -> Position:
        """The last transaction in the log that is durable there."""
        return self._database.log.synced

    @property
    def database(self) -> Database:
        """The durable state, for snapshots and retention."""
        return self._database

    @property
    def pending_frames(self) -> int:
        """Frames of the WAL that are not in the database file yet; 0 while no WAL is attached."""
        return self._checkpointer.pending if self._checkpointer is not None else 0

    @property
    def is_behind(self) -> bool:
        """Whether the log holds what readers cannot see yet: a call failed half way, ``attach`` again."""
        return self._database.log.tip != self._database.position

    @property
    def needs_recovery(self) -> bool:
        """Whether only recovery, with no mount serving, can help."""
        return self._failed is not None

    @property
    def is_distrusted(self) -> bool:
        """Whether the disk may lack what the database file shows: ``make_good`` then."""
        return self._database.sums_file.distrusted

    @property
    def has_unsynced(self) -> bool:
        """Whether the log holds records that were not synced yet."""
        return self._unsynced_since is not None

    @property
    def is_settled(self) -> bool:
        """Whether this applier knows all that is in the WAL."""
        return True

    def check_usable(self) -> None:
        """Raises LiteFSError if only recovery can help: a snapshot waits to be put in place."""
        if self._failed is not None:
            raise LiteFSError(self._failed)

    def attach(self) -> None:
        """Attach to the WAL, if that is not done, and apply what the log holds beyond it: look whether
        ``must_reopen`` then. Raises OSError, FormatError."""
        self.check_usable()
        self._attach_wal()
        if self.is_behind:
            self._catch_up()

    def _attach_wal(self) -> Checkpointer:
        if self.writer is None or self._checkpointer is None:
            sums = self._database.sums
            writer = WalWriter(self._mounted, old_readers=self._old_readers, logged=sums.wal())
            if writer.page_size != self._database.page_size:
                writer.close()
                raise FormatError(
                    f"{self._mounted}: pages of {writer.page_size} bytes are not what the log has"
                )
            sums.set_wal(0, 0, 0)  # whoever looks for unannounced commits finds none on a replica
            self.writer = writer
            self._checkpointer = Checkpointer(writer, self.sync_log, self._policy)
            # What an earlier attachment left in the WAL counts as of now.
            self._checkpointer.applied(self._database.position.txid)
        return self._checkpointer

    def apply(self, bodies: Sequence[Buffer]) -> Position:
        """Check, log and apply contiguous whole LTX records; returns the new position. All become visible
        at once, except that nothing is done behind a record after which ``must_reopen`` is true.

        Raises PositionMismatch, ChecksumMismatch or FormatError for a record that does not belong here:
        those before it were applied, it and those after it were not even logged. NotSupported: the database
        is dropped. OSError: a full disk, or a dead mount.
        """
        self.attach()
        self._take(map(Incoming, bodies))
        self._maintain()
        return self._database.position

    def _take(self, records: Iterable[Incoming]) -> None:
        """Apply records up to the one after which ``must_reopen`` is true. Raises as ``apply``."""
        batch: list[tuple[Incoming, Record]] = []
        size = 0
        at = self._database.position
        for item in records:
            if self.must_reopen:
                return
            full = item.page_size != self._database.page_size
            if full or item.size > BIG_RECORD:
                self._flush(batch)
                batch, size = [], 0
                (self._apply_full if full else self._apply_big)(item)
                at = self._database.position
                continue
            try:
                record = decode(item.body)
                at = self._check(record.header, record.trailer.post_apply, at)
            except (FormatError, PositionMismatch, NotSupported):
                self._flush(batch)
                raise
            batch.append((item, record))
            size += len(record.images)
            if size >= MERGE_BYTES:
                self._flush(batch)
                batch, size = [], 0
        self._flush(batch)

    def _check(self, header: Header, post_apply: int, at: Position) -> Position:
        """Whether a record follows position ``at`` in this database; returns the position after it."""
        if header.min_txid != at.txid + 1 or header.pre_apply != at.checksum:
            raise PositionMismatch(
                f"{self.dir.name}: record {header.min_txid:016x} follows "
                f"{Position(header.min_txid - 1, header.pre_apply)}, this replica is at {at}"
            )
        if header.commit == 0:
            raise NotSupported(f"{self.dir.name}: record {header.min_txid:016x} leaves no pages")
        return Position(header.max_txid, post_apply)

    def _flush(self, batch: Sequence[tuple[Incoming, Record]]) -> None:
        """Apply records that chain on the published position as one change of the database."""
        if not batch:
            return
        last = batch[-1][1]
        pgnos, images, commit = merge([record for _, record in batch])
        self._make_room(commit)
        sums = self._database.sums
        try:
            post, new = sums.preview(pgnos, images, commit)
        except ValueError as error:
            raise FormatError(f"{self.dir.name}: record {last.header.max_txid:016x}: {error}") from error
        if post != last.trailer.post_apply:
            if len(batch) > 1:  # find the one that is wrong; those before it are good
                for single in batch:
                    self._flush([single])
            raise wrong_sum(self.dir.name, last.header, post, last.trailer.post_apply)
        for item, record in batch:
            self._append(item, record.header, record.trailer.post_apply)
        self._write(pgnos, images, commit)
        sums.commit(pgnos, new, commit, last.header.max_txid, post, last.header.timestamp)
        self._published()

    def _make_room(self, pages: int) -> None:
        if pages > self._room:
            with self._closing:  # the map may move under ``sync_database``
                self._room = self._database.sums_file.ensure(pages)

    def _append(self, item: Incoming, header: Header, post: int) -> None:
        """Log a record, unless it is in the log already; a full one in a segment of its own."""
        if item.entry is not None:
            return
        database = self._database
        if header.page_size != database.page_size:
            with database.log.begin_segment(header.page_size) as append:
                append.write(item.body)
                append.commit(header.max_txid, post)
        else:
            database.log.append(item.body, header.max_txid, post)
        if self._unsynced_since is None:
            self._unsynced_since = time.monotonic()

    def _write(self, pgnos: Buffer, images: Buffer, commit: int) -> None:
        writer = self._attached()
        if not pgnos:
            if commit == self._database.sums.page_count:
                return
            # A change of size alone still needs a frame to carry it.
            pgnos, images = PAGE_1, writer.read_page(1)
        writer.apply([(pgnos, images, commit)])

    def _attached(self) -> WalWriter:
        if self.writer is None:
            raise RuntimeError(f"{self._mounted}: not attached")
        return self.writer

    def _apply_big(self, item: Incoming) -> None:
        """Apply a record in bounded memory: a pass for its checksums, one into the log, one into the WAL."""
        decoder = Decoder(item.open())
        header = decoder.header
        self._check(header, 0, self._database.position)
        pgnos, new = page_sums(decoder)
        self._make_room(header.commit)
        try:
            post = self._database.sums.post(pgnos, new, header.commit)
        except ValueError as error:
            raise FormatError(f"{self.dir.name}: record {header.max_txid:016x}: {error}") from error
        if post != decoder.trailer.post_apply:
            raise wrong_sum(self.dir.name, header, post, decoder.trailer.post_apply)
        self._append(item, header, post)
        if pgnos:
            left = len(pgnos)
            with self._attached().writing() as append:
                for some, images in Decoder(item.open()):
                    left -= len(some)
                    append.add(some, images, 0 if left else header.commit)
        else:
            self._write(pgnos, b"", header.commit)
        self._database.sums.commit(pgnos, new, header.commit, header.max_txid, post, header.timestamp)
        self._published()

    def _apply_full(self, item: Incoming) -> None:
        """Apply a record of another page size; ``must_reopen`` may be true then."""
        record = FullRecord.read(self.dir.name, item)
        header, post = record.header, record.post_apply
        self._check(header, post, self._database.position)
        self._make_room(header.commit)
        self._append(item, header, post)
        self.sync_log()  # what is overwritten must be recoverable (I5)
        if not write_in_place(self._attached(), record):
            self._reopen(header.page_size)
            return
        self._database.sums.replace(header.page_size, record.sums, header.max_txid, post, header.timestamp)
        self.detach()
        self._attach_wal().backfilled_txid = header.max_txid
        self._published()

    def _reopen(self, page_size: int) -> None:
        self._checkpointer = None  # it would give up the locks that keep readers out
        self._failed = f"{self.dir.name}: page size becomes {page_size}, which takes a recovery"
        self.must_reopen = True

    def replace(self, target: SnapshotTarget) -> None:
        """Make a received and verified snapshot the content of this database, as one transaction of its
        readers.

        The log that ends here is set aside under ``lost/`` before: some of it may be unknown to the
        primary. Raises FormatError, OSError; then this database is as before, unless ``needs_recovery`` is
        true: every later call raises LiteFSError then, and recovery completes the change from what was
        received. ``must_reopen`` is true after a snapshot of another page size.
        """
        kept = None
        try:
            self.attach()
            self._make_room(target.commit)
            kept = keep_diverged(self.dir, 0, "diverged")
            target.seal()
        except BaseException:
            give_up(target, kept)
            raise
        message = "%s: %s gives way to %s; its log was kept in %s"
        log.warning(message, self.dir.name, self.position, target.position, kept)
        if target.page_size != self._database.page_size:
            self._reopen(target.page_size)
            target.close()
            return
        try:
            self._attached().apply_batches(target.differing(self._database.sums), target.commit)
        except BaseException:
            give_up(target, kept)  # no reader saw anything of it
            raise
        self._failed = f"{self.dir.name}: a snapshot was put in place only in part, which takes a recovery"
        try:
            with self._closing:
                target.rebase_log(self._database.sums_file, self._database.log).close()
                self._database.close()
                self._database = Database.open(self.dir)
        except BaseException:
            target.close()
            raise
        self._failed = self._unsynced_since = None
        self._received, self._room = target, 0
        if self._checkpointer is not None:
            self._checkpointer.rebase(self._database.position.txid)
        try:
            self.checkpoint()
            self.sync_database()
        except (OSError, LiteFSError) as error:
            log.warning("%s: checkpoint failed, a later one follows: %s", self.dir.name, error)

    def _catch_up(self) -> None:
        """Apply what is in the log beyond the published position: an earlier call failed after its append."""
        tip = self._database.log.tip
        with LogReader(self.dir.log) as reader:
            if not reader.seek(self._database.position):
                raise PositionMismatch(f"{self.dir.log}: does not hold {self._database.position}")
            while not self.must_reopen and (entries := reader.read(tip.txid, MERGE_BYTES // 4)):
                self._take(Incoming(entry.body, entry) for entry in entries)

    def _published(self) -> None:
        self.last_used = time.monotonic()
        if self._checkpointer is not None:
            self._checkpointer.applied(self._database.position.txid)

    def _maintain(self) -> None:
        """After a batch: sync the log if that is due, checkpoint if that is.

        The batch is applied, so a checkpoint that fails is no failure of it: the WAL grows meanwhile.
        """
        if self._unsynced_since is not None and time.monotonic() - self._unsynced_since >= self.sync_interval:
            self.sync_log()
        if self._checkpointer is not None:
            try:
                self._checkpointer.maybe_run()
            except (OSError, LiteFSError) as error:
                log.warning("%s: checkpoint failed, a later one follows: %s", self.dir.name, error)

    def sync_log(self) -> None:
        """Make the log durable. Raises LogSyncFailed."""
        self._unsynced_since = None
        self._database.sync()

    def checkpoint(self) -> bool:
        """Backfill what readers allow; True if no frame is left. Raises OSError, LockTimeout."""
        return self._checkpointer is None or self._checkpointer.run()

    def sync_database(self) -> None:
        """Make durable what was checkpointed, so that retention may let go of those records. For any thread.

        The file is synced behind the mount: a sync through it would keep the fs process from serving.
        Raises OSError; after that LiteFSError until ``make_good``.
        """
        with self._closing:
            checkpointer = self._checkpointer
            if checkpointer is None or checkpointer.backfilled_txid <= self._database.sums.durable_txid:
                return
            txid, file = checkpointer.backfilled_txid, self._database.sums_file
            if file.distrusted:
                raise LiteFSError(f"{self.dir.name}: a sync of the database file failed")
            try:
                fileops.sync_file(self.dir.database)
            except OSError:
                file.distrust()
                raise
            self._database.sums.durable_txid = txid
            if self._received is not None:
                self._received.finish()
                self._received = None

    def make_good(self) -> None:
        """After a sync of the database file failed: write it again. Raises as ``write_again``."""
        with self._closing:
            if self.writer is not None and self.is_distrusted:
                write_again(self.dir, self._database.sums_file, self.writer.has_frame)

    def rest(self) -> None:
        """Nothing came for a while: sync the log, and checkpoint. Raises LiteFSError, OSError."""
        if self.has_unsynced:
            self.sync_log()
        self.checkpoint()

    def finish(self) -> None:
        """The last work before ``close``: everything durable that readers allow. Raises as ``rest``."""
        self.rest()
        self.sync_database()

    def release(self) -> str | None:
        """Make ready for the fs process to write the log from here on, and ``close``; why that takes a
        recovery, or None. The WAL stays as it is if readers use it. Raises LiteFSError, OSError.
        """
        try:
            if self._failed is not None:
                return self._failed
            self.attach()
            if self.must_reopen:
                return self._failed
            if self.has_unsynced:
                self.sync_log()
            return self._leave_wal(self._attached())
        finally:
            self.close()

    def _leave_wal(self, writer: WalWriter) -> str | None:
        if not writer.may_checkpoint():
            return f"{self.dir.name}: a transaction is open that began before this node was a replica"
        if writer.is_rollback_mode():
            with writer.alone() as alone:
                if alone and self.checkpoint():
                    writer.empty()
        if self._received is not None:  # its intent would put it in the place of what is committed next
            self.checkpoint()
            self.sync_database()
            if self._received is not None:
                return f"{self.dir.name}: readers keep a snapshot from being put in place durably"
        return None

    def detach(self) -> None:
        """Let go of the mount: the WAL and every lock. The next use attaches again."""
        with self._closing:
            if self.writer is not None:
                self._old_readers = self.writer.old_readers
                self.writer.close()
                self.writer = self._checkpointer = None

    def close(self) -> None:
        """Let go of everything, without a sync; harmless if repeated."""
        self.detach()
        with self._closing:
            if self._received is not None:
                self._received.close()
            self._database.close()


def give_up(target: SnapshotTarget, kept: Path | None) -> None:
    """Forget a snapshot and the copy that was ``kept`` of a log in its favour: the log is still there, the
    snapshot is asked for again, and a copy for each attempt would fill the disk. Raises OSError."""
    target.abort()
    if kept is not None:
        fileops.remove_tree(kept)
