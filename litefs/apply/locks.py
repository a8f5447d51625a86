"""Open-file-description locks on byte ranges, the way the node process holds SQLite's locks.

POSIX record locks belong to a process and vanish when *any* descriptor of the file is closed, which a
process with several views of one file cannot live with. OFD locks (Linux, ``F_OFD_SETLK``) belong to one
open file, conflict with POSIX locks both ways, and so meet SQLite's own locks. A range is locked whole or
not at all, and every wait is bounded here by polling: a blocking ``F_OFD_SETLKW`` could not be given a
deadline.

The byte numbers are in :mod:`litefs.sqlite.locks`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from litefs.errors import LiteFSError

_FLOCK = struct.Struct("@hhqqi4x")
"""``struct flock`` of 64-bit Linux: type, whence, start, length, pid."""

_BUSY = (errno.EAGAIN, errno.EACCES)
_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.0005
"""A client that commits all the time leaves such gaps; who looks less often never gets a lock from it."""


class LockTimeout(LiteFSError):
    """Another process kept a byte range locked for longer than we may wait."""

    errno = errno.EBUSY


def _set(fd: int, kind: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, start, length, 0))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def try_shared(fd: int, start: int, length: int = 1) -> bool:
    """Read-lock ``length`` bytes from ``start``, or change our own write lock on them; False if another has
    one."""
    return _set(fd, fcntl.F_RDLCK, start, length)


def try_exclusive(fd: int, start: int, length: int = 1) -> bool:
    """Write-lock ``length`` bytes from ``start``: all of them or none; False if anyone else locks one of
    them."""
    return _set(fd, fcntl.F_WRLCK, start, length)


def unlock(fd: int, start: int, length: int = 1) -> None:
    """Give up whatever this open file holds in the range."""
    _set(fd, fcntl.F_UNLCK, start, length)


def is_free(fd: int, start: int, length: int = 1) -> bool:
    """Whether :func:`try_exclusive` would succeed now. Takes nothing, so that no client is ever turned away
    by it."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))
    return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)


def close(fd: int) -> None:
    """Close a file, and with it its locks. On a dead mount close(2) closes and then complains; that means
    nothing."""
    with suppress(OSError):
        os.close(fd)


def wait_shared(fd: int, start: int, length: int = 1, *, timeout: float) -> None:
    """:func:`try_shared`, tried again for at most ``timeout`` seconds. Raises LockTimeout."""
    _wait(fd, fcntl.F_RDLCK, start, length, timeout)


def wait_exclusive(fd: int, start: int, length: int = 1, *, timeout: float) -> None:
    """:func:`try_exclusive`, tried again for at most ``timeout`` seconds. Raises LockTimeout."""
    _wait(fd, fcntl.F_WRLCK, start, length, timeout)


def _wait(fd: int, kind: int, start: int, length: int, timeout: float) -> None:
    if _set(fd, kind, start, length):
        return
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        time.sleep(pause)
        if _set(fd, kind, start, length):
            return
        if time.monotonic() >= deadline:
            raise LockTimeout(f"bytes {start}..{start + length - 1} stayed locked for {timeout:g} s")
        pause = min(pause * 2, _LONGEST_PAUSE)


@contextmanager
def exclusive(fd: int, start: int, length: int = 1, *, timeout: float) -> Iterator[None]:
    """Hold a write lock for the length of a ``with`` block. Raises LockTimeout."""
    wait_exclusive(fd, start, length, timeout=timeout)
    try:
        yield
    finally:
        unlock(fd, start, length)
