"""A node that starts with nothing takes its databases from the archive (``backup.seed``).

A replica then asks the primary for what is newer only; a primary that lost its disk has again what was
archived. Whether a node may become primary does not change by it (docs/failover.md): where the cluster has
published more, it is behind.
"""

from __future__ import annotations

import functools
import logging
import struct
from pathlib import Path

import trio

from litefs.backup.archive import Archive
from litefs.backup.finding import Goal, Moment, find, moment_text
from litefs.backup.histories import histories
from litefs.backup.restore import SPAN_BYTES, restore
from litefs.backup.target import Target
from litefs.config_backup import BackupConfig
from litefs.errors import LiteFSError
from litefs.ltx.format import lock_pgno
from litefs.store import fileops
from litefs.store.dropped import tombstone
from litefs.store.paths import DataDir
from litefs.store.snapshot import SnapshotTarget

log = logging.getLogger("litefs.archive")

NOTE = "seeding"
"""In the data directory while it is filled: a node that is killed meanwhile goes on."""
SCRATCH = "seed"


async def seed(config: BackupConfig, data: DataDir, *, required: bool) -> None:
    """Fill an empty data directory, if ``config`` says so. With ``required`` nothing else would have the
    databases. Raises LiteFSError, OSError: what cannot be had from the archive, if that is ``required``."""
    if not config.enabled or not config.seed:
        return
    note = data.path / NOTE
    if not note.exists() and data.names():
        return
    try:
        work = functools.partial(_seed, config, data, note)
        await trio.to_thread.run_sync(work)
    except (LiteFSError, OSError) as error:
        if required:
            raise LiteFSError(
                f"the data directory is empty and cannot be seeded from the archive: {error}; to begin with "
                "nothing, take backup.seed out of litefs.yml"
            ) from error
        log.warning("not seeded from the archive, the primary sends all: %s", error)


def _seed(config: BackupConfig, data: DataDir, note: Path) -> None:
    from litefs.backup.targets import target_of

    target = target_of(config)
    fileops.write_file_atomic(note, b"")
    scratch = data.path / SCRATCH
    fileops.make_dir(scratch)
    try:
        for name in _wanted(config, target):
            if name not in data.names() and tombstone(data, name) is None:
                _seed_one(target, name, data, scratch / "database")
    finally:
        fileops.remove_tree(scratch)
    fileops.unlink_durably(note)


def _wanted(config: BackupConfig, target: Target) -> list[str]:
    return [name for name in sorted(histories(target)) if config.wants(name)]


def _seed_one(target: Target, name: str, data: DataDir, scratch: Path) -> None:
    found = find(histories(target)[name], Goal())
    if found is None:
        return  # it was removed
    archive, moment = found
    if moment.point is None:
        raise LiteFSError(
            f"{archive.url}: an archive of Litestream has no positions to go on from: import it"
        )
    restore(archive, moment, scratch, replace=True)
    _install(archive, moment, data, scratch)
    fileops.unlink(scratch)
    log.info("%s: taken from the archive, TXID %016x of %s", name, moment.txid, moment_text(moment.time))


def _install(archive: Archive, moment: Moment, data: DataDir, source: Path) -> None:
    """Put the file in place as a received snapshot is: its checksum is compared once more."""
    assert moment.point is not None
    directory = data.database_dir(archive.name)
    size = moment.page_size
    skip, step = lock_pgno(size), max(1, SPAN_BYTES // size)
    incoming = SnapshotTarget(directory, size, moment.commit, moment.point, moment.time)
    try:
        with source.open("rb", buffering=0) as file:
            for first in range(1, moment.commit + 1, step):
                pgnos = [pgno for pgno in range(first, min(first + step, moment.commit + 1)) if pgno != skip]
                images = b"".join(_images(file.fileno(), pgnos, size))
                incoming.pages(struct.pack(f"={len(pgnos)}I", *pgnos), images)
        incoming.verify(moment.point)
        incoming.install()
    finally:
        incoming.close()


def _images(fd: int, pgnos: list[int], size: int) -> list[bytes]:
    """Of pages that are neighbours, but for the lock page."""
    if pgnos and pgnos[-1] - pgnos[0] + 1 == len(pgnos):
        return [fileops.pread_all(fd, len(pgnos) * size, (pgnos[0] - 1) * size)]
    return [fileops.pread_all(fd, size, (pgno - 1) * size) for pgno in pgnos]
