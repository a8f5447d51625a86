"""Small file systems that a test can fill, and one whose syncs fail when what is below it is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size at ``path``, which is made; unmounted in the end."""
    path.mkdir(parents=True)
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "litefs-test", path], check=True, timeout=10)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=10)


@contextmanager
def thin_disk(path: Path, below: Path, megabytes: int) -> Iterator[Path]:
    """A file system at ``path`` on a device that promises more than it has: when ``below``, of that size, is
    full, its syncs fail.

    Blocks and requests are one page: of a bigger write the loop device would report success when there is
    room for a part of it, and no file system could tell.
    """
    with ExitStack() as stack:
        stack.enter_context(small_disk(below, megabytes))
        image = below / "image"
        image.touch()
        os.truncate(image, 256 << 20)
        _run("mke2fs", "-q", "-t", "ext4", "-b", 4096, "-O", "^has_journal,^metadata_csum", image)
        device = _run("losetup", "-f", "--show", image)
        stack.callback(_run, "losetup", "-d", device)
        Path("/sys/block", Path(device).name, "queue", "max_sectors_kb").write_text("4")
        path.mkdir(parents=True)
        _run("mount", "-o", "errors=continue", device, path)
        stack.callback(_run, "umount", path)
        yield path


def forget_cache(disk: Path) -> None:
    """From now on reads of a thin disk come from its device; nothing on it may be open."""
    device = _run("findmnt", "-n", "-o", "SOURCE", disk)
    _run("umount", disk)
    _run("mount", "-o", "errors=continue", device, disk)


def fill_up(disk: Path, leave: int = 0) -> Path:
    """Take the room of a disk but for ``leave`` bytes; the file to be removed again."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave))
    return filler


def _run(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, timeout=20, capture_output=True, text=True
    ).stdout.strip()
