"""MB/s of ``litefs restore``: the newest state of 1 GB, with 10,000 transactions after its snapshot.

The archive, in a directory, is written by the archiver's own writers: a snapshot, bundles, and a file of
level 0 for every transaction, none merged. Pages are half random. In each round the database is restored, and
a file of the same content copied by cp(1), each to a new file and synced; what was restored is compared.
"""

from __future__ import annotations

import filecmp
import os
import random
import statistics
import struct
import subprocess
import sys
import time
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, Series, arguments, awake, report, steal_recorded, workspace
from litefs._core.pagesums import page_checksums
from litefs.backup import bundle as bundles
from litefs.backup.archive import Archive, Head, Start
from litefs.backup.directory import DirectoryTarget
from litefs.backup.snapshots import write_snapshot
from litefs.backup.transcode import write_l0
from litefs.ltx.encoder import encode
from litefs.ltx.format import Header
from litefs.store.segments import record_hash
from litefs.types import CHECKSUM_FLAG, Point

NAME = "bench.db"
PAGE = 4096
TOUCHED = 4
"""Pages of a transaction."""
BATCH = 256
BEGAN = 1_700_000_000_000
"""Unix ms of the first transaction."""
RESTORE_SECONDS = 600.0


class Writer:
    """A database as a file of random pages, and its archive."""

    def __init__(self, archive: Archive, file: Path, pages: int) -> None:
        self._archive = archive
        self._rng = random.Random(1)
        self._pages = pages
        self._sums = array("Q")
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        for first in range(1, pages + 1, BATCH):
            images = b"".join(self._page() for _ in range(min(BATCH, pages + 1 - first)))
            os.pwrite(self._fd, images, (first - 1) * PAGE)
            self._sums.frombytes(page_checksums(first, images, PAGE))
        total = 0
        for each in self._sums:
            total ^= each
        self._point = Point(1, CHECKSUM_FLAG | total, 1)
        archive.claim("bench", BEGAN)
        write_snapshot(archive, file, PAGE, pages, self._point, BEGAN)
        archive.begin(Start(self._point, BEGAN, "new", "bench"))

    def _page(self) -> bytes:
        return self._rng.randbytes(PAGE // 2) + bytes(PAGE // 2)

    def transactions(self, count: int) -> None:
        """A bundle of that many, and its files."""
        after, records, bodies = self._point, [], []
        for _ in range(count):
            pgnos = sorted(self._rng.sample(range(1, self._pages + 1), TOUCHED))
            images = [self._page() for _ in pgnos]
            total = self._point.checksum
            for pgno, image in zip(pgnos, images, strict=True):
                os.pwrite(self._fd, image, (pgno - 1) * PAGE)
                (new,) = struct.unpack("=Q", page_checksums(pgno, image, PAGE))
                total ^= self._sums[pgno - 1] ^ new
                self._sums[pgno - 1] = new
            total |= CHECKSUM_FLAG
            txid = self._point.txid + 1
            when = BEGAN + txid
            header = Header(0, PAGE, self._pages, txid, txid, when, self._point.checksum)
            body = encode(header, array("I", pgnos), b"".join(images), total)
            self._point = Point(txid, total, record_hash(body, len(body)))
            records.append((self._point, when, body))
            bodies.append(body)
        data = bundles.pack(after, records)
        assert self._archive.append(after.txid + 1, data)
        write_l0(self._archive, bundles.parse(data), bodies)

    def finish(self) -> None:
        """Say how far the archive goes; the file is whole."""
        self._archive.set_head(Head(self._point.txid, BEGAN + self._point.txid))
        os.fsync(self._fd)
        os.close(self._fd)


def timed(*command: str | Path) -> float:
    """Seconds of a command."""
    begin = time.perf_counter()
    subprocess.run(
        list(map(str, command)), check=True, timeout=RESTORE_SECONDS, cwd=ROOT, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--megabytes", type=int, default=1000, help="of the database (default %(default)s)")
    parser.add_argument("--transactions", type=int, default=10_000, help="(default %(default)s)")
    parser.add_argument(
        "--bundle",
        type=int,
        default=8,
        help="transactions in one; up to 8 each has a file (default %(default)s)",
    )
    options = parser.parse_args()
    restored, copied = Series("litefs restore", "MB/s"), Series("cp", "MB/s")
    with workspace(options) as root, awake(options):
        expected = root / "expected.db"
        archive = Archive(DirectoryTarget(root / "archive"), NAME)
        pages = options.megabytes * 1_000_000 // PAGE
        writer = Writer(archive, expected, pages)
        for done in range(0, options.transactions, options.bundle):
            writer.transactions(min(options.bundle, options.transactions - done))
        writer.finish()
        out, megabytes = root / "out.db", pages * PAGE / 1e6
        restore = [sys.executable, "-m", "litefs.cli.main", "restore", "--database", NAME]
        restore += ["-integrity-check", "none", "-o", str(out), archive.target.name]
        os.sync()

        def run_restore() -> float:
            with steal_recorded(restored):
                return timed(*restore)

        def run_copy() -> float:
            with steal_recorded(copied):
                return timed("sh", "-c", 'cp "$0" "$1" && sync "$1"', expected, out)

        for number in range(options.rounds):
            pairs = [(restored, run_restore), (copied, run_copy)]
            for series, run in pairs if number % 2 == 0 else reversed(pairs):
                series.values.append(megabytes / run())
                assert filecmp.cmp(out, expected, shallow=False), f"{series.name} is not the database"
                out.unlink()
        files = len(archive.files(0))
    pairs_of = zip(restored.values, copied.values, strict=True)
    ratios = {"litefs restore / cp, median of the rounds": statistics.median(a / b for a, b in pairs_of)}
    notes = {"files of level 0": files, "bytes": pages * PAGE}
    title = f"restore of {megabytes:,.0f} MB with {options.transactions:,} transactions"
    report(options, title, [restored, copied], ratios, notes)


if __name__ == "__main__":
    main()
