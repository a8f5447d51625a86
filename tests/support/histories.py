"""Random histories of a database: what it holds after each transaction, and the records that led there."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

from litefs.backup import bundle
from litefs.backup.bundle import Bundle
from litefs.ltx import Header, encode
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


class History:
    """A database that random transactions change, of small size so that all pages are touched often."""

    def __init__(self, seed: int, page_size: int = 512, max_pages: int = 24) -> None:
        self.rng = random.Random(seed)
        self.page_size = page_size
        self.max_pages = max_pages
        self.steps: list[Step] = []

    @property
    def last(self) -> Point:
        return self.steps[-1].point if self.steps else START

    def _page(self) -> bytes:
        some = self.rng.randbytes(self.rng.choice([1, 8, 40]))
        return (some * (self.page_size // len(some) + 1))[: self.page_size]

    def add(self, count: int = 1, apart: int = 100) -> list[Step]:
        """``count`` transactions more, ``apart`` ms from each other at most."""
        return [self._add(apart, self.page_size) for _ in range(count)]

    def resize(self, page_size: int) -> Step:
        """A transaction after which the pages have another size."""
        self.page_size = page_size
        return self._add(100, page_size)

    def _add(self, apart: int, page_size: int) -> Step:
        rng, before = self.rng, self.steps[-1] if self.steps else None
        old = before.pages if before is not None and before.page_size == page_size else []
        size = len(old)
        if not old or rng.random() < 0.5:
            size = rng.randint(1, self.max_pages)
        changed = set(rng.sample(range(1, size + 1), rng.randint(0, min(size, 5))))
        changed |= set(range(len(old) + 1, size + 1))
        if not changed:
            changed = {1}
        pages = [self._page() if n in changed else old[n - 1] for n in range(1, size + 1)]
        post = database_checksum(dict(enumerate(pages, 1)), page_size)
        txid = self.last.txid + 1
        time = (before.time if before is not None else FIRST_TIME) + rng.randint(0, apart)
        header = Header(0, page_size, size, txid, txid, time, self.last.checksum, node_id=7)
        images = b"".join(pages[n - 1] for n in sorted(changed))
        record = encode(header, array("I", sorted(changed)), images, post)
        step = Step(Point(txid, post, record_hash(record, len(record))), time, page_size, pages, record)
        self.steps.append(step)
        return step

    def pack(self, first: int, last: int) -> tuple[Bundle, list[bytes]]:
        """(front, records) of a bundle of transactions ``first`` to ``last``."""
        steps = self.steps[first - 1 : last]
        after = self.steps[first - 2].point if first > 1 else START
        packed = bundle.pack(after, [(step.point, step.time, step.record) for step in steps])
        return bundle.parse(packed), [step.record for step in steps]


def applied(image: bytes, page_size: int, pages: list[tuple[int, bytes]], commit: int) -> bytes:
    """A database file after a record, the slow way."""
    file = bytearray(image[: commit * page_size].ljust(commit * page_size, b"\0"))
    for pgno, page in pages:
        file[(pgno - 1) * page_size : pgno * page_size] = page
    return bytes(file)
