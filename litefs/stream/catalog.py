"""The catalog over the store: this node's databases as senders read them, while another process may write."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping

from litefs.errors import DatabaseNotFound, FormatError
from litefs.store.dropped import tombstone
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.reader import LogReader
from litefs.store.snapshot import SnapshotSource
from litefs.store.sums import SumsFile
from litefs.stream.wakeup import Wakeup
from litefs.types import START, ZERO, Point, Position

logger = logging.getLogger(__name__)


class PinnedPages:
    """A snapshot whose starting point stays pinned in its source until it is closed."""

    def __init__(self, source: StoreSource) -> None:
        self._source = source
        source.pins.append(self)
        try:
            self._pages = SnapshotSource(source.directory)
        except BaseException:
            source.pins.remove(self)
            raise
        self.at = self._pages.at
        self.page_size = self._pages.page_size
        self.commit = self._pages.commit
        self.timestamp = self._pages.timestamp

    @property
    def pinned_txid(self) -> int:
        """Records after this TXID are still needed; 0 while the starting point is being fixed."""
        return self.at.txid if hasattr(self, "at") else 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._pages)

    def close(self) -> None:
        """Unpin; harmless if repeated."""
        if self in self._source.pins:
            self._source.pins.remove(self)
        self._pages.close()


class StoreSource:
    """One database of the store. ``position`` costs a read of shared memory."""

    def __init__(self, directory: DatabaseDir) -> None:
        """Map the page checksums. Raises DatabaseNotFound, FormatError, OSError."""
        self.directory = directory
        self.name = directory.name
        self.pins: list[PinnedPages] = []
        self._file = SumsFile(directory.sums)

    @property
    def page_size(self) -> int:
        return self._file.sums.page_size

    @property
    def damaged(self) -> bool:
        return self._file.sums.damaged

    def header(self) -> tuple[Point, int, int, int]:
        """Point, time of its transaction (Unix ms), page size and pages of one moment. Raises TimeoutError as
        ``PageSums.snapshot``, also from ``position`` and ``point``."""
        txid, checksum, timestamp, page_size, pages, digest = self._file.sums.snapshot()
        return Point(txid, checksum, digest), timestamp, page_size, pages

    def is_current(self) -> bool:
        """False once the files are gone, also if another database has the name."""
        return self._file.is_current()

    def position(self) -> Position:
        return self.point().position

    def point(self) -> Point:
        return self._file.read_point()

    def is_at(self, point: Point) -> bool:
        sums = self._file.sums
        return sums.txid == point.txid and sums.hash == point.hash and sums.checksum == point.checksum

    def reader(self) -> LogReader:
        return LogReader(self.directory.log)

    def snapshot(self) -> PinnedPages:
        return PinnedPages(self)

    def close(self) -> None:
        """Unmap; senders must have let go."""
        self._file.close()

    def close_unused(self) -> None:
        """Unmap as soon as no sender refers to this any more."""
        weakref.finalize(self, self._file.close)


class StoreCatalog:
    """The databases of a data directory and their wake-up. Used in one trio run."""

    def __init__(self, datadir: DataDir) -> None:
        """Begins empty: call :meth:`rescan` or :meth:`add`."""
        self._datadir = datadir
        self._wakeup = Wakeup()
        self._sources: dict[str, StoreSource] = {}
        self.generation = 0

    @property
    def revision(self) -> int:
        return self._wakeup.revision

    def sources(self) -> Mapping[str, StoreSource]:
        return self._sources

    def add(self, name: str) -> None:
        """Take a database in, or anew after its files were replaced.

        Raises DatabaseNotFound while it has no checksums, InvalidName, FormatError, OSError.
        """
        source = StoreSource(self._datadir.database_dir(name))
        self._retire(name)
        self._sources[name] = source
        self._changed()

    def remove(self, name: str) -> None:
        """Let a database go; unknown names are no error."""
        if self._retire(name):
            self._changed()

    def rescan(self) -> None:
        """Take in what the directory holds and was not known or made anew, let go what is gone."""
        for name in {*self._sources, *self._datadir.names()}:
            self.refresh(name)

    def refresh(self, name: str) -> None:
        """As ``rescan``, of one database: to look at all at each one's first open adds up."""
        source = self._sources.get(name)
        if source is not None and source.is_current():
            return
        try:
            self.add(name)
        except DatabaseNotFound:
            self.remove(name)  # it is gone, or nothing was committed to it yet
        except (FormatError, OSError) as error:
            logger.warning("%s: not replicated: %s", name, error)

    def dropped(self, name: str) -> int:
        """The TXID at which ``name`` was removed on purpose; 0 if it was not, or is in use again."""
        if self.position(name) != ZERO:
            return 0
        position = tombstone(self._datadir, name)
        return 0 if position is None else position.txid

    def damaged(self, name: str) -> bool:
        """Whether ``name`` was found damaged and has not been mended yet."""
        source = self._sources.get(name)
        return source is not None and source.damaged

    def pinned_txid(self, name: str) -> int | None:
        """The lowest TXID that a running snapshot of ``name`` began at, None without one.

        Retention keeps the records after it.
        """
        source = self._sources.get(name)
        pins = [pages.pinned_txid for pages in tuple(source.pins)] if source is not None else []
        return min(pins, default=None)

    def position(self, name: str) -> Position:
        """The last transaction of ``name``; ZERO if it is not here."""
        source = self._sources.get(name)
        return source.position() if source is not None else ZERO

    def point(self, name: str) -> Point:
        """As ``position``, for other nodes."""
        source = self._sources.get(name)
        return source.point() if source is not None else START

    def notify(self) -> None:
        self._wakeup.notify()

    async def wait_change(self, seen: int) -> int:
        return await self._wakeup.wait_change(seen)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._wakeup.listen(callback)

    def close(self) -> None:
        """Unmap everything; no sender may be running."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()

    def _retire(self, name: str) -> bool:
        """Senders still hold the source until they see the change."""
        source = self._sources.pop(name, None)
        if source is not None:
            source.close_unused()
        return source is not None

    def _changed(self) -> None:
        self.generation += 1
        self.notify()
