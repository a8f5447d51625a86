"""An archive made by hand, of a real SQLite database that is copied after each transaction."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

from litefs._core.pagesums import page_checksum
from litefs.backup import bundle as bundles
from litefs.backup.archive import Archive, Head, Start
from litefs.backup.directory import DirectoryTarget
from litefs.backup.layout import SNAPSHOT_LEVEL, prefix_of
from litefs.backup.target import Target
from litefs.backup.transcode import write_l0
from litefs.ltx.compactor import compact, derived_header
from litefs.ltx.decoder import Decoder
from litefs.ltx.encoder import Encoder, encode
from litefs.ltx.format import Header, lock_pgno
from litefs.store.segments import record_hash
from litefs.types import CHECKSUM_FLAG, START, Point

BEGIN = 1_700_000_000_000
STEP = 1000
"""Unix ms of transaction 0, and between two."""


class Archived:
    """``copies``: the database's bytes by TXID. ``execute`` is one transaction, ``bundle`` archives them."""

    def __init__(
        self,
        place: Path | Target,
        work: Path,
        name: str = "app.db",
        *,
        page_size: int = 4096,
        wal: bool = False,
    ) -> None:
        self.target: Target = DirectoryTarget(place) if isinstance(place, Path) else place
        self.archive = Archive(self.target, prefix_of(name), name)
        self.copies: dict[int, bytes] = {0: b""}
        self.points: dict[int, Point] = {0: START}
        self._pending: list[tuple[Point, int, bytes]] = []
        self._page_size = 0
        work.mkdir(parents=True, exist_ok=True)
        self._path = work / "work.db"
        self.db = sqlite3.connect(self._path, isolation_level=None)
        self.db.execute(f"PRAGMA page_size = {page_size}")
        if wal:
            self.db.execute("PRAGMA journal_mode = wal")
        assert self.archive.claim("test", BEGIN)
        assert self.archive.begin(Start(START, BEGIN, "new", "test"))

    @property
    def txid(self) -> int:
        return max(self.copies)

    @staticmethod
    def time(txid: int) -> int:
        """Unix ms of a transaction."""
        return BEGIN + txid * STEP

    def execute(self, *statements: str) -> int:
        """One transaction; returns its TXID."""
        for statement in statements:
            self.db.execute(statement)
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self._commit(self._path.read_bytes())

    def _commit(self, image: bytes) -> int:
        size = struct.unpack_from(">H", image, 16)[0]
        size = 65536 if size == 1 else size
        before = self.copies[self.txid] if size == self._page_size else b""
        full = size != self._page_size
        self._page_size = size
        skip = lock_pgno(size)
        pages = {
            at // size + 1: image[at : at + size]
            for at in range(0, len(image), size)
            if (full or image[at : at + size] != before[at : at + size]) and at // size + 1 != skip
        }
        txid, post = self.txid + 1, CHECKSUM_FLAG
        for at in range(0, len(image), size):
            if at // size + 1 != skip:
                post ^= page_checksum(at // size + 1, image[at : at + size]) & ~CHECKSUM_FLAG
        pre = self.points[txid - 1].checksum
        header = Header(0, size, len(image) // size, txid, txid, self.time(txid), pre if txid > 1 else 0)
        body = encode(header, struct.pack(f"={len(pages)}I", *pages), b"".join(pages.values()), post)
        point = Point(txid, post, record_hash(body, len(body)))
        self.copies[txid], self.points[txid] = image, point
        self._pending.append((point, self.time(txid), body))
        return txid

    def bundle(self, *, raw: bool = True) -> None:
        """Archive what was not yet; ``raw``: with level 0."""
        if not self._pending:
            return
        first = self._pending[0][0].txid
        assert self.archive.append(first, bundles.pack(self.points[first - 1], self._pending))
        self._pending.clear()
        if raw:
            found = self.archive.bundle(first)
            assert found is not None
            write_l0(self.archive, found)
        self.archive.set_head(Head(self.txid, self.time(self.txid) + STEP // 2))

    def merge(self, level: int) -> None:
        """Everything of the level below that is newer than this level into one file."""
        there = self.archive.files(level)
        after = there[-1].max_txid if there else 0
        files = [file for file in self.archive.files(level - 1) if file.min_txid > after]
        readers = [self.archive.open(file) for file in files]
        data = b"".join(compact([Decoder(reader.read) for reader in readers]))
        for reader in readers:
            reader.close()
        self.archive.write(level, files[0].min_txid, files[-1].max_txid, self.time(files[-1].max_txid), data)

    def snapshot(self, txid: int | None = None) -> None:
        """A level-9 file of the database after a transaction, the last by default."""
        txid = txid or self.txid
        data = b"".join(_snapshot(self.copies[txid], txid, self.time(txid)))
        self.archive.write(SNAPSHOT_LEVEL, 1, txid, self.time(txid), data)

    def close(self) -> None:
        self.db.close()


def _snapshot(image: bytes, txid: int, time: int) -> Iterator[bytes]:
    size = struct.unpack_from(">H", image, 16)[0]
    size = 65536 if size == 1 else size
    commit, skip = len(image) // size, lock_pgno(size)
    pgnos = [pgno for pgno in range(1, commit + 1) if pgno != skip]
    encoder = Encoder(derived_header(size, commit, 1, txid, time))
    yield encoder.begin()
    for start in range(0, len(pgnos), 256):
        part = pgnos[start : start + 256]
        yield encoder.add(
            struct.pack(f"={len(part)}I", *part),
            b"".join(image[(pgno - 1) * size : pgno * size] for pgno in part),
        )
    yield encoder.finish(0)


def same_database(found: bytes, expected: bytes) -> bool:
    """Whether the bytes are equal but for the journal mode, never WAL on a time-travel mount."""
    return found[:18] == expected[:18] and found[18:20] == b"\x01\x01" and found[20:] == expected[20:]
