"""The WAL format, against a WAL that SQLite wrote."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litefs.errors import ChecksumMismatch, FormatError
from litefs.sqlite.wal import (
    FRAME_HEADER,
    HEADER_SIZE,
    FrameHeader,
    WalHeader,
    frame_at,
    frame_offset,
    wal_checksum,
)


@pytest.fixture(params=[512, 4096, 65536])
def wal(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={request.param}")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(a)")
        db.execute("INSERT INTO t VALUES(zeroblob(5000))")
        return (tmp_path / "app.db-wal").read_bytes()


def test_parses_and_packs_what_sqlite_wrote(wal: bytes) -> None:
    header = WalHeader.parse(wal)
    assert header.pack() == wal[:HEADER_SIZE]
    chain = header.checksum
    count = (len(wal) - HEADER_SIZE) // (FRAME_HEADER + header.page_size)
    assert count >= 3
    for number in range(1, count + 1):
        offset = frame_offset(number, header.page_size)
        frame = FrameHeader.parse(wal[offset:])
        assert frame.pack() == wal[offset : offset + FRAME_HEADER]
        assert (frame.salt1, frame.salt2) == (header.salt1, header.salt2)
        page = wal[offset + FRAME_HEADER : frame_offset(number + 1, header.page_size)]
        chain = wal_checksum(
            page, *wal_checksum(wal[offset : offset + 8], *chain, header.big_endian), header.big_endian
        )
        assert chain == (frame.c1, frame.c2)
        assert {
            frame_at(offset + i, header.page_size) for i in (0, 1, FRAME_HEADER + header.page_size - 1)
        } == {number}
    assert frame.commit > 0


def test_both_byte_orders() -> None:
    little, big = (WalHeader(4096, 1, 2, 3, order) for order in (False, True))
    assert little.pack()[:4].hex() == "377f0682"
    assert big.pack()[:4].hex() == "377f0683"
    assert little.pack()[24:] != big.pack()[24:]
    assert [WalHeader.parse(header.pack()) for header in (little, big)] == [little, big]


@pytest.mark.parametrize(
    ("at", "error", "place"),
    [(0, FormatError, "offset 0"), (4, FormatError, "offset 4"), (10, FormatError, "offset 8"),
     (17, ChecksumMismatch, "offset 24"), (31, ChecksumMismatch, "offset 24")],
)  # fmt: skip
def test_names_what_is_wrong(at: int, error: type[FormatError], place: str) -> None:
    damaged = bytearray(WalHeader(4096, 1, 2).pack())
    damaged[at] ^= 1
    with pytest.raises(error, match=place):
        WalHeader.parse(damaged)


def test_refuses_short_input() -> None:
    with pytest.raises(FormatError, match="31 bytes"):
        WalHeader.parse(bytes(31))
    with pytest.raises(FormatError, match="23 bytes"):
        FrameHeader.parse(bytes(23))
    with pytest.raises(ValueError, match="page size 100"):
        WalHeader(100, 1, 2).pack()
    with pytest.raises(ValueError, match="multiple of 8"):
        wal_checksum(b"1234", 0, 0, False)
