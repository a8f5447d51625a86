"""Records on their way into the WAL: many merged into one, and big ones read from where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from litefs.apply.wal import Buffer
from litefs.ltx import Record
from litefs.store.reader import Entry


def merge(records: Sequence[Record]) -> tuple[Buffer, Buffer, int]:
    """The pages that a run of records leaves: (pgnos, images, commit), each page once, none beyond the
    final size."""
    last = records[-1]
    if len(records) == 1:
        return last.pgnos, last.images, last.header.commit
    size, commit = last.header.page_size, last.header.commit
    newest: dict[int, memoryview] = {}
    for record in records:
        view = memoryview(record.images)
        numbers = memoryview(record.pgnos).cast("I")
        newest.update((pgno, view[at * size : (at + 1) * size]) for at, pgno in enumerate(numbers))
    pgnos = sorted(pgno for pgno in newest if pgno <= commit)
    return struct.pack(f"={len(pgnos)}I", *pgnos), b"".join(newest[pgno] for pgno in pgnos), commit


def reader_of(body: Buffer) -> Callable[[int], bytes]:
    """A function that reads a record in memory, or in a mapped file, from its start."""
    view = memoryview(body)
    at = 0

    def read(n: int) -> bytes:
        nonlocal at
        piece = bytes(view[at : at + n])
        at += len(piece)
        return piece

    return read


def stream_of(entry: Entry) -> Callable[[int], bytes]:
    """The same for a record of the log, whose file is closed when the function is dropped."""
    return entry.open().read
