"""Writing a database file again after a sync of it failed.

What such a sync did not write the kernel counts as written: a second sync would succeed and mean nothing. But
the page cache still has what the disk lacks, and the page checksums tell whether it has, so the pages can be
written again (``fileops.rewrite``).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from litefs.errors import FormatError
from litefs.store import fileops
from litefs.store.paths import DatabaseDir
from litefs.store.sums import SumsFile, read_pages

CHUNK = 1 << 20
"""Bytes read and written at a time."""


def write_again(directory: DatabaseDir, file: SumsFile, lacks: Callable[[int], bool]) -> None:
    """Write every page of the database file as it reads now, and sync it; nothing may write to it meanwhile.

    ``lacks(pgno)``: whether the page may be older than ``file`` says, because its newest image is in the WAL.
    Raises FormatError if another page is not what it should be: the cache has let go of what the disk never
    got. Raises OSError; either way it may be tried again.
    """
    # a descriptor of its own: an old one may have yet to report the failure that this makes good
    fd = fileops.open_file(directory.database, os.O_RDWR)
    direct = -1
    sums = file.sums
    try:
        direct = fileops.open_direct(directory.database)
        step = max(1, CHUNK // sums.page_size)
        for first in range(1, sums.page_count + 1, step):
            data, wrong = read_pages(fd, sums, first, min(step, sums.page_count - first + 1))
            if lost := [pgno for pgno in wrong if not lacks(pgno)]:
                raise FormatError(f"{directory.database}: page {lost[0]} was lost by a sync that failed")
            fileops.rewrite(fd, direct, data, (first - 1) * sums.page_size)
        fileops.fdatasync(fd)
        file.trust()
    finally:
        os.close(fd)
        if direct >= 0:
            os.close(direct)
