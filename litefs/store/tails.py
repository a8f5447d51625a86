"""The end of a log on its way to a node that lost it: one log segment, however big.

Format: ARCHITECTURE.md, "The log". Other than in a log, its records may be of several page sizes; the one in
its header is that of the first.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from litefs.errors import FormatError, PositionMismatch
from litefs.ltx.decoder import Decoder
from litefs.store.log import Log
from litefs.store.reader import Entry, LogReader
from litefs.store.segments import RECORD_HEAD, SEGMENT_HEADER_SIZE, SegmentHeader, SegmentMap
from litefs.types import Point

_PIECE = 1 << 20


def copy_tail(directory: Path, after: Point, upto_txid: int, file: IO[bytes]) -> bool:
    """Write to ``file`` what the log in ``directory`` has after ``after`` up to ``upto_txid``, which must be
    published and beyond it.

    False, and nothing is written, if this log does not know that point: it has another history there, or
    no longer reaches back so far. Raises LogCorrupt, PositionMismatch if retention was quicker, OSError.
    """
    with LogReader(directory) as reader:
        if not reader.seek(after):
            return False
        entries = reader.read(upto_txid)
        header = SegmentHeader(after, entries[0].extent.page_size)
        file.write(header.pack())
        while entries:
            for entry in entries:
                file.write(RECORD_HEAD.pack(entry.size, entry.extent.digest))
                with _opened(entry) as body:
                    while piece := body.read(_PIECE):
                        file.write(piece)
                file.write(bytes(-entry.size & 7))
            entries = reader.read(upto_txid)
    file.flush()
    return True


def check_tail(path: Path, after: Point) -> Point:
    """The point to which the tail at ``path`` leads from ``after``.

    Each of its records was read: whole, in order, and an LTX file. Raises FormatError (ChecksumMismatch,
    LogCorrupt) if that is not so or anything follows them, PositionMismatch if it begins elsewhere, OSError.
    """
    tip, end = after, SEGMENT_HEADER_SIZE
    with SegmentMap(path) as segment:
        for extent in segment.extents(verify=False):
            tip, end = extent.point, extent.end
        if tip == after or end != segment.size:
            raise FormatError(f"a tail of {segment.size} bytes with whole records up to byte {end}")
    for entry in _entries(path, after, tip):
        with _opened(entry) as body:
            for _ in Decoder(body.read):
                pass
    return tip


def append_tail(log: Log, path: Path, tip: Point) -> None:
    """Append to ``log`` the tail at ``path``, which ``check_tail`` found to lead from there to ``tip``.

    Durable on return. Raises OSError, LogSyncFailed: then the log may end with any record of it.
    """
    for entry in _entries(path, log.tip, tip):
        page_size = entry.extent.page_size
        record = log.begin() if page_size == log.page_size else log.begin_segment(page_size)
        with record, _opened(entry) as body:
            while piece := body.read(_PIECE):
                record.write(piece)
            record.commit(entry.txid_max, entry.extent.post_apply)
    log.sync()


def _entries(path: Path, after: Point, tip: Point) -> Iterator[Entry]:
    """The records of the only segment in its directory."""
    with LogReader(path.parent) as reader:
        if not reader.seek(after):
            raise PositionMismatch(f"a tail that does not follow {after}")
        while entries := reader.read(tip.txid):
            yield from entries


def _opened(entry: Entry) -> IO[bytes]:
    return io.BytesIO(entry.body) if entry.body else entry.open()
