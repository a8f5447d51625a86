"""One database as of a moment: its bytes, fetched when they are read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from litefs.backup.finding import Moment
from litefs.backup.pagemap import PageMap, Run
from litefs.backup.pieces import read_indexes
from litefs.backup.target import Target
from litefs.errors import ArchiveMissing, LiteFSError
from litefs.timetravel.cache import PageCache

log = logging.getLogger("litefs.timetravel")

REQUESTS = 8
"""To the archive at a time, of all databases together."""
FIRST_WINDOW = 256 << 10
MAX_WINDOW = 8 << 20
"""Bytes that are fetched ahead of a reader that reads one page after the other."""

_MODES = slice(18, 20)
"""Of the database header: the versions of the file format for writing and reading; 1: journal, 2: WAL."""


@dataclass(slots=True, eq=False)
class Reader:
    """An open file: where its last read ended, and how much is fetched ahead of it (pages)."""

    following: int = 1
    window: int = 0
    ahead: int = 0


@dataclass(slots=True, eq=False)
class _Fetch:
    """A request under way, and what came of it."""

    done: trio.Event = field(default_factory=trio.Event)
    pages: dict[int, bytes] = field(default_factory=dict)
    error: LiteFSError | None = None


class Fetcher:
    """What the databases of a mount share: the store, the cache, the threads, and the tasks that fetch."""

    def __init__(self, target: Target, cache: PageCache, nursery: trio.Nursery) -> None:
        self.target = target
        self.cache = cache
        self.requests = 0
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(REQUESTS)

    def start(self, job: Callable[[], object]) -> None:
        """Run an async function beside the caller."""
        self._nursery.start_soon(job)  # type: ignore[arg-type]

    async def pages(self, pages: PageMap, run: Run) -> dict[int, bytes]:
        """Fetch and unpack a run, in a thread."""

        def fetch() -> dict[int, bytes]:
            return pages.decode(run, self.target.read(run.key, run.start, run.length))

        self.requests += 1
        return await trio.to_thread.run_sync(fetch, limiter=self._limiter, abandon_on_cancel=True)

    async def map(self, moment: Moment) -> PageMap:
        """Read the page indexes of a moment, in a thread."""

        def build() -> PageMap:
            pages = PageMap(moment.page_size, moment.commit)
            pages.fill(read_indexes(self.target, list(reversed(moment.pieces))), moment.name)
            return pages

        return await trio.to_thread.run_sync(build, limiter=self._limiter, abandon_on_cancel=True)


class Database:
    """The bytes of a moment. ``number`` tells its pages from those of others in the cache.

    ``again``: finds the same moment once more, blocking: what it was made of may have been merged, and
    removed, since. Raises NotRestorable if it cannot be restored any more.
    """

    def __init__(
        self, number: int, moment: Moment, fetcher: Fetcher, again: Callable[[Moment], Moment]
    ) -> None:
        self.moment = moment
        self._number = number
        self._fetcher = fetcher
        self._again = again
        self._map: PageMap | None = None
        self._lock = trio.Lock()
        self._fetches: dict[int, _Fetch] = {}

    async def read(self, reader: Reader, offset: int, size: int) -> bytes:
        """Bytes of the database file, less where it ends. Raises LiteFSError."""
        size = min(size, self.moment.size - offset)
        if size <= 0:
            return b""
        page_size = self.moment.page_size
        first, last = offset // page_size + 1, (offset + size - 1) // page_size + 1
        pages = await self._pages(reader, first, last)
        start = offset - (first - 1) * page_size
        if first == last:
            return pages[0][start : start + size]
        return b"".join(pages)[start : start + size]

    async def _pages(self, reader: Reader, first: int, last: int) -> list[bytes]:
        pages = self._map or await self._mapped(None)
        try:
            return await self._collect(pages, reader, first, last)
        except ArchiveMissing as error:  # merged into others, and removed
            log.info("%s: looked for again: %s", self.moment.name, error)
        return await self._collect(await self._mapped(pages), reader, first, last)

    async def _mapped(self, old: PageMap | None) -> PageMap:
        """The page map, made at the first read; or another than ``old``, of what the archive has now."""
        async with self._lock:
            if self._map is None:
                try:
                    self._map = await self._fetcher.map(self.moment)
                except ArchiveMissing:
                    self._map = await self._remade()
            elif self._map is old:
                self._map = await self._remade()
            return self._map

    async def _remade(self) -> PageMap:
        self.moment = await trio.to_thread.run_sync(self._again, self.moment, abandon_on_cancel=True)
        self._fetches = {}
        return await self._fetcher.map(self.moment)

    async def _collect(self, pages: PageMap, reader: Reader, first: int, last: int) -> list[bytes]:
        cache, number = self._fetcher.cache, self._number
        found: dict[int, bytes] = {}
        absent, waited = [], []
        for pgno in range(first, last + 1):
            if not pages.has(pgno):
                found[pgno] = bytes(pages.page_size)
            elif (page := cache.get(number, pgno)) is not None:
                found[pgno] = page
            elif (fetch := self._fetches.get(pgno)) is not None:
                waited.append((pgno, fetch))
            else:
                absent.append(pgno)
        ahead = self._ahead(pages, reader, first, last)
        for fetch, pgnos in self._begin(pages, absent, ahead):
            waited += [(pgno, fetch) for pgno in pgnos if first <= pgno <= last]
        for pgno, fetch in waited:
            await fetch.done.wait()
            if fetch.error is not None:
                raise fetch.error
            found[pgno] = fetch.pages[pgno]
        return [found[pgno] for pgno in range(first, last + 1)]

    def _ahead(self, pages: PageMap, reader: Reader, first: int, last: int) -> list[int]:
        """What to fetch beside what is read: more and more, as long as one page follows the other."""
        most = min(MAX_WINDOW, self._fetcher.cache.limit // 4) // pages.page_size
        # the kernel reads ahead, too, in several requests that need not come in order
        slack = max(reader.window, (1 << 20) // pages.page_size)
        if reader.following - slack <= first <= reader.following + slack and (first > 1 or reader.window):
            reader.window = min(most, max(reader.window * 2, FIRST_WINDOW // pages.page_size, 1))
            reader.following = max(reader.following, last + 1)
        else:
            reader.window = 0
            reader.following = last + 1
            reader.ahead = last
        end = min(pages.commit, last + reader.window)
        if not reader.window or reader.ahead - last > reader.window // 2:
            return []  # enough is on its way
        begin = max(last, reader.ahead)
        reader.ahead = max(reader.ahead, end)
        cache = self._fetcher.cache
        return [
            pgno
            for pgno in range(begin + 1, end + 1)
            if pages.has(pgno) and not cache.has(self._number, pgno) and pgno not in self._fetches
        ]

    def _begin(
        self, pages: PageMap, absent: list[int], ahead: list[int]
    ) -> list[tuple[_Fetch, tuple[int, ...]]]:
        begun = []
        for run in pages.runs(absent + ahead):
            fetch = _Fetch()
            for pgno in run.pgnos:
                self._fetches[pgno] = fetch

            async def job(run: Run = run, fetch: _Fetch = fetch) -> None:
                await self._run(pages, run, fetch)

            self._fetcher.start(job)
            begun.append((fetch, run.pgnos))
        return begun

    async def _run(self, pages: PageMap, run: Run, fetch: _Fetch) -> None:
        try:
            found = await self._fetcher.pages(pages, run)
            if 1 in found:
                found[1] = as_rollback(found[1])
            fetch.pages = found
            for pgno, page in found.items():
                self._fetcher.cache.put(self._number, pgno, page)
        except LiteFSError as error:
            fetch.error = error
        finally:
            if fetch.error is None and not fetch.pages:
                fetch.error = ArchiveMissing(f"{run.key}: not fetched, the mount ends")
            for pgno in run.pgnos:
                if self._fetches.get(pgno) is fetch:
                    del self._fetches[pgno]
            fetch.done.set()


def as_rollback(page: bytes) -> bytes:
    """Page 1 so that SQLite opens the database where no ``-wal`` and ``-shm`` can be made."""
    if page[_MODES] == b"\x02\x02":
        return page[: _MODES.start] + b"\x01\x01" + page[_MODES.stop :]
    return page
