"""Archives in a directory, read in plain Python from the description of the format and nothing of litefs/.

Slow, and strict: every checksum is computed from its definition, every length and order is asserted. It
restores as ``litestream restore`` v0.5.16 does, and stands in for it where there is none.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import lz4.frame

from tests.kernels.reference_crc64 import FLAG, crc64, lock_pgno
from tests.kernels.reference_ltx import read_uvarint, uvarint

NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx")
HEADER = struct.Struct(">4sIIIQQqQqqIIQ20s")


class Unrestorable(Exception):
    """As litestream says: no matching backup files."""


@dataclass(frozen=True)
class Ltx:
    """One file, decoded and verified."""

    flags: int
    page_size: int
    commit: int
    min_txid: int
    max_txid: int
    timestamp: int
    pre_apply: int
    wal_offset: int
    wal_size: int
    salts: tuple[int, int]
    node_id: int
    pages: tuple[tuple[int, bytes], ...]
    post_apply: int


@dataclass(frozen=True)
class File:
    """One file by its name and mtime (Unix ms)."""

    level: int
    min_txid: int
    max_txid: int
    created: int
    path: Path


def frame(data: bytes, at: int, page_size: int) -> tuple[int, bytes, bytes, int]:
    """(page number, what is summed of the head, page, where the next frame begins)."""
    pgno, flags = struct.unpack_from(">IH", data, at)
    if flags == 1:
        (size,) = struct.unpack_from(">I", data, at + 6)
        head, start = data[at : at + 10], at + 10
        page = lz4.block.decompress(data[start : start + size], uncompressed_size=page_size)
        end = start + size
    else:
        assert flags == 0, f"page flags {flags:#x}"
        head, start = data[at : at + 6], at + 6
        assert data[start + 4] & 4, "an LZ4 frame without a checksum of its content"
        decompressor = lz4.frame.LZ4FrameDecompressor()
        page = decompressor.decompress(data[start:])
        assert decompressor.eof
        end = len(data) - len(decompressor.unused_data or b"")
    assert len(page) == page_size
    return pgno, head, page, end


@functools.lru_cache(4096)
def read_ltx(data: bytes) -> Ltx:
    """Decode a file, and verify all that can be."""
    magic, flags, page_size, commit, first, last, time, pre, *wal, _ = HEADER.unpack_from(data)
    assert magic == b"LTX1"
    assert flags & ~2 == 0
    assert 1 <= first <= last
    crc, at, pages, index = crc64(data[:100]), 100, [], b""
    while data[at : at + 6] != bytes(6):
        pgno, head, page, end = frame(data, at, page_size)
        assert (pages[-1][0] if pages else 0) < pgno <= commit
        assert pgno != lock_pgno(page_size)
        crc = crc64(page, crc64(head, crc))
        index += uvarint(pgno) + uvarint(at) + uvarint(end - at)
        pages.append((pgno, page))
        at = end
    if first == 1:
        assert len(pages) == commit - (lock_pgno(page_size) <= commit)
    index += b"\0"
    tail = bytes(6) + index + len(index).to_bytes(8, "big")
    assert data[at : at + len(tail)] == tail, "page index"
    assert len(data) == at + len(tail) + 16
    post, checksum = struct.unpack(">QQ", data[-16:])
    assert checksum == FLAG | crc64(tail + data[-16:-8], crc), "file checksum"
    if flags & 2:
        assert (pre, post) == (0, 0)
    offset, size, salt1, salt2, node = wal
    header = (flags, page_size, commit, first, last, time, pre, offset, size, (salt1, salt2), node)
    return Ltx(*header, tuple(pages), post)


def read_index(data: bytes) -> list[tuple[int, int, int]]:
    """(page number, offset, size) from the index at the end alone."""
    (length,) = struct.unpack(">Q", data[-24:-16])
    at, found = len(data) - 24 - length, []
    while data[at]:
        pgno, at = read_uvarint(data, at)
        offset, at = read_uvarint(data, at)
        size, at = read_uvarint(data, at)
        found.append((pgno, offset, size))
    assert at == len(data) - 25
    return found


def scan(root: Path) -> list[File]:
    """All files of a timeline in a directory, whatever lies beside them."""
    found = []
    for path in root.glob("ltx/*/*"):
        match = NAME.fullmatch(path.name)
        if match:
            created = path.stat().st_mtime_ns // 1_000_000
            found.append(File(int(path.parent.name), int(match[1], 16), int(match[2], 16), created, path))
    return found


def plan(files: list[File], txid: int | None = None, before: int | None = None) -> list[File]:
    """The files from which litestream restores the latest state, that of ``txid``, or before ``before``."""

    def may(file: File) -> bool:
        return (txid is None or file.max_txid <= txid) and (before is None or file.created < before)

    chosen = sorted((f for f in files if f.level == 9 and may(f)), key=lambda f: f.path.name)[-1:]
    assert all(f.min_txid == 1 for f in chosen)
    cur = chosen[0].max_txid if chosen else 0
    rest = [f for f in files if f.level < 9]
    while True:
        next_ = [f for f in rest if f.min_txid <= cur + 1 and f.max_txid > cur and may(f)]
        if not next_:
            break
        chosen.append(max(next_, key=lambda f: (f.max_txid, -f.min_txid, f.level)))
        cur = chosen[-1].max_txid
    beyond = any(f.max_txid > cur for f in files)
    if not chosen or (txid is not None and cur != txid) or (txid is None and before is None and beyond):
        raise Unrestorable(f"TXID {txid}, before {before}: got to {cur}")
    return chosen


def apply(image: bytes, ltx: Ltx) -> bytes:
    """The database file after one LTX file."""
    size = ltx.page_size
    out = bytearray(image[: ltx.commit * size].ljust(ltx.commit * size, b"\0"))
    for pgno, page in ltx.pages:
        out[(pgno - 1) * size : pgno * size] = page
    return bytes(out)


def restore(root: Path, txid: int | None = None, before: int | None = None) -> bytes:
    """What litestream would restore."""
    image, page_size = b"", 0
    for number, file in enumerate(plan(scan(root), txid, before)):
        ltx = read_ltx(file.path.read_bytes())
        assert (ltx.min_txid, ltx.max_txid) == (file.min_txid, file.max_txid)
        assert ltx.timestamp == file.created
        assert number == 0 or ltx.page_size == page_size, "litestream refuses a change of the page size"
        page_size = ltx.page_size
        image = apply(image, ltx)
    return image


def bundled(root: Path) -> dict[int, tuple[int, bytes]]:
    """(time, record) of every TXID, from our own bundles beside the files."""
    found = {}
    for path in sorted(root.glob("litefs/log/*")):
        data = path.read_bytes()
        magic, count, flags = struct.unpack_from("<8sII", data)
        assert magic == b"LFSBNDL1"
        for number in range(count):
            txid, time, checksum, digest, offset, size = struct.unpack_from("<QqQQQQ", data, 64 + 48 * number)
            if flags & 1:
                record = (root / "litefs" / "big" / f"{txid:016x}-{digest:016x}").read_bytes()
            else:
                record = data[offset : offset + size]
            assert read_ltx(record).post_apply == checksum
            found[txid] = time, record
    return found


def restore_with_bundles(root: Path, txid: int) -> bytes:
    """The state at any TXID, from whatever there is: the same way, with each record as a file of its own."""
    files = [f for f in scan(root) if f.max_txid <= txid]
    snapshots = sorted((f for f in files if f.level == 9), key=lambda f: f.max_txid)
    log = {n: record for n, (_, record) in bundled(root).items() if n <= txid}
    image, cur = b"", 0
    if snapshots:
        image, cur = apply(b"", read_ltx(snapshots[-1].path.read_bytes())), snapshots[-1].max_txid
    while cur < txid:
        some = [f for f in files if f.level < 9 and f.min_txid <= cur + 1 and f.max_txid > cur]
        if some:
            best = max(some, key=lambda f: f.max_txid)
            image, cur = apply(image, read_ltx(best.path.read_bytes())), best.max_txid
        elif cur + 1 in log:
            image, cur = apply(image, read_ltx(log[cur + 1])), cur + 1
        else:
            raise Unrestorable(f"TXID {txid}: got to {cur}")
    return image
