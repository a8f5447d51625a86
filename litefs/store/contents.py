"""What a record of the log says about its transaction, without its pages."""

from __future__ import annotations

from litefs.ltx.format import HEADER_SIZE, Header, index_of
from litefs.store.reader import Entry, page_index


def header_of(entry: Entry) -> Header:
    """Its LTX header. Raises FormatError, and for a big record that retention removed FileNotFoundError."""
    if entry.body:
        return Header.unpack(entry.body)
    with entry.open() as file:
        return Header.unpack(file.read(HEADER_SIZE))


def pgnos_of(entry: Entry) -> list[int]:
    """The numbers of its pages, ascending; read from the page index at its end. Raises as ``header_of``."""
    index = index_of(entry.body) if entry.body else page_index(entry.extent)
    return [pgno for pgno, _, _ in index]
