"""The mapped sums file, in one process and between two."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from litefs.errors import DatabaseNotFound, FormatError
from litefs.store import fileops
from litefs.store.sums import GRANULE, SumsFile, differing_pages


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFound):
        SumsFile(tmp_path / "sums")
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(FormatError, match="too few"):
        SumsFile(tmp_path / "short")
    (tmp_path / "zeros").write_bytes(bytes(GRANULE))
    with pytest.raises(FormatError, match="not a sums file"):
        SumsFile(tmp_path / "zeros")


def test_create_replaces_what_is_no_sums_file(tmp_path: Path) -> None:
    (tmp_path / "sums").write_bytes(b"x" * 100)
    file = SumsFile(tmp_path / "sums", create=True)
    assert (file.sums.page_size, file.sums.txid) == (0, 0)
    file.close()
    file.close()


def test_growth_is_seen_by_a_second_map(tmp_path: Path) -> None:
    writer = SumsFile(tmp_path / "sums", create=True)
    reader = SumsFile(tmp_path / "sums")
    pages = reader.sums.capacity + 1000
    assert writer.ensure(pages) >= pages
    writer.sums.page_size = 4096
    writer.sums.load(pages, (7).to_bytes(8, "little"))
    writer.sums.reset(pages, 1, 1 << 63, 0, 0)
    assert reader.sums.page_count == pages > reader.sums.capacity
    reader.refresh()
    assert reader.sums.get(pages) == 7
    assert (tmp_path / "sums").stat().st_size % GRANULE == 0
    writer.close()
    reader.close()


def test_a_full_disk_is_an_error_before_anything_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SumsFile(tmp_path / "sums", create=True)
    capacity = file.sums.capacity

    def fail(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fileops, "fallocate", fail)
    with pytest.raises(OSError, match="full"):
        file.ensure(capacity + 1)
    assert file.sums.capacity == capacity
    file.close()


def test_room_is_reserved_on_disk(tmp_path: Path) -> None:
    file = SumsFile(tmp_path / "sums", create=True)
    file.ensure(40_000)
    assert (tmp_path / "sums").stat().st_blocks * 512 >= 40_000 * 8
    file.close()


def test_clean_mark_holds_for_this_file_only(tmp_path: Path) -> None:
    database = tmp_path / "database"
    database.write_bytes(b"x")
    file = SumsFile(tmp_path / "sums", create=True)
    file.mark_clean(os.stat(database))
    file.close()
    file = SumsFile(tmp_path / "sums")
    assert file.sums.clean
    assert file.same_stat(os.stat(database))
    database.write_bytes(b"y")
    assert not file.same_stat(os.stat(database))
    file.unmark_clean()
    assert not file.sums.clean
    file.close()


def test_differing_pages() -> None:
    old = b"".join(n.to_bytes(8, "little") for n in range(10_000))
    new = bytearray(old)
    new[8 * 4095] ^= 1
    new[8 * 9999] ^= 1
    assert differing_pages(old, bytes(new)) == [4096, 10_000]
    assert differing_pages(old[:-8], old) == [10_000]
    assert differing_pages(old, old) == []
