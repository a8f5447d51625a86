"""The heavy half of recovery: checksums of whole files in parallel, and laying logged images over a file."""

from __future__ import annotations

import os
from collections.abc import ItemsView
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from litefs._core.pagesums import PageSums, page_checksum, page_checksums
from litefs.store import fileops
from litefs.store.reader import Image, ImageReader, newest_images

CHUNK_BYTES = 4 << 20
"""File bytes that one task reads and checks."""
MAX_THREADS = 4


def file_checksums(path: Path, page_size: int, page_count: int) -> bytes:
    """The checksums (native u64) of the first ``page_count`` pages of a file; 0 for those beyond its end.

    Read by up to ``MAX_THREADS`` threads; the kernel drops the GIL. A part of a page at the end counts as
    none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return bytes(8 * page_count)
    per_chunk = CHUNK_BYTES // page_size

    def check(first: int) -> bytes:
        count = min(per_chunk, page_count - first + 1)
        data = fileops.pread_all(fd, count * page_size, (first - 1) * page_size)
        whole = len(data) // page_size * page_size
        return page_checksums(first, memoryview(data)[:whole], page_size).ljust(8 * count, b"\0")

    try:
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            return b"".join(pool.map(check, range(1, page_count + 1, per_chunk)))
    finally:
        os.close(fd)


class Overlay:
    """The logged page images that a file lacks.

    A context; first one of the methods that collect, then ``write``.
    """

    def __init__(self, log: Path, page_size: int, commit: int) -> None:
        """``page_size``, ``commit``: bytes per page and pages of the database at the log's tip."""
        self._log = log
        self._page_size = page_size
        self._commit = commit
        self._reader = ImageReader()
        self._images: dict[int, Image] = {}
        self.logged: set[int] = set()
        """The pages of which an image was looked at: after ``write`` they are as the log says."""

    @property
    def count(self) -> int:
        """Pages that the file lacks."""
        return len(self._images)

    def collect(self, after_txid: int, upto_txid: int, sums: PageSums) -> None:
        """Find pages whose newest image of these transactions has another checksum than ``sums`` has for the
        file.

        ``sums`` gets the images' checksums. Raises LogCorrupt, FormatError, OSError; nothing is written to
        the file.
        """
        for pgno, image in self._newest(after_txid, upto_txid):
            if pgno <= self._commit:
                self.logged.add(pgno)
                wanted = page_checksum(pgno, self._reader.page(pgno, image, self._page_size))
                if wanted != sums.get(pgno):
                    self._images[pgno] = image
                    sums.load(pgno, wanted.to_bytes(8, "little"))

    def collect_all(self, after_txid: int, upto_txid: int) -> None:
        """Take the newest image of every page that these transactions changed. Raises as ``collect``."""
        newest = self._newest(after_txid, upto_txid)
        self._images = {pgno: image for pgno, image in newest if pgno <= self._commit}

    def collect_missing(self, after_txid: int, upto_txid: int, sums: PageSums, path: Path) -> None:
        """Find pages with an image of these transactions that the file at ``path`` does not hold as ``sums``
        says.

        Raises as ``collect``.
        """
        size = self._page_size
        with path.open("rb", buffering=0) as file:
            for pgno, image in self._newest(after_txid, upto_txid):
                if pgno <= self._commit:
                    page = os.pread(file.fileno(), size, (pgno - 1) * size)
                    if len(page) < size or not sums.matches(pgno, page):
                        self._images[pgno] = image

    def _newest(self, after_txid: int, upto_txid: int) -> ItemsView[int, Image]:
        return newest_images(self._log, after_txid, upto_txid, page_size=self._page_size).items()

    def page(self, pgno: int, fd: int) -> bytes:
        """A page as it will be after ``write`` to the file open as ``fd``. Raises FormatError, OSError."""
        size = self._page_size
        if (image := self._images.get(pgno)) is not None:
            return self._reader.page(pgno, image, size)
        return fileops.pread_all(fd, size, (pgno - 1) * size).ljust(size, b"\0")

    def write(self, path: Path) -> None:
        """Write them, cut the file to the database's size, and make it durable.

        Raises FormatError, OSError.
        """
        size = self._page_size
        fd = fileops.open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            for pgno in sorted(self._images):
                page = self._reader.page(pgno, self._images[pgno], size)
                fileops.pwrite_all(fd, page, (pgno - 1) * size)
            if os.fstat(fd).st_size != self._commit * size:
                fileops.truncate(fd, self._commit * size)
            fileops.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Harmless if repeated."""
        self._reader.close()

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
