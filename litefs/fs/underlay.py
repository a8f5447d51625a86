"""What lies beneath the mount: an empty read-only tmpfs, from a node's start to its stop.

While no fs process serves (it died and its successor recovers, or the node was killed) an application would
otherwise create its database in the bare mount point, be told that its commits are safe, and hide them
under the next mount. With the underlay it gets EROFS. Left behind by a killed node on purpose; the next
start takes it over.
"""

from __future__ import annotations

import ctypes
import logging
import os
import stat

from litefs.errors import MountError
from litefs.fs.session import UNDERLAY_SOURCE, lazy_unmount, mounts_at

log = logging.getLogger("litefs.fs")

_MS_RDONLY = 1
_libc = ctypes.CDLL(None, use_errno=True)


def lay(path: str) -> None:
    """Mount the underlay over an empty directory, with its owner and mode.

    Nothing happens if something is mounted there, the directory is not empty, or we are not root: what is
    wrong with the mount point, the mount itself reports. Raises OSError if *path* cannot be looked at.
    """
    if mounts_at(path) or os.listdir(path):
        return
    status = os.stat(path)
    options = (
        f"size=4k,nr_inodes=2,mode={stat.S_IMODE(status.st_mode):o},uid={status.st_uid},gid={status.st_gid}"
    )
    arguments = (UNDERLAY_SOURCE.encode(), os.fsencode(path), b"tmpfs", _MS_RDONLY, options.encode())
    if _libc.mount(arguments[0], arguments[1], arguments[2], ctypes.c_ulong(arguments[3]), arguments[4]) != 0:
        log.info("no read-only directory beneath the mount: %s", os.strerror(ctypes.get_errno()))


def lift(path: str) -> None:
    """Remove the underlay, if nothing is mounted over it."""
    mounts = mounts_at(path)
    if mounts and mounts[-1].source == UNDERLAY_SOURCE:
        try:
            lazy_unmount(path)
        except MountError as exc:
            log.warning("%s", exc)
