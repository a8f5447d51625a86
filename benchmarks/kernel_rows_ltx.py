"""Rows for CRC, page checksums and LTX records."""

from __future__ import annotations

import functools
import random
import sqlite3
import struct
from array import array
from collections.abc import Callable

from benchmarks.kernel_row import Row
from litefs._core import crc64, pageblock, pagedecode, pagesums
from litefs.ltx.format import Header
from litefs.types import CHECKSUM_FLAG
from tests.kernels import reference_crc64, reference_ltx

PAGE = 4096
PAGES = 256


def database_pages() -> bytes:
    """Pages as an ordinary SQLite table has them: short words, dates and numbers, from a fixed seed."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(500)]
    with sqlite3.connect(":memory:") as db:
        db.execute(f"PRAGMA page_size={PAGE}")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, city TEXT, day TEXT, amount REAL)")
        rows = (
            (
                f"{rng.choice(words)} {rng.choice(words)}",
                rng.choice(words),
                f"2026-01-{n % 28 + 1:02}",
                rng.random(),
            )
            for n in range(30_000)
        )
        db.executemany("INSERT INTO t (name, city, day, amount) VALUES (?, ?, ?, ?)", rows)
        db.commit()
        image = db.serialize()
    db.close()
    return image[: PAGES * PAGE]


def using(backend: str, work: Callable[[], object]) -> Callable[[], object]:
    """``work`` with this CRC backend."""

    def run() -> None:
        crc64.set_backend(backend)  # type: ignore[arg-type]
        work()

    return run


def rows() -> list[Row]:
    images = database_pages()
    pgnos = array("I", range(1, PAGES + 1))
    some = images[: 4 * PAGE]
    header = Header(0, PAGE, PAGES, 1, 1, 0, 0).pack()
    post = CHECKSUM_FLAG | 1
    record = pageblock.encode_record(header, pgnos, images, post)
    short_header = Header(0, PAGE, 4, 1, 1, 0, 0).pack()
    short = pageblock.encode_record(short_header, pgnos[:4], some, post)
    backends = ["table"]
    if crc64.backend() == "clmul":
        backends.insert(0, "clmul")

    def checksums() -> object:
        return pagesums.page_checksums(1, images, PAGE)

    def slow_checksums() -> object:
        return [reference_crc64.page_checksum(n + 1, some[n * PAGE : (n + 1) * PAGE]) for n in range(4)]

    sums = pagesums.PageSums(bytearray(pagesums.HEADER_SIZE + 8 * PAGES))
    sums.format(PAGE)
    sums.load(1, checksums())  # type: ignore[arg-type]
    sums.reset(PAGES, 1, sums.recompute_total(), 0, 0)
    one, page = array("I", [7]), images[6 * PAGE : 7 * PAGE]

    def commit_one() -> None:
        after, new = sums.preview(one, page, PAGES)
        sums.commit(one, new, PAGES, 2, after, 0, 0)

    table = []
    for backend in backends:
        bar = 4000.0 if backend == "clmul" else 1000.0
        run = crc64.crc64_clmul if backend == "clmul" else crc64.crc64_table
        table += [
            Row(
                f"crc64, {backend}",
                len(images),
                functools.partial(run, images),
                lambda: reference_crc64.crc64(some),
                len(some),
            ),
            Row(
                f"page checksums, {backend}",
                len(images),
                using(backend, checksums),
                slow_checksums,
                len(some),
                bar,
            ),
        ]
    best = backends[0]
    return [
        *table,
        Row("preview + commit of one page", PAGE, using(best, commit_one), slow_checksums, len(some)),
        Row(
            "LTX encode",
            len(images),
            using(best, lambda: pageblock.encode_record(header, pgnos, images, post)),
            lambda: reference_ltx.encode(short_header, [1, 2, 3, 4], some, post),
            len(some),
            400.0,
        ),
        Row(
            "LTX encode, one page",
            PAGE,
            using(best, lambda: pageblock.encode_record(_later(header), one, page, post)),
            lambda: reference_ltx.encode(short_header, [1, 2, 3, 4], some, post),
            len(some),
        ),
        Row(
            "LTX decode and verify",
            len(images),
            using(best, lambda: pagedecode.decode_record(record)),
            lambda: reference_ltx.decode(short),
            len(some),
        ),
    ]


def _later(header: bytes) -> bytes:
    """The header of a transaction that need not hold every page."""
    return header[:16] + struct.pack(">QQ", 2, 2) + header[32:]
