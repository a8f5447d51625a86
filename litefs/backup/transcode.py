"""Bundles to Litestream's raw files (level 0).

Of a bundle of up to ``SINGLE_MAX`` transactions each becomes a file. Of more, all but the last become one
file and the last another: Litestream goes on only behind a file of one transaction. The bytes depend on the
bundle alone, so whoever writes a file again writes the same one. Times are the bundle's, never decreasing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import xxhash

from litefs.backup.archive import Archive
from litefs.backup.bundle import Bundle, Logged
from litefs.backup.target import Reader
from litefs.errors import ArchiveCorrupt
from litefs.ltx.compactor import compact, compact_records
from litefs.ltx.decoder import Decoder
from litefs.ltx.format import TRAILER_SIZE, Header
from litefs.store.segments import LENGTH

SINGLE_MAX = 8


def l0_spans(bundle: Bundle) -> list[tuple[int, int]]:
    """(min, max TXID) of the raw files of a bundle, ascending; none if the database was removed."""
    first, last = bundle.first_txid, bundle.last.txid
    if len(bundle.entries) <= SINGLE_MAX:
        return [(txid, txid) for txid in range(first, last + 1)]
    return [(first, last - 1), (last, last)]


def l0_files(bundle: Bundle, bodies: Sequence[bytes]) -> Iterator[tuple[int, int, int, bytes]]:
    """(min TXID, max TXID, time in Unix ms, bytes) of a bundle's raw files, ascending.

    ``bodies``: all its records, as ``Archive.records`` gives them. Raises ArchiveCorrupt for a record that is
    not what the bundle says, or of another page size than the others.
    """
    entries = bundle.entries
    for entry, body in zip(entries, bodies, strict=True):
        _check(entry, Header.unpack(body), int.from_bytes(body[-TRAILER_SIZE : -TRAILER_SIZE + 8], "big"))
    for first, last in l0_spans(bundle):
        start, end = first - bundle.first_txid, last - bundle.first_txid
        time = entries[end].time
        yield first, last, time, b"".join(compact_records(bodies[start : end + 1], time))


def l0_big(bundle: Bundle, reader: Reader) -> tuple[int, int, int, Iterator[bytes]]:
    """The same for the one file of a big bundle, whose record ``reader`` has; the bytes are read, and
    made, in pieces. Raises ArchiveCorrupt, while iterating too, if the record is not that of the bundle."""
    (entry,) = bundle.entries
    return entry.txid, entry.txid, entry.time, _big(entry, reader)


def _big(entry: Logged, reader: Reader) -> Iterator[bytes]:
    digest, size = xxhash.xxh3_64(), 0

    def read(n: int) -> bytes:
        nonlocal size
        piece = reader.read(n)
        digest.update(piece)
        size += len(piece)
        return piece

    decoder = Decoder(read)
    last = b""
    for piece in compact([decoder], entry.time):
        if last:
            yield last
        last = piece
    digest.update(LENGTH.pack(size))
    if size != entry.size or digest.intdigest() != entry.point.hash:
        raise ArchiveCorrupt(f"the record of TXID {entry.txid:016x} is damaged")
    _check(entry, decoder.header, decoder.trailer.post_apply)
    yield last


def _check(entry: Logged, header: Header, post_apply: int) -> None:
    found = header.min_txid, header.max_txid, post_apply
    if found != (entry.txid, entry.txid, entry.point.checksum):
        raise ArchiveCorrupt(f"the record of TXID {entry.txid:016x} is not that of {entry.point}")


def write_l0(
    archive: Archive, bundle: Bundle, bodies: Sequence[bytes] | None = None, after: int = 0
) -> list[tuple[int, int]]:
    """Store the raw files of a bundle that end after TXID ``after``; returns their (min, max TXID).

    ``bodies``: all records of the bundle if they are at hand; else, and if it is a big one, they are read
    from the archive. Raises ArchiveCorrupt, ArchiveMissing, ArchiveUnavailable; what was stored until then
    is good.
    """
    spans = [span for span in l0_spans(bundle) if span[1] > after]
    if not spans:
        return []
    if bundle.big:
        reader = archive.open_big(bundle.last)
        try:
            first, last, time, pieces = l0_big(bundle, reader)
            archive.write(0, first, last, time, pieces)
        finally:
            reader.close()
        return spans
    for first, last, time, data in l0_files(bundle, archive.records(bundle) if bodies is None else bodies):
        if last > after:
            archive.write(0, first, last, time, data)
    return spans
