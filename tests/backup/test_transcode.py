"""Bundles to raw files."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from litefs.backup import bundle
from litefs.backup.archive import Archive
from litefs.backup.directory import DirectoryTarget
from litefs.backup.transcode import SINGLE_MAX, l0_big, l0_files, l0_spans, write_l0
from litefs.errors import ArchiveCorrupt, FormatError
from litefs.ltx import Header
from litefs.types import CHECKSUM_FLAG
from tests.kernels import reference_ltx as reference
from tests.support.histories import History, applied


def restored(files: list[tuple[int, int, int, bytes]], image: bytes = b"") -> bytes:
    for first, last, time, data in files:
        header = Header.unpack(data)
        assert header == Header(2, header.page_size, header.commit, first, last, time, 0, wal_offset=32)
        pages, post, _ = reference.decode(data)
        assert post == 0
        image = applied(image, header.page_size, pages, header.commit)
    return image


@pytest.mark.parametrize("count", [1, SINGLE_MAX, SINGLE_MAX + 1, 60])
def test_files_lead_where_the_records_lead(count: int) -> None:
    for seed in range(10):
        history = History(seed)
        steps = history.add(count + 5)
        first, records = history.pack(1, count)
        files = list(l0_files(first, records))
        assert [file[:2] for file in files] == l0_spans(first)
        assert [file[:2] for file in files] == (
            [(n, n) for n in range(1, count + 1)] if count <= 8 else [(1, count - 1), (count, count)]
        )
        assert [file[2] for file in files] == [steps[last - 1].time for _, last, _, _ in files]
        image = restored(files)
        assert image == steps[count - 1].image
        later = list(l0_files(*history.pack(count + 1, count + 5)))
        assert restored(later, image) == steps[-1].image
        assert list(l0_files(*history.pack(1, count))) == files


def test_a_record_that_is_not_the_bundles_is_refused() -> None:
    history = History(1)
    history.add(4)
    front, records = history.pack(2, 3)
    for wrong in ([records[1], records[0]], [records[0], history.steps[3].record]):
        with pytest.raises(ArchiveCorrupt, match="is not that of"):
            list(l0_files(front, wrong))
    damaged = bytearray(records[0])
    damaged[120] ^= 255
    with pytest.raises(FormatError):
        list(l0_files(front, [bytes(damaged), records[1]]))


def test_no_file_spans_a_change_of_the_page_size() -> None:
    history = History(2)
    history.add(9)
    changed = history.resize(1024)
    history.add(3)
    with pytest.raises(ArchiveCorrupt, match=r"page size changes from 512 to 1024 at transaction 0*a"):
        list(l0_files(*history.pack(1, 13)))
    (file,) = l0_files(*history.pack(10, 10))
    assert restored([file]) == changed.image
    assert restored(list(l0_files(*history.pack(10, 13)))) == history.steps[-1].image


def test_a_big_record_is_the_same_file_in_pieces() -> None:
    history = History(3)
    step = history.add(2)[1]
    front = bundle.parse(bundle.pack_big(history.steps[0].point, step.point, step.time, len(step.record)))
    first, last, time, pieces = l0_big(front, io.BytesIO(step.record))
    assert (first, last, time, b"".join(pieces)) == next(l0_files(*history.pack(2, 2)))
    for at in range(0, len(step.record), 7):
        damaged = bytearray(step.record)
        damaged[at] ^= 1
        with pytest.raises(FormatError):
            list(l0_big(front, io.BytesIO(damaged))[3])
    with pytest.raises(ArchiveCorrupt, match="damaged"):
        list(l0_big(front, io.BytesIO(history.steps[0].record))[3])


def test_a_big_record_under_another_name_is_refused() -> None:
    history = History(3)
    step = history.add(2)[1]
    for wrong in (replace(step.point, txid=3), replace(step.point, checksum=CHECKSUM_FLAG | 1)):
        after = replace(history.steps[0].point, txid=wrong.txid - 1)
        front = bundle.parse(bundle.pack_big(after, wrong, step.time, len(step.record)))
        with pytest.raises(ArchiveCorrupt, match="is not that of"):
            list(l0_big(front, io.BytesIO(step.record))[3])


def test_files_are_stored_from_what_the_archive_has(tmp_path: Path) -> None:
    history = History(4)
    steps = history.add(14)
    archive = Archive(DirectoryTarget(tmp_path), "app.db")
    first, _ = history.pack(1, 12)
    assert archive.append(1, bundle.pack(first.after, [(s.point, s.time, s.record) for s in steps[:12]]))
    found = archive.bundle(1)
    assert found is not None
    assert write_l0(archive, found) == [(1, 11), (12, 12)]
    assert [(f.min_txid, f.max_txid, f.modified) for f in archive.files(0)] == [
        (1, 11, steps[10].time),
        (12, 12, steps[11].time),
    ]
    assert write_l0(archive, found, after=12) == []
    assert write_l0(archive, *history.pack(13, 13), after=11) == [(13, 13)]
    big = steps[13]
    archive.write_big(big.point, [big.record])
    assert archive.append(14, bundle.pack_big(steps[12].point, big.point, big.time, len(big.record)))
    found = archive.bundle(14)
    assert found is not None
    assert write_l0(archive, found) == [(14, 14)]
    files = [(f.min_txid, f.max_txid, f.modified, archive.open(f).read(1 << 20)) for f in archive.files(0)]
    assert restored(files) == steps[-1].image
    dropped = bundle.parse(bundle.pack_dropped(big.point, big.time))
    assert write_l0(archive, dropped) == []
