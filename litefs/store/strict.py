"""``strict-verify``: is every page of a database what its checksums say? For tests, since it reads all."""

from __future__ import annotations

import os

from litefs.errors import FormatError
from litefs.ltx.format import lock_pgno
from litefs.store.paths import DatabaseDir
from litefs.store.reader import ImageReader, newest_images
from litefs.store.sums import SumsFile, read_pages

BATCH_PAGES = 256


def wrong_pages(directory: DatabaseDir, file: SumsFile) -> list[int]:
    """The pages that neither the database file nor the log holds as the last transaction left them; [0] if
    only the database's checksum is wrong.

    For the writer of the log, in its own process, while nothing is being written: a page that a checkpoint
    has not brought to the file yet is taken from the log. Raises OSError, LogCorrupt.
    """
    sums = file.sums
    if not sums.txid:
        return []
    fd = os.open(directory.database, os.O_RDONLY | os.O_CLOEXEC)
    suspect: list[int] = []
    try:
        for first in range(1, sums.page_count + 1, BATCH_PAGES):
            count = min(BATCH_PAGES, sums.page_count - first + 1)
            suspect += read_pages(fd, sums, first, count)[1]
    finally:
        os.close(fd)
    lock_page = lock_pgno(sums.page_size)
    suspect = [pgno for pgno in suspect if pgno != lock_page]
    images = newest_images(directory.log, sums.durable_txid, page_size=sums.page_size) if suspect else {}
    wrong = []
    with ImageReader() as reader:
        for pgno in suspect:
            try:
                page = reader.page(pgno, images[pgno], sums.page_size)
            except (KeyError, FormatError):
                wrong.append(pgno)
            else:
                if not sums.matches(pgno, page):
                    wrong.append(pgno)
    if not wrong and sums.recompute_total() != sums.checksum:
        return [0]
    return wrong
