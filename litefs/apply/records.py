"""Records on their way into the WAL: many merged into one, and big ones read from where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from litefs._core.pagesums import checksums_of
from litefs.apply.wal import Buffer
from litefs.errors import ChecksumMismatch
from litefs.ltx import Decoder, Header, Record
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


def page_sums(decoder: Decoder) -> tuple[bytearray, bytearray]:
    """The numbers (native u32) and checksums (native u64) of a record's pages, read to its end.

    Raises FormatError, ChecksumMismatch.
    """
    pgnos, sums = bytearray(), bytearray()
    for some, images in decoder:
        pgnos += some
        sums += checksums_of(some, images, decoder.header.page_size)
    return pgnos, sums


def wrong_sum(name: str, header: Header, post: int, expected: int) -> ChecksumMismatch:
    """What to raise for a record of database ``name`` that leads to another checksum than it says."""
    return ChecksumMismatch(
        f"{name}: record {header.max_txid:016x} leads to {post:016x}, not to {expected:016x}"
    )


@dataclass(frozen=True, slots=True)
class Incoming:
    """A whole LTX record that is to be applied."""

    body: Buffer
    """In memory or in a mapped file; empty if it is in the log and big."""
    entry: Entry | None = None
    """Where the log has it already."""

    @property
    def size(self) -> int:
        """Bytes of the LTX file."""
        return len(self.body) if self.entry is None else self.entry.size

    @property
    def page_size(self) -> int:
        """Bytes; of what may be no record: any number."""
        if self.entry is not None:
            return self.entry.extent.page_size
        return int.from_bytes(self.body[8:12], "big")

    def open(self) -> Callable[[int], bytes]:
        """A function that reads the record from its start. Raises OSError."""
        if self.entry is not None:
            return self.entry.open().read  # the file is closed when this function is dropped
        return reader_of(self.body)


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
