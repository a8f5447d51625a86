"""Several records that follow each other into one: of each page the newest image (as ltx's compactor.go).

Page frames are copied as they are, so the result depends on the inputs alone, not on a version of LZ4; only
frames of the old format (ltx 0.5.0 and 0.5.1) become blocks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from litefs._core.pageblock import encode_pages
from litefs._core.pagedecode import decode_page
from litefs.errors import ArchiveCorrupt
from litefs.ltx.decoder import Decoder
from litefs.ltx.encoder import COPY_BYTES, Encoder
from litefs.ltx.format import FLAG_NO_CHECKSUM, Header, index_of

WAL_OFFSET = 32
"""What Litestream needs in a file to go on behind it (it begins a new WAL then), in all that we derive."""
_AS_BLOCK = 1


class PageSizeChanges(ArchiveCorrupt):
    """Records before and from ``txid`` on have pages of different sizes: no file holds both."""

    def __init__(self, before: int, after: int, txid: int) -> None:
        super().__init__(f"the page size changes from {before} to {after} at transaction {txid:016x}")
        self.txid = txid


def derived_header(page_size: int, commit: int, min_txid: int, max_txid: int, timestamp: int) -> Header:
    """The header that a file has in Litestream's layout: without checksums of the database."""
    return Header(FLAG_NO_CHECKSUM, page_size, commit, min_txid, max_txid, timestamp, 0, WAL_OFFSET)


def compact(inputs: Sequence[Decoder], timestamp: int | None = None) -> Iterator[bytes]:
    """One record without checksums from ``inputs``, oldest first, none of them iterated yet; in pieces.

    Each input begins at or before the transaction after the one before it, and ends later. Pages beyond the
    size of the database after any later input are left out: what is there again must have been written again.
    ``timestamp`` (Unix ms): the last input's by default. Memory: about 1.5 MiB per input, and the result's
    index. The inputs are verified as they are read, so the result is good only once its last piece is there.
    Raises ArchiveCorrupt (PageSizeChanges) for inputs that do not fit each other, FormatError for one that is
    damaged.
    """
    _check_headers([decoder.header for decoder in inputs])
    last = inputs[-1].header
    header = derived_header(
        last.page_size,
        last.commit,
        inputs[0].header.min_txid,
        last.max_txid,
        last.timestamp if timestamp is None else timestamp,
    )
    return _compact(inputs, Encoder(header))


def compact_records(records: Sequence[bytes], timestamp: int) -> Iterator[bytes]:
    """As ``compact``, for any number of records in memory whose bytes were verified before, each the next
    transaction. Memory: about 200 bytes per page of the result. Raises as ``compact``.
    """
    headers = [Header.unpack(record) for record in records]
    _check_headers(headers)
    pages: dict[int, tuple[int, int, int]] = {}
    for number, (header, record) in enumerate(zip(headers, records, strict=True)):
        if number and header.commit < headers[number - 1].commit:
            pages = {pgno: place for pgno, place in pages.items() if pgno <= header.commit}
        for pgno, offset, size in index_of(record):
            pages[pgno] = (number, offset, offset + size)
    first, last = headers[0], headers[-1]
    header = derived_header(last.page_size, last.commit, first.min_txid, last.max_txid, timestamp)
    return _copied(Encoder(header), records, [place for _, place in sorted(pages.items())])


def _copied(
    encoder: Encoder, records: Sequence[bytes], places: list[tuple[int, int, int]]
) -> Iterator[bytes]:
    yield encoder.begin()
    step = max(1, COPY_BYTES // encoder.header.page_size)
    for at in range(0, len(places), step):
        frames = [records[number][start:end] for number, start, end in places[at : at + step]]
        yield encoder.copy(_blocks(frames, encoder.header.page_size))
    yield _finish(encoder)


def _finish(encoder: Encoder) -> bytes:
    try:
        return encoder.finish(0)
    except ValueError as error:
        raise ArchiveCorrupt(str(error)) from None


def _check_headers(headers: Sequence[Header]) -> None:
    if not headers:
        raise ValueError("nothing to compact")
    for before, after in pairwise(headers):
        if after.page_size != before.page_size:
            raise PageSizeChanges(before.page_size, after.page_size, after.min_txid)
        if not after.min_txid <= before.max_txid + 1 <= after.max_txid:
            raise ArchiveCorrupt(
                f"transactions {after.min_txid:016x}-{after.max_txid:016x} do not follow "
                f"{before.min_txid:016x}-{before.max_txid:016x}"
            )


def _compact(inputs: Sequence[Decoder], encoder: Encoder) -> Iterator[bytes]:
    yield encoder.begin()
    for block in _merged(_sources(inputs), encoder.header.page_size):
        yield encoder.copy(block)
    _check_chain(inputs)
    yield _finish(encoder)


def _check_chain(inputs: Sequence[Decoder]) -> None:
    """Of two inputs with checksums, one right after the other, one must begin where the other ended."""
    for before, after in pairwise(inputs):
        ended, begins = before.trailer.post_apply, after.header.pre_apply
        follows = after.header.min_txid == before.header.max_txid + 1
        if follows and ended and begins and ended != begins:
            raise ArchiveCorrupt(
                f"transaction {after.header.min_txid:016x} follows checksum {begins:016x}, not {ended:016x}"
            )


class _Source:
    """One input: the batch that it is in, and the last page of it that may be in the result."""

    def __init__(self, decoder: Decoder, limit: int) -> None:
        self._batches = decoder.frames()
        self._limit = limit
        self._pgnos: list[int] = []
        self._frames: list[bytes] = []
        self._at = 0

    def fill(self) -> int | None:
        """The last page of the present batch, of the next one if that is spent; None at the end."""
        while self._at == len(self._pgnos):
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._pgnos, self._frames = batch
            self._at = 0
        return self._pgnos[-1]

    def take(self, bound: int, into: dict[int, bytes]) -> None:
        """Put the next pages up to ``bound`` over what is there."""
        start = self._at
        self._at = bisect_right(self._pgnos, bound, start)
        end = min(self._at, bisect_right(self._pgnos, self._limit, start))
        if start < end:
            into.update(zip(self._pgnos[start:end], self._frames[start:end], strict=True))


def _sources(inputs: Sequence[Decoder]) -> list[_Source]:
    limit = inputs[-1].header.commit
    sources = []
    for decoder in reversed(inputs):
        limit = min(limit, decoder.header.commit)
        sources.append(_Source(decoder, limit))
    return sources[::-1]


def _merged(sources: list[_Source], page_size: int) -> Iterator[bytes]:
    """The frames of the result, ascending, many at a time: up to the page that all batches reach."""
    while True:
        alive, bound = [], None
        for source in sources:
            last = source.fill()
            if last is not None:
                alive.append(source)
                bound = last if bound is None else min(bound, last)
        if bound is None:
            return
        sources = alive
        pages: dict[int, bytes] = {}
        for source in sources:
            source.take(bound, pages)
        if pages:
            yield _blocks([frame for _, frame in sorted(pages.items())], page_size)


def _blocks(frames: list[bytes], page_size: int) -> bytes:
    """The frames joined, each with an LZ4 block."""
    return b"".join([f if f[5] == _AS_BLOCK else _as_block(f, page_size) for f in frames])


def _as_block(frame: bytes, page_size: int) -> bytes:
    pgno, page = decode_page(frame, page_size)
    return encode_pages(array("I", [pgno]), page, page_size, 0, 0)[0]
