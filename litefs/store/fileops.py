"""Every operation that creates, changes, moves or removes files or makes them durable, as plain functions.

Nothing else in store and capture does so by itself, so that an audit reads one page, and the crash simulator
(``tests/crash``), which stands in for ``os`` here, misses nothing; stores to the mapped checksums are the
exception. All raise OSError and are never repeated after a failure: after a failed fsync the kernel has
marked the pages clean, and a second call would report a success that did not happen.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from litefs.meters import METERS, now_ns

_ZEROS = bytes(1 << 20)
_COPY = 1 << 20
_BLOCK = 4096
"""What every disk takes as one write, and so the alignment of what goes past the page cache."""


def open_file(path: Path, flags: int, mode: int = 0o644) -> int:
    """open(2), close-on-exec: how files are created."""
    return os.open(path, flags | os.O_CLOEXEC, mode)


def new_dir(path: Path) -> None:
    """mkdir(2), durable on return. Raises FileExistsError."""
    os.mkdir(path)
    sync_dir(path.parent)


def make_dir(path: Path) -> None:
    """Make a directory, and its parents, unless they are there; its name is durable on return.

    That of one which is there may not be: its maker may have been killed before the sync.
    """
    if not os.path.isdir(path.parent):
        make_dir(path.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    sync_dir(path.parent)


def pwrite_all(fd: int, data: bytes | bytearray | memoryview | mmap.mmap, offset: int) -> None:
    """Write all of ``data`` at ``offset``, continuing after short writes."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        with memoryview(data) as view:
            step = os.pwrite(fd, view.cast("B")[written:], offset + written)
        if step == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += step


def open_direct(path: Path) -> int:
    """open(2) for ``rewrite``; -1 where the file system has no direct I/O."""
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1


def rewrite(fd: int, direct: int, data: bytes, offset: int) -> None:
    """Write what the page cache shows at ``offset`` once more, after a write of it to the disk failed.

    ``direct``: from ``open_direct``; ``offset``: a multiple of 512. The next sync makes it durable. To make
    the cached pages dirty again is not enough: ext4 counts blocks whose write failed as unwritten (in their
    extent), but the pages that cover them as placed; a second write-back puts the data there and leaves the
    extent alone, and the blocks read as zeros as soon as the cache lets go of the pages. Direct I/O asks for
    the extent again, and so does write-back once the pages were dropped; but a page that a process has
    mapped cannot be dropped.
    """
    done = 0
    for size in (len(data), len(data) // _BLOCK * _BLOCK):
        if direct >= 0 and size and not done and _write_direct(direct, memoryview(data)[:size], offset):
            done = size
    if done < len(data):
        os.posix_fadvise(fd, offset + done, len(data) - done, os.POSIX_FADV_DONTNEED)
        pwrite_all(fd, memoryview(data)[done:], offset + done)


def _write_direct(direct: int, data: memoryview, offset: int) -> bool:
    """Past the page cache, from memory aligned as it wants; False if the device wants it otherwise."""
    with mmap.mmap(-1, len(data)) as aligned:
        aligned.write(data)
        try:
            pwrite_all(direct, aligned, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
    return True


def pwritev_all(fd: int, parts: Sequence[bytes | bytearray | memoryview], offset: int) -> None:
    """Write the parts one behind the other at ``offset``, in one call unless the kernel takes fewer bytes."""
    size = sum(map(len, parts))
    written = os.pwritev(fd, parts, offset)
    if written != size:
        pwrite_all(fd, memoryview(b"".join(parts))[written:], offset + written)


def write_zeros(fd: int, start: int, end: int) -> None:
    """Write zeros over ``[start, end)``: space that a later write of data cannot lack."""
    while start < end:
        start += os.pwrite(fd, _ZEROS[: end - start], start)


def pread_all(fd: int, length: int, offset: int) -> bytes:
    """Read ``length`` bytes; fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    done = len(data)
    while done < length and (data := os.pread(fd, length - done, offset + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def fsync(fd: int) -> None:
    """fsync(2)."""
    begin = now_ns()
    os.fsync(fd)
    METERS.fsync.since(begin)


def fdatasync(fd: int) -> None:
    """fdatasync(2)."""
    begin = now_ns()
    os.fdatasync(fd)
    METERS.fsync.since(begin)


def reread(path: Path) -> None:
    """Have what is read of the file from now on come from the disk, after a sync of it failed.

    The kernel shows such pages as they were written, and as clean. It drops none that is dirty, so these are
    written before. A file system without a disk keeps all.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """fsync the file at ``path``."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def sync_dir(path: Path) -> None:
    """Make names created, renamed or removed in the directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    """rename(2) without making it durable; follow with ``sync_dir``."""
    os.rename(source, target)


def link(source: Path, target: Path) -> None:
    """link(2) without making it durable; follow with ``sync_dir``. Raises FileExistsError."""
    os.link(source, target)


def unlink(path: Path | str) -> bool:
    """Remove a file; False if there was none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def unlink_durably(path: Path) -> bool:
    """``unlink``, durable on return."""
    there = unlink(path)
    sync_dir(path.parent)
    return there


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it; nothing happens if there is none."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def remove_empty_dir(path: Path) -> None:
    """Remove a directory if there is nothing in it."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def truncate(fd: int, size: int) -> None:
    """ftruncate(2)."""
    os.ftruncate(fd, size)


def fallocate(fd: int, offset: int, length: int) -> None:
    """Reserve disk space without changing bytes; raises OSError(ENOSPC) while a refusal is still possible."""
    os.posix_fallocate(fd, offset, length)


def write_file_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file holding ``data``: after a crash either the old or the new file is there."""
    temporary = path.with_name(path.name + ".tmp")
    fd = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        pwrite_all(fd, data, 0)
        fsync(fd)
    except BaseException:
        unlink(temporary)
        raise
    finally:
        os.close(fd)
    rename(temporary, path)
    sync_dir(path.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file durably to a new name, sharing blocks where the file system can.

    Raises FileExistsError, OSError.
    """
    reader = open_file(source, os.O_RDONLY)
    try:
        writer = open_file(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            _copy_all(reader, writer)
            fsync(writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    sync_dir(target.parent)


def _copy_all(reader: int, writer: int) -> None:
    size = os.fstat(reader).st_size
    done = 0
    try:
        while done < size:
            step = os.copy_file_range(reader, writer, min(size - done, 1 << 30), done, done)
            if step == 0:
                return
            done += step
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        while done < size and (data := pread_all(reader, _COPY, done)):
            pwrite_all(writer, data, done)
            done += len(data)


def try_lock(fd: int) -> bool:
    """Take the exclusive flock of an open file; False if another open file description holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
