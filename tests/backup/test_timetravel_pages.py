"""Pages of a moment on demand: how many requests, how much memory, which moment."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import trio

from litefs.backup.archive import timelines
from litefs.backup.directory import DirectoryTarget
from litefs.backup.finding import Goal, Moment, find
from litefs.backup.pagemap import PageMap
from litefs.backup.pieces import read_indexes
from litefs.errors import ArchiveCorrupt, ArchiveUnavailable, NotRestorable
from litefs.timetravel.cache import ENTRY_BYTES, PageCache
from litefs.timetravel.database import REQUESTS, Database, Fetcher, Reader
from tests.support.handmade import Archived

PAGES = 3000


class Slow(DirectoryTarget):
    """A directory as far away as an object store."""

    def __init__(self, root: Path, seconds: float) -> None:
        super().__init__(root)
        self.seconds = seconds
        self.reads: list[tuple[str, int]] = []
        self.failing = False

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if self.failing:
            raise ArchiveUnavailable("the store is away")
        time.sleep(self.seconds)
        self.reads.append((key, length or 0))
        return super().read(key, offset, length)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Moment]:
    """An archive of one snapshot and 20 transactions that change single pages; its last moment."""
    root = tmp_path_factory.mktemp("archive")
    history = Archived(root, tmp_path_factory.mktemp("work"))
    history.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    history.execute(
        f"INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {PAGES}) "
        "SELECT n, randomblob(3000) FROM c"
    )
    history.snapshot()
    for number in range(20):
        history.execute(f"UPDATE t SET pad = randomblob(3000) WHERE n = {number * 131 + 7}")
    history.bundle(raw=False)
    history.close()
    found = find(timelines(DirectoryTarget(root), "app.db"), Goal(txid=22))
    assert found is not None
    return root, history.copies[22], found[1]


def no_more(moment: Moment) -> Moment:
    raise AssertionError("looked for again")


def test_a_scan_takes_few_requests_and_overlaps_them(big: tuple[Path, bytes, Moment]) -> None:
    root, expected, moment = big
    target = Slow(root, 0.03)

    async def scan() -> bytes:
        async with trio.open_nursery() as nursery:
            database = Database(0, moment, Fetcher(target, PageCache(64 << 20), nursery), no_more)
            reader, parts = Reader(), []
            for offset in range(0, moment.size, 128 << 10):
                parts.append(await database.read(reader, offset, 128 << 10))
            return b"".join(parts)

    begun = time.monotonic()
    found = trio.run(scan)
    took = time.monotonic() - begun
    assert found == expected
    size = sum(length for _, length in target.reads)
    print(f"{len(target.reads)} requests of {size >> 10} KiB for {moment.commit} pages in {took:.2f} s")
    assert len(target.reads) < 80
    assert size < 1.5 * moment.size
    assert took < 0.7 * len(target.reads) * target.seconds


def test_single_pages_are_fetched_alone_and_once(big: tuple[Path, bytes, Moment]) -> None:
    root, expected, moment = big
    target = Slow(root, 0.0)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    pick = random.Random(seed)

    async def look() -> None:
        async with trio.open_nursery() as nursery:
            database = Database(0, moment, Fetcher(target, PageCache(64 << 20), nursery), no_more)
            await database.read(Reader(), 0, 100)
            target.reads.clear()
            for _ in range(50):
                pgno = pick.randrange(600, moment.commit) // 64 * 64
                found = await database.read(Reader(), pgno * 4096 + 5, 2000)
                assert found == expected[pgno * 4096 + 5 : pgno * 4096 + 2005]
            before = len(target.reads)
            assert max(length for _, length in target.reads) < 3 * 4096
            async with trio.open_nursery() as readers:
                for _ in range(20):
                    readers.start_soon(database.read, Reader(), 2111 * 4096, 4096)
            assert len(target.reads) - before <= 1
            nursery.cancel_scope.cancel()

    trio.run(look)


def test_the_cache_never_grows_beyond_its_limit(big: tuple[Path, bytes, Moment]) -> None:
    root, expected, moment = big
    limit, cache = 1 << 20, PageCache(1 << 20)

    async def look() -> None:
        async with trio.open_nursery() as nursery:
            database = Database(0, moment, Fetcher(DirectoryTarget(root), cache, nursery), no_more)
            reader = Reader()
            for offset in range(0, moment.size, 300_000):
                assert await database.read(reader, offset, 300_000) == expected[offset : offset + 300_000]
                assert cache.nbytes <= limit
                assert len(cache) * (4096 + ENTRY_BYTES) == cache.nbytes

    trio.run(look)
    assert len(cache) > 200


def test_a_store_that_was_away_is_asked_again(big: tuple[Path, bytes, Moment]) -> None:
    root, expected, moment = big
    target = Slow(root, 0.0)

    async def look() -> None:
        async with trio.open_nursery() as nursery:
            database = Database(0, moment, Fetcher(target, PageCache(64 << 20), nursery), no_more)
            target.failing = True
            for _ in range(REQUESTS + 1):
                with pytest.raises(ArchiveUnavailable):
                    await database.read(Reader(), 0, 100)
            target.failing = False
            assert await database.read(Reader(), 0, 100) == expected[:100]
            target.failing = True
            with pytest.raises(ArchiveUnavailable):
                await database.read(Reader(), moment.size - 10, 100)
            target.failing = False
            assert await database.read(Reader(), moment.size - 10, 100) == expected[-10:]

    trio.run(look)


def test_the_page_map_is_small_and_complete(big: tuple[Path, bytes, Moment]) -> None:
    root, _, moment = big
    target = DirectoryTarget(root)
    pages = PageMap(moment.page_size, moment.commit)
    pages.fill(read_indexes(target, list(reversed(moment.pieces))), "app.db")
    assert pages.nbytes == 16 * moment.commit
    lacking = PageMap(moment.page_size, moment.commit)
    with pytest.raises(ArchiveCorrupt, match="in none of its files"):
        lacking.fill(read_indexes(target, list(reversed(moment.pieces[1:]))), "app.db")


def test_a_damaged_record_of_a_bundle_is_noticed_when_its_index_is_read(tmp_path: Path) -> None:
    history = Archived(tmp_path / "archive", tmp_path / "work")
    history.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    history.bundle(raw=False)
    history.close()
    ((_, size, key),) = history.archive.bundle_names()
    path = tmp_path / "archive" / key
    data = bytearray(path.read_bytes())
    data[size - 100] ^= 1
    path.write_bytes(data)
    found = find([history.archive], Goal(txid=1))
    assert found is not None
    with pytest.raises(ArchiveCorrupt):
        list(read_indexes(history.target, found[1].pieces))


def test_a_gap_is_refused_with_the_moments_beside_it(tmp_path: Path) -> None:
    history = Archived(tmp_path / "archive", tmp_path / "work")
    history.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    for number in range(5):
        history.execute(f"INSERT INTO t VALUES ({number}, zeroblob(500))")
        history.bundle(raw=False)
    history.snapshot(3)
    history.close()
    history.target.delete([history.archive.prefix + "/litefs/log/0000000000000005"])
    found = find([history.archive], Goal(txid=4))
    assert found is not None
    for goal in (Goal(txid=5), Goal(txid=6), Goal(time=history.time(6) + 1)):
        with pytest.raises(NotRestorable, match="0000000000000003"):
            find([history.archive], goal)
