"""Looking at a data directory from outside, while a node may be running on it: nothing is written, locked or
mapped for others to see.

Judged is what the node has published (``sums``); what lies behind may be a record that is being written, and
is the node's to judge.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from litefs._core.pagesums import HEADER_SIZE, PageSums
from litefs.errors import FormatError, InvalidName, LiteFSError, LogCorrupt, PositionMismatch
from litefs.ltx.decoder import READ_BYTES, Decoder
from litefs.ltx.format import HEADER_SIZE as LTX_HEADER_SIZE
from litefs.ltx.format import Header
from litefs.store.paths import DatabaseDir, decode_name
from litefs.store.reader import Entry, LogReader
from litefs.store.segments import SEGMENT_HEADER_SIZE, SegmentHeader, list_segments
from litefs.types import START, Point

ATTEMPTS = 5
"""How often a log is begun anew from which retention takes the older end meanwhile."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A log that was verified: so many ``records`` are sound, of ``size`` bytes, from transaction ``first``
    on (0: there is none) to the point ``last``; ``problem`` says what is wrong with the next, or is empty.
    """

    name: str
    records: int
    size: int
    first: int
    last: Point
    problem: str = ""


def database_dirs(data: Path) -> list[DatabaseDir]:
    """The databases of a data directory, by name. Raises LiteFSError if it is none, OSError."""
    parent = data / "dbs"
    if not parent.is_dir():
        raise LiteFSError(
            f"{data} is not a data directory of LiteFS: it has no dbs/; see data.dir of litefs.yml"
        )
    found = []
    for entry in os.scandir(parent):
        try:
            name = decode_name(entry.name)
        except InvalidName:
            continue
        if entry.is_dir(follow_symlinks=False):
            found.append(DatabaseDir(name, Path(entry.path)))
    return sorted(found, key=lambda directory: directory.name)


def published(directory: DatabaseDir) -> Point | None:
    """How far the node's log goes for sure; None without ``sums``. Raises FormatError, TimeoutError if the
    writer was killed inside an update, OSError."""
    try:
        fd = os.open(directory.sums, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(fd).st_size < HEADER_SIZE:
            raise FormatError(f"{directory.sums}: too short for a sums file")
        with mmap.mmap(fd, HEADER_SIZE, access=mmap.ACCESS_COPY) as view:
            sums = PageSums(view)
            try:
                if not sums.formatted:
                    raise FormatError(f"{directory.sums}: not a sums file")
                txid, checksum, *_, digest = sums.snapshot()
            finally:
                sums.release()
    finally:
        os.close(fd)
    return Point(txid, checksum, digest)


def entries(directory: DatabaseDir) -> Iterator[Entry]:
    """The records that are published, oldest first. Raises LogCorrupt for the first that is not whole,
    PositionMismatch if retention was quicker, FormatError, OSError."""
    upto = published(directory)
    segments = list_segments(directory.log)
    if not segments:
        if upto is not None and upto != START:
            raise LogCorrupt(f"{directory.log}: no log, though the database is at {upto.position}")
        return
    reader = LogReader(directory.log)
    try:
        base = _base(segments[0][1])
        if not reader.seek(base):
            raise PositionMismatch(f"{directory.log}: {segments[0][1].name} is gone")
        if upto is None:
            upto = reader.tip()
            reader.seek(base)
        while reader.point.txid < upto.txid:
            at = reader.point
            try:
                yield from reader.read(upto.txid)
            except LogCorrupt:
                reader.seek(at)  # once more, one at a time: those before the bad one are whole
                while reader.point.txid < upto.txid:
                    yield from reader.read(upto.txid, 1)
        if reader.point != upto:
            raise LogCorrupt(f"{directory.log}: the log is at {reader.point}, the database at {upto}")
    finally:
        reader.close()


def open_entry(entry: Entry) -> io.BufferedIOBase:
    """The LTX file of a record. Raises FileNotFoundError if retention removed it, OSError."""
    return io.BytesIO(entry.body) if entry.body else entry.open()


def header_of(entry: Entry) -> Header:
    """The header of a record. Raises FormatError, OSError."""
    with open_entry(entry) as stream:
        return Header.unpack(stream.read(LTX_HEADER_SIZE))


def log_size(directory: DatabaseDir) -> int:
    """Bytes of its log, about. Raises OSError."""
    return sum(path.stat().st_size for _, path in list_segments(directory.log) if path.exists())


def verify(directory: DatabaseDir, advance: Callable[[int], None] = lambda count: None) -> Finding:
    """Read a whole log: each record's hash, its pages and checksums, and that it follows the one before.
    ``advance`` is told of the bytes that were read. Raises OSError, LiteFSError if retention is always
    quicker.
    """
    for _ in range(ATTEMPTS):
        try:
            return _verify(directory, advance)
        except (PositionMismatch, FileNotFoundError):
            continue
    raise LiteFSError(f"{directory.log}: retention takes records away more quickly than they can be read")


def _verify(directory: DatabaseDir, advance: Callable[[int], None]) -> Finding:
    records = size = first = 0
    last = START
    where = ""
    try:
        for entry in entries(directory):
            first = first or entry.txid_min
            where = f"record {entry.txid_min:016x} at {entry.extent.path}, offset {entry.extent.offset}: "
            check_record(entry)
            where = f"after record {entry.txid_max:016x}: "
            records, size, last = records + 1, size + entry.size, entry.point
            advance(entry.size)
    except (FormatError, TimeoutError) as error:
        return Finding(directory.name, records, size, first, last, f"{where}{error}")
    return Finding(directory.name, records, size, first, last)


def check_record(entry: Entry) -> None:
    """Read all of a record, and see that it is what the log says of it. Raises FormatError, OSError."""
    with open_entry(entry) as stream:
        decoder = _read_all(stream)
    header, extent = decoder.header, entry.extent
    said = (header.min_txid, header.max_txid, header.page_size, decoder.trailer.post_apply)
    if said != (extent.txid_min, extent.txid_max, extent.page_size, extent.post_apply):
        raise FormatError("header and trailer are not what the log read of them")


def check_file(path: Path) -> Decoder:
    """Read all of an LTX file; returns what it said of itself. Raises FormatError, OSError."""
    with io.FileIO(path) as file:
        return _read_all(io.BufferedReader(file, READ_BYTES))


def _read_all(stream: io.BufferedIOBase) -> Decoder:
    decoder = Decoder(stream.read1)
    for _ in decoder:
        pass
    return decoder


def _base(path: Path) -> Point:
    with path.open("rb") as file:
        return SegmentHeader.unpack(file.read(SEGMENT_HEADER_SIZE), path).base
