"""SQLite's own files: database header, WAL, wal-index, rollback journal."""

from __future__ import annotations

import sqlite3
import struct
import tempfile
from array import array
from contextlib import closing
from pathlib import Path

from litefs._core.walcursor import NEED, WalCursor, build_frames, wal_checksum
from litefs._core.walindex import REGION_SIZE, IndexHeader, WalIndex
from litefs.errors import FormatError
from litefs.sqlite.header import DatabaseHeader
from litefs.sqlite.journal import JournalHeader, page_checksum, rollback_plan, super_journal_name
from litefs.sqlite.wal import FrameHeader, WalHeader
from tests.fuzz.target import Target, exact

_PAGE = 512
_FRAME = 24 + _PAGE


def _database(journal_mode: str) -> dict[str, bytes]:
    """Files of a small database, taken while it is open."""
    with tempfile.TemporaryDirectory(prefix="litefs-fuzz-") as directory:
        path = Path(directory, "app.db")
        with closing(sqlite3.connect(path, isolation_level=None)) as sql:
            sql.executescript(
                f"PRAGMA page_size={_PAGE}; PRAGMA journal_mode={journal_mode}; PRAGMA cache_size=2;"
            )
            sql.execute("CREATE TABLE t (v)")
            for number in range(4):
                sql.execute("INSERT INTO t VALUES (?)", (bytes([number]) * 700,))
            sql.execute("BEGIN")
            for number in range(9):
                sql.execute("INSERT INTO t VALUES (?)", (bytes([number]) * 700,))
            sql.execute("UPDATE t SET v = zeroblob(650)")
            files = {file.name: file.read_bytes() for file in Path(directory).iterdir()}
            sql.execute("ROLLBACK")
        return files


_WAL_FILES = _database("WAL")
_JOURNAL_FILES = _database("PERSIST")

# --- database header


def _run_header(data: bytes) -> None:
    header = DatabaseHeader.parse(data)
    assert 0 <= header.trusted_page_count(len(data)) <= 0xFFFFFFFF


# --- WAL


def _built_wal(*, big_endian: bool) -> bytes:
    header = WalHeader(_PAGE, 7, 8, big_endian=big_endian).pack()
    c1, c2 = struct.unpack(">2I", header[24:])
    wal = header
    for pgnos, commit in (([1, 2], 2), ([2], 2), ([3, 1, 3], 3), ([4], 0)):
        images = b"".join(bytes([pgno]) * _PAGE for pgno in pgnos)
        frames, c1, c2 = build_frames(array("I", pgnos), images, _PAGE, 7, 8, c1, c2, commit, big_endian)
        wal += frames
    return wal


def rechain(data: bytes) -> bytes:
    """With the right checksums in header and frames; the salts of the frames stay as they are."""
    if len(data) < 32:
        return data
    out = bytearray(data)
    big = bool(out[3] & 1)
    c = wal_checksum(bytes(out[:24]), 0, 0, big)
    out[24:32] = struct.pack(">2I", *c)
    size = int.from_bytes(out[8:12], "big")
    if not 512 <= size <= 65536 or size % 8:
        return bytes(out)
    for at in range(32, len(out) - size - 23, 24 + size):
        c = wal_checksum(bytes(out[at : at + 8] + out[at + 24 : at + 24 + size]), *c, big)
        out[at + 16 : at + 24] = struct.pack(">2I", *c)
    return bytes(out)


def _answer(cursor: WalCursor, result: int, file: bytes) -> int:
    """Serve what the cursor asks for from the file as it is."""
    asked = 0
    while result == NEED:
        offset, length = cursor.want()
        assert length > 0
        asked += 1
        assert asked <= len(file) // 512 + 8, "the cursor asks on and on"
        result = cursor.supply(offset, exact(file[offset : offset + length]))
    return result


def _chain(file: bytes) -> tuple[int, int]:
    """(valid frames, commits) of a WAL, judged at once."""
    cursor = WalCursor()
    cursor.reset(file[:32])
    commits = _answer(cursor, cursor.propose(32, b"", len(file)), file)
    return cursor.valid_frames, commits


def _run_wal(data: bytes) -> None:
    """The first bytes say in which pieces, and how far apart, the rest of the file is written."""
    script, wal = data[:16], data[16:]
    try:
        WalHeader.parse(wal)
        parsed = True
    except FormatError:
        parsed = False
    cursor = WalCursor(1 << 12)
    try:
        cursor.reset(wal[:32])
    except ValueError:
        assert not parsed
        raise
    assert parsed
    FrameHeader.parse(wal)
    file = bytearray(wal[:32])
    for at in range(0, len(script) - 1, 2):
        step, verdict = script[at], script[at + 1]
        start = 32 + (len(file) - 32) * (verdict & 15) // 15 + (step & 3)
        piece = wal[start : start + 24 + step * 40]
        _answer(cursor, cursor.propose(start, exact(piece), len(file)), bytes(file))
        found = cursor.take()
        if found is not None:
            assert len(found.frame_pgnos) // 4 == found.last_frame - found.first_frame + 1
            assert found.images is None or len(found.images) * 4 == len(found.pgnos) * cursor.page_size
        if verdict & 0x80:
            cursor.reject()
        else:
            if piece:
                file.extend(bytes(max(0, start - len(file))))
                file[start : start + len(piece)] = piece
            cursor.accept()
    commits = _answer(cursor, cursor.propose(len(file), b"", len(file)), bytes(file))
    assert (cursor.valid_frames, commits) == _chain(bytes(file))
    cursor.accept()
    while (found := cursor.take()) is not None:
        cursor.advance(found.last_frame)


# --- wal-index


def _built_index(frames: int) -> bytes:
    regions = bytearray(REGION_SIZE * (1 if frames <= 4062 else 2))
    index = WalIndex(regions)
    index.append(1, array("I", (1 + n * 7 % 50 for n in range(frames))))
    index.publish(IndexHeader(page_size=_PAGE, mx_frame=frames, n_page=50, salt=(1, 2)))
    index.release()
    return bytes(regions)


def reindex(data: bytes) -> bytes:
    """With the right checksum in the first copy of the header, and a second copy equal to it."""
    if len(data) < 96:
        return data
    c1, c2 = wal_checksum(data[:40], 0, 0, False)
    header = data[:40] + struct.pack("=2I", c1, c2)
    return header + header + data[96:]


def _run_index(data: bytes) -> None:
    regions = exact(data.ljust(max(1, -(-len(data) // REGION_SIZE)) * REGION_SIZE, b"\0"))
    index = WalIndex(regions)
    try:
        header = index.header()
        last = index.capacity if header is None else min(header.mx_frame, index.capacity)
        if header is not None:
            assert header.page_size == 0 or IndexHeader.parse(header.pack())[:8] == header[:8]
        for mark in range(5):
            index.read_mark(mark)
        pgnos, frames = index.newest(last)
        numbers = memoryview(pgnos).cast("I")
        for pgno in (0, 1, 49, 0xFFFFFFFF, *numbers[:20]):
            assert 0 <= index.find(pgno, last) <= last
        assert len(frames) == len(pgnos)
        index.trim(last)
        if last < index.capacity:
            index.append(last + 1, array("I", range(1, min(40, index.capacity - last + 1))))
        assert header is None or header.mx_frame <= index.capacity or _beyond(index, header.mx_frame)
    finally:
        index.release()


def _beyond(index: WalIndex, frame: int) -> bool:
    """A frame that the map does not hold is refused by every method."""
    for use in (lambda: index.find(1, frame), lambda: index.newest(frame), lambda: index.trim(frame)):
        try:
            use()
        except ValueError as error:
            if "outside" not in str(error):
                raise
        else:
            return False
    return True


# --- rollback journal


def _built_journal() -> bytes:
    """Two segments and the name of a super-journal, as a spilled ATTACH transaction leaves."""
    out = bytearray()
    for nonce, pgnos in ((77, (1, 2)), (78, (3,))):
        out.extend(bytes(-len(out) % 512))
        out += JournalHeader(len(pgnos), nonce, 5, 512, _PAGE).pack().ljust(512, b"\0")
        for pgno in pgnos:
            page = bytes([pgno]) * _PAGE
            out += pgno.to_bytes(4, "big") + page + page_checksum(nonce, page).to_bytes(4, "big")
    name = b"/data/app.db-mj0123456789"
    out += struct.pack(">I", 0x40000000 // _PAGE + 1) + name
    out += struct.pack(">2I", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7")
    return bytes(out)


def resum(data: bytes) -> bytes:
    """With the right checksum in every record of the first segment."""
    out = bytearray(data)
    if len(out) < 28:
        return data
    nonce, sector, size = (int.from_bytes(out[at : at + 4], "big") for at in (12, 20, 24))
    if not 512 <= size <= 65536 or not 28 <= sector <= 65536:
        return data
    for at in range(sector, len(out) - size - 7, size + 8):
        out[at + 4 + size : at + 8 + size] = page_checksum(nonce, out[at + 4 : at + 4 + size]).to_bytes(
            4, "big"
        )
    return bytes(out)


def _run_journal(data: bytes) -> None:
    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 <= length <= 65544
        return data[offset : offset + length]

    name = super_journal_name(read, len(data))
    assert name is None or 0 < len(name) <= 512
    for live in (False, True):
        plan = rollback_plan(read, len(data), page_size=_PAGE, live=live)
        if plan is None:
            continue
        count = 0
        for pgno, image in plan.records:
            assert 0 < pgno <= plan.initial_pages
            assert len(image) == plan.page_size
            count += 1
        assert count * (plan.page_size + 8) <= len(data)


_CUTS = (bytes([40, 15] * 8), bytes([0, 15, 13, 15, 5, 15, 80, 7, 1, 143, 200, 3, 255, 15, 9, 141]))
_WALS = (
    _WAL_FILES["app.db-wal"][: 32 + 12 * _FRAME],
    _built_wal(big_endian=False),
    _built_wal(big_endian=True),
)


TARGETS = (
    Target(
        "database-header",
        (_WAL_FILES["app.db"][:100], _JOURNAL_FILES["app.db"][:512]),
        _run_header,
        (FormatError,),
        "database header",
    ),
    Target(
        "wal",
        tuple(cuts + wal for cuts in _CUTS for wal in _WALS),
        _run_wal,
        (ValueError,),
        "WAL header",
        lambda data: data[:16] + rechain(data[16:]),
    ),
    Target(
        "wal-index",
        (_WAL_FILES["app.db-shm"], _built_index(30), _built_index(5000)),
        _run_index,
        (ValueError,),
        "wal-index",
        reindex,
    ),
    Target("journal", (_JOURNAL_FILES["app.db-journal"], _built_journal()), _run_journal, (), "", resum),
)
