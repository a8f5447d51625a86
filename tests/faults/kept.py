"""The rows that a node keeps of transactions it gave up: in the log segments under ``DATA/lost/``."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from pathlib import Path

from litefs.ltx.decoder import decode
from litefs.store.paths import DataDir, encode_name
from litefs.store.segments import Extent, extents, list_segments
from litefs.types import Position
from tests.faults.history import TOKEN

_TABLE_LEAF = 13
_U16 = struct.Struct(">H")
_CELLS_AT, _POINTERS_AT = 3, 8
_CELL_BYTES = 80
"""As much of a cell as holds one of our values: the tables' other columns are small."""
_FILE_HEADER_SIZE = 100


def history(data: Path, name: str) -> set[Position]:
    """The positions that the present log of database ``name`` goes through. Raises LogCorrupt."""
    return {position for position, _ in _records(DataDir(data).database_dir(name).log)}


def given_up(data: Path, name: str, remaining: Container[Position]) -> set[str]:
    """Every value of ours in rows of the pages that a node's kept transactions of database ``name`` wrote,
    without those transactions that led to a position in ``remaining``: a segment is kept whole.

    A page has other rows as well, so not every value among them was written by them. Raises LogCorrupt,
    FormatError.
    """
    found: set[str] = set()
    lost = data / "lost"
    for directory in sorted(lost.iterdir()) if lost.is_dir() else []:
        if directory.name.startswith(f"{encode_name(name)}-"):
            for position, extent in _records(directory):
                if position not in remaining:
                    for pgno, page in _pages(extent):
                        found |= leaf_values(page, pgno)
    return found


def _records(log: Path) -> Iterator[tuple[Position, Extent]]:
    """The records of a log, and where each leads to."""
    segments = list_segments(log)
    if segments:
        for extent in extents(log, segments[0][0] - 1, verify=True):
            yield Position(extent.txid_max, extent.post_apply), extent


def _pages(extent: Extent) -> Iterator[tuple[int, bytes]]:
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
