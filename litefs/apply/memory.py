"""Shared maps of files on a FUSE mount that must survive the death of the process that serves it.

A fault on a page that is not in the page cache asks that process; once it is dead the answer is SIGBUS,
which would take the node process with it. So every map is populated when it is made, by
``MADV_POPULATE_WRITE`` (Linux 5.14), which reports the same trouble as an error, and locked into memory
where the limits allow it, so that the kernel drops nothing.
"""

from __future__ import annotations

import ctypes
import mmap

MADV_POPULATE_WRITE = 23

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def populate(view: mmap.mmap) -> None:
    """Fault in every page of the map for writing. Raises OSError (EFAULT: the file system no longer
    answers)."""
    view.madvise(MADV_POPULATE_WRITE)


def pin(view: mmap.mmap) -> bool:
    """Lock the map's pages into memory; False where RLIMIT_MEMLOCK forbids it. munmap gives them up."""
    anchor = ctypes.c_char.from_buffer(view)
    try:
        return bool(_libc.mlock(ctypes.addressof(anchor), len(view)) == 0)
    finally:
        del anchor


def map_shared(fd: int, length: int) -> mmap.mmap:
    """Map the first ``length`` bytes of an open file, which must have as many, for reading and writing.

    Asks nothing of the file system but the pages themselves, so it also works on a dead mount for what is
    still cached. Raises OSError: EFAULT if a page cannot be had, or lies wholly beyond the end of the file;
    ValueError if the file is known to be shorter.
    """
    view = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    try:
        populate(view)
    except OSError:
        view.close()
        raise
    pin(view)
    return view
