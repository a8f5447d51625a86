"""Whole databases in the archive: level 9, transactions ``1-N``.

A copy of the database is made beside it first, out of its pages and the log, and proved by the checksum of
the point that it is at; then it is sent. Copies lie in a directory that the node empties at its start.
"""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from litefs.backup.archive import Archive
from litefs.backup.bundle import Bundle
from litefs.backup.layout import SNAPSHOT_LEVEL
from litefs.errors import ArchiveCorrupt, LiteFSError
from litefs.ltx.compactor import derived_header
from litefs.ltx.decoder import Decoder
from litefs.ltx.encoder import Encoder
from litefs.ltx.format import lock_pgno
from litefs.store import fileops
from litefs.store.paths import DatabaseDir
from litefs.store.reader import Entry, LogReader
from litefs.store.snapshot import SnapshotTarget
from litefs.types import Point

BATCH_BYTES = 1 << 20
"""Of pages that are read and compressed at a time."""
READ_BYTES = 1 << 20
"""Of records that are laid over a copy at a time."""
SPARE_BYTES = 64 << 20
"""That a scratch copy leaves free on the disk beside what it needs."""


class Pages(Protocol):
    """A walk over a database that keeps the log from its beginning on (litefs.store.snapshot)."""

    at: Point
    page_size: int
    commit: int
    timestamp: int

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...

    def close(self) -> None: ...


class Local(Protocol):
    """A database of this node, as the catalog has it."""

    name: str
    directory: DatabaseDir

    def header(self) -> tuple[Point, int, int, int]:
        """Point, time of its transaction (Unix ms), page size and pages of one moment. Raises
        TimeoutError."""

    def is_current(self) -> bool:
        """False once the files are gone, also if another database has the name."""

    def snapshot(self) -> Pages: ...


class Scratch:
    """A copy of a database: ``commit`` pages of ``page_size`` bytes in ``path``, at ``point``, whose
    transaction was at ``time`` (Unix ms). A context, which removes it."""

    def __init__(
        self, directory: Path, path: Path, page_size: int, commit: int, point: Point, time: int
    ) -> None:
        self._directory = directory
        self.path = path
        self.page_size = page_size
        self.commit = commit
        self.point = point
        self.time = time

    def close(self) -> None:
        """Remove it; harmless if repeated."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def copy(local: Local, scratch: Path) -> Scratch:
    """Copy a database as it is now, while others write to it, into a new directory below ``scratch``.

    The checksum of all pages is that of the point, or ChecksumMismatch is raised. Raises LiteFSError also if
    the disk has no room for it, OSError.
    """
    directory = scratch / secrets.token_hex(8)
    directory.mkdir(parents=True)
    try:
        pages = local.snapshot()
        try:
            _check_space(local.name, scratch, pages.commit * (pages.page_size + 8))
            return _copied(local, pages, directory)
        finally:
            pages.close()
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _copied(local: Local, pages: Pages, directory: Path) -> Scratch:
    place = DatabaseDir(local.name, directory)
    target = SnapshotTarget(place, pages.page_size, pages.commit, pages.at, pages.timestamp)
    try:
        for pgnos, images in pages:
            target.pages(pgnos, images)
        end = local.header()[0]
        with LogReader(local.directory.log) as reader:
            if not reader.seek(pages.at):
                raise LiteFSError(f"{local.name}: the log lost what a snapshot needs")
            while target.point.txid < end.txid:
                for entry in reader.read(end.txid, READ_BYTES):
                    _lay(target, entry)
        target.verify(end)
        return Scratch(directory, place.incoming, target.page_size, target.commit, end, target.timestamp)
    finally:
        target.close()


def _lay(target: SnapshotTarget, entry: Entry) -> None:
    """One record over the copy; a big one without reading it into memory."""
    if entry.body:
        target.record(entry.body)
        return
    extent = entry.extent
    with (
        extent.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[extent.body_offset : extent.body_offset + extent.size] as body,
    ):
        target.record(body)


def _check_space(name: str, scratch: Path, needed: int) -> None:
    stat = os.statvfs(scratch)
    free = stat.f_bavail * stat.f_frsize
    if free < needed + SPARE_BYTES:
        raise LiteFSError(
            f"{name}: no snapshot for the archive: a copy of {needed} bytes is made in {scratch} first, "
            f"where {free} are free; {SPARE_BYTES} stay so"
        )


def write_snapshot(archive: Archive, file: Path, page_size: int, commit: int, point: Point, time: int) -> str:
    """Store the database in ``file``, which is at ``point``, as a snapshot; returns its key.

    ``time``: Unix ms of the point's transaction. Raises ArchiveUnavailable, OSError.
    """
    with file.open("rb", buffering=0) as source:
        pieces = _pieces(source.fileno(), page_size, commit, point.txid, time)
        return archive.write(SNAPSHOT_LEVEL, 1, point.txid, time, pieces)


def _pieces(fd: int, page_size: int, commit: int, txid: int, time: int) -> Iterator[bytes]:
    encoder = Encoder(derived_header(page_size, commit, 1, txid, time))
    yield encoder.begin()
    skip, step = lock_pgno(page_size), max(1, BATCH_BYTES // page_size)
    first = 1
    while first <= commit:
        if first == skip:
            first += 1
            continue
        end = min(first + step, commit + 1)
        if first < skip < end:
            end = skip
        images = fileops.pread_all(fd, (end - first) * page_size, (first - 1) * page_size)
        yield encoder.add(struct.pack(f"={end - first}I", *range(first, end)), images)
        first = end
    yield encoder.finish(0)


def write_full_record(archive: Archive, bundle: Bundle) -> None:
    """Store the one record of a bundle, which holds every page of the database, as a snapshot. Raises
    ArchiveCorrupt, ArchiveUnavailable."""
    (entry,) = bundle.entries
    with _record(archive, bundle) as decoder:
        header = decoder.header
        out = Encoder(derived_header(header.page_size, header.commit, 1, entry.txid, entry.time))
        archive.write(SNAPSHOT_LEVEL, 1, entry.txid, entry.time, _full(decoder, out))


def _full(decoder: Decoder, out: Encoder) -> Iterator[bytes]:
    yield out.begin()
    for pgnos, images in decoder:
        yield out.add(pgnos, images)
    try:
        yield out.finish(0)
    except ValueError as error:
        raise ArchiveCorrupt(f"the page size changes in a record that is not a full one: {error}") from None


@contextmanager
def _record(archive: Archive, bundle: Bundle) -> Iterator[Decoder]:
    (entry,) = bundle.entries
    if bundle.big:
        reader = archive.open_big(entry.point)
        try:
            yield Decoder(reader.read)
        finally:
            reader.close()
        return
    body = memoryview(archive.record(bundle, entry))
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(body[at - size : at])

    yield Decoder(read)
