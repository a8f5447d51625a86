"""The rows that a node keeps of transactions it gave up: in the log segments under ``DATA/lost/``."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from litefs.ltx.decoder import decode
from litefs.store.paths import encode_name
from litefs.store.segments import extents, list_segments
from tests.faults.history import TOKEN

_TABLE_LEAF = 13
_U16 = struct.Struct(">H")
_CELLS_AT, _POINTERS_AT = 3, 8
_CELL_BYTES = 80
"""As much of a cell as holds one of our values: the tables' other columns are small."""
_FILE_HEADER_SIZE = 100


def kept_values(data: Path, name: str) -> set[str]:
    """Every value of ours in rows of the pages that given-up transactions of database ``name`` wrote.

    A segment is kept whole, and a page holds rows of before as well, so there are values among them that were
    not lost. Raises LogCorrupt, FormatError.
    """
    found: set[str] = set()
    lost = data / "lost"
    for directory in sorted(lost.iterdir()) if lost.is_dir() else []:
        if directory.name.startswith(f"{encode_name(name)}-"):
            for pgno, page in _pages(directory):
                found |= leaf_values(page, pgno)
    return found


def _pages(log: Path) -> Iterator[tuple[int, bytes]]:
    segments = list_segments(log)
    if not segments:
        return
    for extent in extents(log, segments[0][0] - 1, verify=True):
        with extent.path.open("rb") as file:
            file.seek(extent.body_offset)
            record = decode(file.read(extent.size))
        size = record.header.page_size
        for index, pgno in enumerate(memoryview(record.pgnos).cast("I")):
            yield pgno, bytes(record.images[index * size : (index + 1) * size])


def leaf_values(page: bytes, pgno: int) -> set[str]:
    """The values in the cells of a table's leaf page; what else lies in it, of rows that moved, does not
    count. Format: SQLite's file format, 1.6.
    """
    start = _FILE_HEADER_SIZE if pgno == 1 else 0
    if page[start] != _TABLE_LEAF:
        return set()
    (cells,) = _U16.unpack_from(page, start + _CELLS_AT)
    found = set()
    for number in range(cells):
        (at,) = _U16.unpack_from(page, start + _POINTERS_AT + 2 * number)
        if match := TOKEN.search(page, at, min(len(page), at + _CELL_BYTES)):
            found.add(match[0].decode())
    return found
