"""Writing again what a failed sync did not write, on a real file system whose device had no room."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from litefs.store import fileops
from tests.support.disks import fill_up, forget_cache, thin_disk

KNOWN = 64 * 1024
"""Bytes that are on the disk before it fails."""


def fail_a_sync(disk: Path, below: Path, data: bytes) -> tuple[Path, Path]:
    """(a file with ``data`` of which the last sync failed, what takes the room below)."""
    path = disk / "file"
    path.write_bytes(data[:KNOWN])
    fileops.sync_file(path)
    filler = fill_up(below, 256 << 10)
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, data[KNOWN:], KNOWN)
        with pytest.raises(OSError, match=r"No space left|Input/output"):
            os.fdatasync(fd)
    finally:
        os.close(fd)
    return path, filler


@pytest.mark.parametrize("how", ["direct", "mapped", "dropped"])
@pytest.mark.parametrize("size", [2 << 20, (2 << 20) - 512], ids=["blocks", "sectors"])
def test_what_was_written_again_is_on_the_disk(how: str, size: int, tmp_path: Path) -> None:
    """On ext4 pages that are only made dirty again would read as zeros here."""
    data = random.Random(size).randbytes(size)
    below = tmp_path / "below"
    with thin_disk(tmp_path / "disk", below, 24) as disk:
        path, filler = fail_a_sync(disk, below, data)
        filler.unlink()
        fd = os.open(path, os.O_RDWR)
        direct = fileops.open_direct(path) if how in ("direct", "mapped") else -1
        seen = mmap.mmap(fd, 0, prot=mmap.PROT_READ) if how == "mapped" else None
        assert seen is None or seen[:] == data
        for offset in range(0, size, 1 << 20):
            piece = fileops.pread_all(fd, 1 << 20, offset)
            assert piece == data[offset : offset + (1 << 20)], "the cache has it"
            fileops.rewrite(fd, direct, piece, offset)
        fileops.fdatasync(fd)
        if seen is not None:
            assert seen[:] == data
            seen.close()
        if direct >= 0:
            os.close(direct)
        os.close(fd)
        forget_cache(disk)
        assert path.read_bytes() == data
