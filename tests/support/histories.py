"""Random histories of a database: what it holds after each transaction, and the records that led there."""

from __future__ import annotations

import random
import sqlite3
from array import array
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from litefs.backup import bundle
from litefs.backup.bundle import Bundle
from litefs.ltx import Header, encode, lock_pgno
from litefs.store.segments import record_hash
from litefs.types import START, Point
from tests.kernels.reference_crc64 import database_checksum

FIRST_TIME = 1_700_000_000_000


@dataclass
class Step:
    """One transaction: the pages after it (by number, from 1), and its record as a log has it."""

    point: Point
    time: int
    page_size: int
    pages: list[bytes]
    record: bytes

    @property
    def image(self) -> bytes:
        """The database file."""
        return b"".join(self.pages)


class Steps:
    """Transactions after each other. With ``sums`` False their database checksums are made up: computing
    them from the definition takes long for big pages."""

    def __init__(self, seed: int, page_size: int, sums: bool = True) -> None:
        self.rng = random.Random(seed)
        self.page_size = page_size
        self.steps: list[Step] = []
        self._sums = sums

    @property
    def last(self) -> Point:
        return self.steps[-1].point if self.steps else START

    def append(self, pages: list[bytes], changed: set[int], apart: int) -> Step:
        """The transaction after which the database has ``pages``, of which at least ``changed`` (page
        numbers) are new; up to ``apart`` ms after the one before."""
        txid, size = self.last.txid + 1, self.page_size
        checksum = 1 << 63 | self.rng.getrandbits(63)
        post = database_checksum(dict(enumerate(pages, 1)), size) if self._sums else checksum
        time = (self.steps[-1].time if self.steps else FIRST_TIME) + self.rng.randint(0, apart)
        header = Header(0, size, len(pages), txid, txid, time, self.last.checksum, node_id=7)
        pgnos = sorted(changed - {lock_pgno(size)})
        record = encode(header, array("I", pgnos), b"".join(pages[n - 1] for n in pgnos), post)
        step = Step(Point(txid, post, record_hash(record, len(record))), time, size, pages, record)
        self.steps.append(step)
        return step

    def pack(self, first: int, last: int) -> tuple[Bundle, list[bytes]]:
        """(front, records) of a bundle of transactions ``first`` to ``last``."""
        steps = self.steps[first - 1 : last]
        after = self.steps[first - 2].point if first > 1 else START
        packed = bundle.pack(after, [(step.point, step.time, step.record) for step in steps])
        return bundle.parse(packed), [step.record for step in steps]


class History(Steps):
    """A database of a few pages of noise, so that all are touched often."""

    def __init__(self, seed: int, page_size: int = 512, max_pages: int = 24) -> None:
        super().__init__(seed, page_size)
        self.max_pages = max_pages

    def _page(self) -> bytes:
        some = self.rng.randbytes(self.rng.choice([1, 8, 40]))
        return (some * (self.page_size // len(some) + 1))[: self.page_size]

    def add(self, count: int = 1, apart: int = 100) -> list[Step]:
        """``count`` transactions more, ``apart`` ms from each other at most."""
        return [self._add(apart) for _ in range(count)]

    def resize(self, page_size: int) -> Step:
        """A transaction after which the pages have another size."""
        self.page_size = page_size
        return self._add(100)

    def _add(self, apart: int) -> Step:
        rng, before = self.rng, self.steps[-1] if self.steps else None
        old = before.pages if before is not None and before.page_size == self.page_size else []
        size = len(old)
        if not old or rng.random() < 0.5:
            size = rng.randint(1, self.max_pages)
        changed = set(rng.sample(range(1, size + 1), rng.randint(0, min(size, 5))))
        changed |= set(range(len(old) + 1, size + 1))
        if not changed:
            changed = {1}
        pages = [self._page() if n in changed else old[n - 1] for n in range(1, size + 1)]
        return self.append(pages, changed, apart)


class SqliteHistory(Steps):
    """A database of SQLite's in ``path``: rows come, change and go, it grows, shrinks, changes its pages."""

    def __init__(self, seed: int, path: Path, page_size: int = 4096) -> None:
        super().__init__(seed, page_size, sums=False)
        self.path = path
        with closing(self._open()) as db:
            db.execute(f"PRAGMA page_size={page_size}")
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b BLOB)")
        self._note(100)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None)

    def _note(self, apart: int) -> Step:
        image, size = self.path.read_bytes(), self.page_size
        pages = [image[at : at + size] for at in range(0, len(image), size)]
        before = self.steps[-1] if self.steps else None
        old = before.pages if before is not None and before.page_size == size else []
        changed = {n for n, page in enumerate(pages, 1) if n > len(old) or old[n - 1] != page}
        return self.append(pages, changed, apart)

    def add(self, count: int = 1, apart: int = 100) -> list[Step]:
        """``count`` transactions more, ``apart`` ms from each other at most."""
        rng, found = self.rng, []
        with closing(self._open()) as db:
            for _ in range(count):
                rows = [(f"row {rng.random()}", rng.randbytes(rng.randint(0, 700))) for _ in range(5)]
                db.execute("BEGIN")
                db.executemany("INSERT INTO t (a, b) VALUES (?, ?)", rows)
                db.execute("UPDATE t SET a = a || 'x' WHERE id % 7 = ?", (rng.randrange(7),))
                if rng.random() < 0.2:
                    db.execute("DELETE FROM t WHERE id % 3 = ?", (rng.randrange(3),))
                db.execute("COMMIT")
                found.append(self._note(apart))
        return found

    def shrink(self) -> Step:
        """Most rows go, and with them the pages."""
        with closing(self._open()) as db:
            db.execute("DELETE FROM t WHERE id % 10")
            self._note(50)
            db.execute("VACUUM")
        return self._note(50)

    def resize(self, page_size: int) -> Step:
        """Pages of another size."""
        with closing(self._open()) as db:
            db.execute(f"PRAGMA page_size={page_size}")
            db.execute("VACUUM")
        self.page_size = page_size
        return self._note(100)


def applied(image: bytes, page_size: int, pages: list[tuple[int, bytes]], commit: int) -> bytes:
    """A database file after a record, the slow way."""
    file = bytearray(image[: commit * page_size].ljust(commit * page_size, b"\0"))
    for pgno, page in pages:
        file[(pgno - 1) * page_size : pgno * page_size] = page
    return bytes(file)
