"""The slow reference for capture: a database rebuilt from its log alone, and what SQLite says of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from litefs._core.pagesums import page_checksum
from litefs.ltx.decoder import decode
from litefs.ltx.format import page_total
from litefs.store.reader import LogReader
from litefs.store.sums import SumsFile
from litefs.types import CHECKSUM_FLAG, START, ZERO, Position


def replay(log: Path) -> tuple[Position, dict[int, bytes], int]:
    """(position, page images, page size) after all records, checking every record's checksums on the way."""
    position, pages, page_size = ZERO, {}, 0
    sums: dict[int, int] = {}
    reader = LogReader(log)
    assert reader.seek(START), "the log does not begin at the beginning"
    shared = SumsFile(log.parent / "sums")
    tip = shared.sums.snapshot()[0]
    shared.close()
    while entries := reader.read(tip, 8 << 20):
        for entry in entries:
            with entry.open() as stream:
                record = decode(stream.read())
            header = record.header
            if header.page_size != page_size:  # a full record
                pages, sums, page_size = {}, {}, header.page_size
                assert len(record.pgnos) == 4 * page_total(page_size, header.commit)
            assert (header.min_txid, header.pre_apply) == (position.txid + 1, position.checksum)
            numbers = memoryview(record.pgnos).cast("I")
            for index, pgno in enumerate(numbers):
                pages[pgno] = bytes(record.images[index * page_size : (index + 1) * page_size])
                sums[pgno] = page_checksum(pgno, pages[pgno])
            for pgno in [pgno for pgno in pages if pgno > header.commit]:
                del pages[pgno], sums[pgno]
            total = CHECKSUM_FLAG
            for value in sums.values():
                total ^= value & ~CHECKSUM_FLAG
            assert total == record.trailer.post_apply, f"record {header.min_txid}: wrong database checksum"
            position = Position(header.max_txid, total)
    reader.close()
    return position, pages, page_size


def rebuilt(log: Path, target: Path) -> sqlite3.Connection:
    """Write the replayed database to *target* and open it; integrity is checked."""
    _, pages, page_size = replay(log)
    with open(target, "wb") as file:
        for pgno, image in pages.items():
            file.seek((pgno - 1) * page_size)
            file.write(image)
    target.with_name(target.name + "-wal").unlink(missing_ok=True)
    with closing(sqlite3.connect(target)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return sqlite3.connect(target)
