"""The bytes of the archive's format, rule by rule, against files that are checked in (golden/README.md).

What single records may hold is in tests/ltx, the checksums' definition in tests/kernels.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import struct
from array import array
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from litefs.backup.archive import Archive
from litefs.backup.bundle import parse
from litefs.backup.directory import DirectoryTarget
from litefs.backup.layout import prefix_of
from litefs.backup.merge import merge
from litefs.backup.transcode import write_l0
from litefs.errors import ChecksumMismatch, FormatError
from litefs.ltx import Decoder, Header, decode, encode, index_of, read_page
from litefs.ltx.compactor import compact
from tests.kernels import reference_ltx as reference
from tests.kernels.reference_crc64 import crc64, database_checksum
from tests.support import litestream, slow_archive

GOLDEN = Path(__file__).parent / "golden"
OURS, LITESTREAM, OTHER = GOLDEN / "ours", GOLDEN / "litestream", GOLDEN / "other"
OUR_FILES, THEIR_FILES = (
    sorted(root.glob("ltx/*/*.ltx"), key=lambda p: p.relative_to(root)) for root in (OURS, LITESTREAM)
)
ONE_PAGE = next(path for path in OUR_FILES if len(index_of(path.read_bytes())) == 1)
ALL_FILES = [*OUR_FILES, *THEIR_FILES, OTHER / "frames-v0.5.1.ltx"]


@pytest.fixture(params=["ours", "litestream"])
def timeline(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an archive, with the times of its files, which no repository keeps."""
    root = tmp_path / "archive"
    shutil.copytree(GOLDEN / request.param, root)
    for path in root.glob("ltx/*/*"):
        time = Header.unpack(path.read_bytes()).timestamp * 1_000_000
        os.utime(path, ns=(time, time))
    return root


def opened(data: bytes) -> Decoder:
    return Decoder(io.BytesIO(data).read)


def level(root: Path, number: int) -> list[Path]:
    return sorted(root.glob(f"ltx/{number}/*"))


# -- reference/litestream-pitr.md, section 3 -------------------------------------------------------------


def test_header_fields_are_where_they_belong() -> None:
    """100 bytes, big-endian; every field of it has a value of its own here."""
    raw = struct.pack(
        ">4sIIIQQqQqqIIQ20x", b"LTX1", 2, 1024, 7, 0x11, 0x22, 0x33, 0, 0x44, 0x55, 0x66, 0x77, 0x88
    )
    header = Header(2, 1024, 7, 0x11, 0x22, 0x33, 0, 0x44, 0x55, 0x66, 0x77, 0x88)
    assert len(raw) == 100
    assert header.pack() == raw
    assert Header.unpack(raw) == header
    first = Header.unpack(THEIR_FILES[1].read_bytes())  # from level 0: salts and WAL position are set
    assert (first.flags, first.page_size, first.min_txid, first.node_id) == (2, 512, 2, 0)
    assert first.wal_offset >= 32
    assert first.salt1
    assert first.salt2


@pytest.mark.parametrize("flags", [1, 3, 4, 0x80000002])
def test_no_flag_but_no_checksum(flags: int) -> None:
    data = bytearray(OUR_FILES[0].read_bytes())
    data[4:8] = flags.to_bytes(4, "big")
    with pytest.raises(FormatError, match="unknown LTX flags"):
        decode(bytes(data))


@pytest.mark.parametrize("name", ["raw-v0.3.14.ltx", "lz4-v0.3.14.ltx"])
def test_the_format_before_is_refused_and_not_misread(name: str) -> None:
    """It has the same magic and no version."""
    data = (OTHER / name).read_bytes()
    assert data[:4] == b"LTX1"
    with pytest.raises(FormatError):
        decode(data)
    with pytest.raises(FormatError):
        list(opened(data))


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(GOLDEN)))
def test_every_file_is_read_as_the_reference_reads_it(path: Path) -> None:
    """Page frames of both formats, end of pages, index, trailer; whole, in pieces, and page by page."""
    data = path.read_bytes()
    ltx = slow_archive.read_ltx(data)
    images = b"".join(page for _, page in ltx.pages)
    whole = decode(data)
    assert (whole.images, list(array("I", whole.pgnos))) == (images, [n for n, _ in ltx.pages])
    decoder = opened(data)
    assert b"".join(bytes(some) for _, some in decoder) == images
    assert decoder.trailer == whole.trailer
    assert index_of(data) == slow_archive.read_index(data)
    for (pgno, offset, size), (_, page) in zip(index_of(data), ltx.pages, strict=True):
        assert read_page(data, offset, size, ltx.page_size, pgno) == page
    for at in (len(data) - 1, len(data) - 30):  # file checksum, index
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(FormatError):
            decode(bytes(damaged))


def test_what_we_write_has_blocks_and_what_ltx_0_5_1_wrote_has_frames() -> None:
    for path in [*OUR_FILES, *THEIR_FILES]:
        data = path.read_bytes()
        assert {data[offset + 5] for _, offset, _ in index_of(data)} == {1}
    old = (OTHER / "frames-v0.5.1.ltx").read_bytes()
    entries = index_of(old)
    assert {old[offset + 5] for _, offset, _ in entries} == {0}
    for _, offset, size in entries:
        assert old[offset + 10] & 4  # the frame says that a checksum of its content follows
        damaged = bytearray(old)
        damaged[offset + size - 1] ^= 1
        with pytest.raises(FormatError, match="LZ4 frame"):
            decode(bytes(damaged))
    new = b"".join(compact([opened(old)]))
    assert {new[offset + 5] for _, offset, _ in index_of(new)} == {1}
    assert decode(new).images == decode(old).images


def test_a_block_may_be_literals_alone() -> None:
    """As ``data.compress: false`` writes; copied as it is."""
    source = decode(OUR_FILES[0].read_bytes())
    stored = encode(source.header, source.pgnos, source.images, 0, compress=False)
    assert decode(stored) == source or decode(stored).images == source.images
    slow_archive.read_ltx(stored)
    assert reference.blocks(b"".join(compact([opened(stored)]))) == reference.blocks(stored)


def test_the_end_of_pages_and_the_index_to_the_byte() -> None:
    """Six zeros, triplets of uvarints, 0, and the length of all that as 8 bytes."""
    data = ONE_PAGE.read_bytes()
    ((pgno, offset, size),) = index_of(data)
    index = reference.uvarint(pgno) + reference.uvarint(100) + reference.uvarint(size) + b"\0"
    end = bytes(6) + index + struct.pack(">QQ", len(index), 0)
    assert offset == 100
    assert data[100 + size : -8] == end


def test_the_file_checksum_covers_pages_before_compression() -> None:
    data = ONE_PAGE.read_bytes()
    ((pgno, offset, size),) = index_of(data)
    page = read_page(data, offset, size, 512, pgno)
    crc = crc64(data[100 + size : -8], crc64(page, crc64(data[:110])))
    assert int.from_bytes(data[-8:], "big") == 1 << 63 | crc
    damaged = bytearray(data)
    damaged[-1] ^= 1
    with pytest.raises(ChecksumMismatch):
        decode(bytes(damaged))


def test_the_rolling_checksum_of_every_transaction_is_in_its_bundle() -> None:
    log = slow_archive.bundled(OURS)
    assert list(log) == list(range(1, 35))
    image = b""
    for _, record in log.values():
        ltx = slow_archive.read_ltx(record)
        image = slow_archive.apply(image, ltx)
        pages = {n + 1: image[n * ltx.page_size : (n + 1) * ltx.page_size] for n in range(ltx.commit)}
        assert ltx.post_apply == database_checksum(pages, ltx.page_size)


# -- section 7: what litestream needs of each file -------------------------------------------------------


@pytest.mark.parametrize("path", OUR_FILES, ids=lambda p: str(p.relative_to(OURS)))
def test_flags_checksums_wal_fields_name_and_time(path: Path) -> None:
    """7.2: flag 2 and no checksums of the database. 7.3: WAL offset 32, else nothing of a WAL. 7.4: no node,
    the name's TXIDs, the time of the last of them."""
    ltx = slow_archive.read_ltx(path.read_bytes())
    assert (ltx.flags, ltx.pre_apply, ltx.post_apply) == (2, 0, 0)
    assert (ltx.wal_offset, ltx.wal_size, ltx.salts, ltx.node_id) == (32, 0, (0, 0), 0)
    match = re.fullmatch(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx", path.name)
    assert match
    assert (ltx.min_txid, ltx.max_txid) == (int(match[1], 16), int(match[2], 16))
    assert ltx.timestamp == slow_archive.bundled(OURS)[ltx.max_txid][0]


def test_raw_files_are_made_of_bundles_to_the_byte(tmp_path: Path) -> None:
    """One for each transaction up to 8; of more, one for all but the last, and one for it."""
    shutil.copytree(OURS / "litefs", tmp_path / "again" / "litefs")
    archive = Archive(DirectoryTarget(tmp_path / "again"), "")
    for found in archive.bundles(1):
        write_l0(archive, found)
    golden, made = level(OURS, 0), level(tmp_path / "again", 0)
    assert [path.name for path in made] == [path.name for path in golden]
    for ours, theirs in zip(made, golden, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
        assert ours.stat().st_mtime_ns == Header.unpack(theirs.read_bytes()).timestamp * 1_000_000
    fronts = [parse(path.read_bytes()) for path in sorted(OURS.glob("litefs/log/*"))]
    assert [len(front.entries) for front in fronts] == [1, 8, 9, 3, 1, 3, 4, 3, 2]
    assert [front.big for front in fronts].count(True) == 1
    spans = {(Header.unpack(p.read_bytes()).min_txid, Header.unpack(p.read_bytes()).max_txid) for p in golden}
    assert {(1, 1), (2, 2), (9, 9), (10, 17), (18, 18)} < spans


@pytest.mark.parametrize("target", [1, 2])
def test_compacted_files_are_made_of_the_level_below_to_the_byte(target: int, tmp_path: Path) -> None:
    """The newest image of each page, none beyond the last size; the last input's time."""
    for path in level(OURS, target):
        wanted = Header.unpack(path.read_bytes())
        inputs = [
            data
            for data in (file.read_bytes() for file in level(OURS, target - 1))
            if wanted.min_txid <= Header.unpack(data).min_txid <= wanted.max_txid
        ]
        assert len(inputs) > 1
        assert b"".join(merge([partial(io.BytesIO, data) for data in inputs], tmp_path)) == path.read_bytes()


def test_the_newest_raw_file_is_of_one_transaction() -> None:
    last = Header.unpack(level(OURS, 0)[-1].read_bytes())
    assert last.min_txid == last.max_txid


def test_times_never_decrease() -> None:
    for number in (0, 1, 2, 9):
        times = [Header.unpack(path.read_bytes()).timestamp for path in level(OURS, number)]
        assert times == sorted(times)


def test_the_first_file_has_all_pages() -> None:
    """7.5: from TXID 1 on, or a snapshot ``1-N``; of every page up to the size."""
    for path in [level(OURS, 0)[0], *level(OURS, 9), *level(LITESTREAM, 9)]:
        ltx = slow_archive.read_ltx(path.read_bytes())
        assert ltx.min_txid == 1
        assert [n for n, _ in ltx.pages] == list(range(1, ltx.commit + 1))


@pytest.mark.parametrize("root", [OURS, LITESTREAM], ids=["ours", "litestream"])
def test_growth_is_covered(root: Path) -> None:
    """7.6: a file has every page that the database grew by."""
    size = grown = 0
    for path in level(root, 0):
        ltx = slow_archive.read_ltx(path.read_bytes())
        assert {n for n, _ in ltx.pages} >= set(range(size + 1, ltx.commit + 1))
        grown += ltx.commit > size
        size = ltx.commit
    assert grown


def test_no_file_spans_a_change_of_the_page_size_and_a_snapshot_follows() -> None:
    log = slow_archive.bundled(OURS)
    sizes = {txid: slow_archive.read_ltx(record).page_size for txid, (_, record) in log.items()}
    ((before, changed),) = [pair for pair in itertools.pairwise(sizes) if sizes[pair[0]] != sizes[pair[1]]]
    assert changed in {int(path.name, 16) for path in OURS.glob("litefs/log/*")}
    full = slow_archive.read_ltx(log[changed][1])
    assert [n for n, _ in full.pages] == list(range(1, full.commit + 1))
    for path in OUR_FILES:
        header = Header.unpack(path.read_bytes())
        if path.parent.name != "9":
            assert not header.min_txid <= before < changed <= header.max_txid
        assert header.page_size == sizes[header.max_txid]
    assert any(Header.unpack(p.read_bytes()).max_txid >= changed for p in level(OURS, 9))


def test_transactions_are_contiguous() -> None:
    """7.8: in a level, and from record to record by their checksums."""
    for number in (0, 1, 2):
        headers = [Header.unpack(path.read_bytes()) for path in level(OURS, number)]
        assert all(a.max_txid + 1 == b.min_txid for a, b in itertools.pairwise(headers))
    records = [slow_archive.read_ltx(record) for _, record in slow_archive.bundled(OURS).values()]
    assert all(a.post_apply == b.pre_apply for a, b in itertools.pairwise(records))


def test_names_are_safe_in_urls() -> None:
    """7.9."""
    for name in ("app.db", "my app.db", "ü%20.db", "a/b?c#d"):
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", prefix_of(name, 3))


def test_reserved_bytes_are_ignored_yet_summed() -> None:
    data = ONE_PAGE.read_bytes()
    marked = bytearray(data)
    marked[80:100] = bytes(range(1, 21))
    with pytest.raises(ChecksumMismatch):
        decode(bytes(marked))
    ((pgno, offset, size),) = index_of(data)
    page = read_page(data, offset, size, 512, pgno)
    crc = crc64(data[100 + size : -8], crc64(page, crc64(bytes(marked[:110]))))
    marked[-8:] = (1 << 63 | crc).to_bytes(8, "big")
    assert decode(bytes(marked)).images == page
    assert b"".join(compact([opened(bytes(marked))])) == b"".join(compact([opened(data)]))


# -- whole archives --------------------------------------------------------------------------------------


def test_restored_archives_are_what_they_were(timeline: Path, tmp_path: Path) -> None:
    """By litestream where there is one; what it restored once, and what the database held."""
    expected = json.loads((timeline / "restored.json").read_text())
    litestream.verify(timeline)
    (timeline / "ltx" / "0" / "0000000000000001-0000000000000001.ltx.tmp").write_bytes(b"half a file")
    (timeline / "ltx" / "9" / "notes").write_bytes(b"")
    ends, out = {file.max_txid for file in slow_archive.scan(timeline)}, tmp_path / "restored.db"
    for what, digest in expected.items():
        kind, _, value = what.rpartition(" ")
        if kind == "before":
            image = litestream.restore(timeline, out, before=int(value))
        elif what == "latest" or int(value, 16) == max(ends):
            image = litestream.restore(timeline, out, check=what == "latest")  # ours is of noise
        elif kind == "txid":
            image = litestream.restore(timeline, out, txid=int(value, 16))
        else:
            image = slow_archive.restore_with_bundles(timeline, int(value, 16))
        assert sha256(image).hexdigest() == digest, what


def test_we_compact_litestreams_files_as_it_does(tmp_path: Path) -> None:
    """But for the WAL's fields and the blocks: the same pages, sizes, TXIDs and times, whatever the level."""
    for path in level(LITESTREAM, 1):
        theirs = slow_archive.read_ltx(path.read_bytes())
        inputs = [
            data
            for data in (file.read_bytes() for file in level(LITESTREAM, 0))
            if theirs.min_txid <= Header.unpack(data).min_txid <= theirs.max_txid
        ]
        ours = slow_archive.read_ltx(
            b"".join(merge([partial(io.BytesIO, data) for data in inputs], tmp_path))
        )
        assert (theirs.wal_offset, theirs.wal_size, theirs.salts) == (0, 0, (0, 0))
        assert ours.wal_offset == 32
        for name in ("flags", "page_size", "commit", "min_txid", "max_txid", "timestamp", "pages"):
            assert getattr(ours, name) == getattr(theirs, name), name
