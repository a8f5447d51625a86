"""A database as page checksums: what an archive's records and files must agree with, at 8 bytes a page."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from litefs._core.pagesums import checksums_of
from litefs.backup.archive import LtxFile
from litefs.errors import ArchiveCorrupt
from litefs.ltx.decoder import Decoder
from litefs.ltx.format import lock_pgno
from litefs.types import CHECKSUM_FLAG


@dataclass(slots=True)
class _Span:
    """A file whose transactions are being replayed, and a byte for each page: 1 if it changed in them."""

    file: LtxFile
    changed: bytearray = field(default_factory=bytearray)


class Replay:
    """The state after ``txid``; ``known`` if all transactions were there, or a snapshot was loaded."""

    def __init__(self) -> None:
        self.txid = 0
        self.known = True
        self.page_size = 0
        self.commit = 0
        self._sums = array("Q")
        self._total = 0
        self._spans: dict[int, _Span] = {}

    @property
    def checksum(self) -> int:
        """The rolling checksum of LTX."""
        return CHECKSUM_FLAG | self._total

    def forget(self) -> None:
        """Transactions are missing: nothing is known until the next snapshot."""
        self.known = False
        self._spans.clear()

    def follow(self, file: LtxFile) -> None:
        """From the next transaction on, the file's first, note which pages change; instead of the file of
        this level that was followed before."""
        self._spans[file.level] = _Span(file)

    def followed(self, file: LtxFile) -> bool:
        """Whether all transactions of the file were replayed."""
        span = self._spans.get(file.level)
        return span is not None and span.file is file

    def apply(self, decoder: Decoder) -> None:
        """The next transaction. Raises FormatError, ArchiveCorrupt if it cannot follow."""
        header = decoder.header
        if header.page_size != self.page_size:
            self._clear(header.page_size)
        before = self.commit
        self._resize(header.commit)
        found = 0
        for pgnos, images in decoder:
            found += len(pgnos) // 4
            self._lay(pgnos, images)
        if header.commit > before:
            grown = self._sums[before : header.commit]
            skip = lock_pgno(self.page_size) - 1 - before
            if any(value == 0 and at != skip for at, value in enumerate(grown)):
                raise ArchiveCorrupt("pages by which the database grows are missing")
        self.txid = header.max_txid

    def load(self, decoder: Decoder) -> None:
        """A snapshot, instead of what was there. Raises FormatError."""
        self._clear(decoder.header.page_size)
        self._spans.clear()
        self._resize(decoder.header.commit)
        for pgnos, images in decoder:
            self._lay(pgnos, images)
        self.txid, self.known = decoder.header.max_txid, True

    def compare(self, file: LtxFile, decoder: Decoder) -> None:
        """A file that ends with this transaction: its pages are those of now, and all that changed in it.

        Raises FormatError, ArchiveCorrupt.
        """
        header = decoder.header
        if (header.page_size, header.commit) != (self.page_size, self.commit):
            raise ArchiveCorrupt(
                f"it leads to {header.commit} pages of {header.page_size} bytes, the transactions to "
                f"{self.commit} of {self.page_size}"
            )
        span = self._spans.get(file.level) if self.followed(file) else None
        for pgnos, images in decoder:
            numbers = memoryview(pgnos).cast("I")
            for pgno, value in zip(numbers, _sums(pgnos, images, self.page_size), strict=True):
                if self._sums[pgno - 1] != value:
                    raise ArchiveCorrupt(f"page {pgno} is not what the transactions lead to")
                if span is not None:
                    span.changed[pgno - 1] = 0
        if span is not None:
            lacking = span.changed.count(1)
            del self._spans[file.level]
            if lacking:
                raise ArchiveCorrupt(f"{lacking} pages are missing that its transactions changed")

    def _clear(self, page_size: int) -> None:
        self._sums, self._total = array("Q"), 0
        self.page_size, self.commit = page_size, 0
        for span in self._spans.values():
            span.changed = bytearray()

    def _resize(self, commit: int) -> None:
        for value in self._sums[commit:]:
            self._total ^= value & ~CHECKSUM_FLAG
        del self._sums[commit:]
        self._sums.frombytes(bytes(8 * (commit - len(self._sums))))
        for span in self._spans.values():
            del span.changed[commit:]
            span.changed.extend(bytes(commit - len(span.changed)))
        self.commit = commit

    def _lay(self, pgnos: bytes, images: bytearray) -> None:
        marks = [span.changed for span in self._spans.values()]
        total = self._total
        for pgno, value in zip(
            memoryview(pgnos).cast("I"), _sums(pgnos, images, self.page_size), strict=True
        ):
            total ^= (self._sums[pgno - 1] ^ value) & ~CHECKSUM_FLAG
            self._sums[pgno - 1] = value
            for changed in marks:
                changed[pgno - 1] = 1
        self._total = total


def _sums(pgnos: bytes, images: bytearray, page_size: int) -> memoryview[int]:
    return memoryview(checksums_of(pgnos, images, page_size)).cast("Q")
