"""On the primary: a commit that is in the log, and valid in the WAL, but that no client announced in the
wal-index.

It happens when a client is killed between the two, or when something failed it after its commit frame was
complete. The commit exists; until a client recovers the wal-index, nobody sees it and nobody may write over
it. Zeroing both header copies under WAL_WRITE is enough: the next client runs SQLite's own recovery, which
finds the frames.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from litefs._core.walindex import REGION_SIZE, WalIndex
from litefs.apply import locks
from litefs.apply.memory import map_shared
from litefs.sqlite.locks import SHM_WRITE
from litefs.store.sums import SumsFile


class Publisher:
    """Looks after one database on the mount. Takes no lock unless there is something to publish, creates no
    file.

    ``sums`` is the node process's map of the database's ``sums`` file. Call off the trio thread: it opens
    files of the mount.
    """

    def __init__(self, path: Path, sums: SumsFile) -> None:
        self.path = path
        self._sums = sums
        self._announced = (0, 0, 0)
        """Salts and frames last seen announced as a whole: no look is needed before that changes."""

    def check(self) -> bool:
        """Publish what was left unpublished. True if something was.

        False also while a client holds WAL_WRITE: it is in the middle of a commit, or will be found killed
        at the next call. Raises OSError.
        """
        logged = self._sums.sums.wal()
        if logged[2] == 0 or logged == self._announced:
            return False
        with self._open() as (fd, index):
            if index is None:
                return False
            if not self._is_behind(index):
                if index.header() is not None:
                    self._announced = logged
                return False
            if not locks.try_exclusive(fd, SHM_WRITE):
                return False
            try:
                # What was seen before the lock may have been a commit on its way.
                if not self._is_behind(index):
                    return False
                index.invalidate()
                return True
            finally:
                locks.unlock(fd, SHM_WRITE)

    def is_published(self) -> bool:
        """Whether the wal-index announces all that is logged, or will once a client has recovered it. Raises
        OSError."""
        with self._open() as (_, index):
            return index is None or not self._is_behind(index)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[int, WalIndex | None]]:
        """The ``-shm`` file and its first region; (-1, None) if there is none, or it has not been filled
        yet."""
        try:
            fd = os.open(self.path.with_name(self.path.name + "-shm"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield -1, None
            return
        try:
            if os.fstat(fd).st_size < REGION_SIZE:
                yield fd, None
                return
            try:
                view = map_shared(fd, REGION_SIZE)
            except (OSError, ValueError) as error:
                # A client that is alone truncates the file and rebuilds it: seen before or after the map.
                if isinstance(error, OSError) and error.errno != errno.EFAULT:
                    raise
                yield fd, None
                return
            index = WalIndex(view)
            try:
                yield fd, index
            finally:
                index.release()
                view.close()
        finally:
            locks.close(fd)

    def _is_behind(self, index: WalIndex) -> bool:
        """Whether the header counts fewer frames than are logged, or frames of another generation.

        A header that is not whole needs nothing: the next client recovers. The fs process says "no frames" of
        a WAL that is backfilled; so a header of another generation is not that of a writer who announced a
        restart, but one that the first commit behind a new WAL header has not reached: its client draws the
        salts anew if it did not restart the WAL itself.
        """
        header = index.header()
        if header is None:
            return False
        salt1, salt2, frames = self._sums.sums.wal()
        return frames > 0 and (header.salt != (salt1, salt2) or header.mx_frame < frames)


def is_published(path: Path, sums: Path) -> bool:
    """Whether a transaction that begins now at the mount's database *path* sees all that is logged.

    *sums*: the database's ``sums`` file. False for a moment at each commit of this node's clients, and after
    one whose client died before it published it; a replica's applier publishes before it moves the position.
    Blocking. Raises DatabaseNotFound, FormatError, OSError.
    """
    with contextlib.closing(SumsFile(sums)) as shared:
        if not shared.sums.wal()[2]:
            return True
        return Publisher(path, shared).is_published()
