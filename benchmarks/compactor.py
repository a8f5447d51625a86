"""MB/s of pages through the compactor, beside decoding them and encoding the newest again; CPU time.

    python benchmarks/compactor.py [--pages N] [--changed N] [--inputs N] [--json]

The inputs are a whole database and transactions of scattered pages after it, of SQLite's pages (rows of short
words), as raw files of an archive are. Memory: what Python had at most beyond the inputs, in another run.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kernel_rows_ltx import PAGE, PAGES, database_pages
from litefs.ltx import Decoder, Encoder, Header
from litefs.ltx.compactor import compact, derived_header

ROUNDS = 3
BATCH = 256


def record(txid: int, pages: int, pgnos: list[int], source: bytes) -> bytes:
    """A raw file of these pages."""
    encoder = Encoder(Header(2, PAGE, pages, txid, txid, txid, 0, 32))
    out = [encoder.begin()]
    for at in range(0, len(pgnos), BATCH):
        some = pgnos[at : at + BATCH]
        starts = [(pgno + txid) % PAGES * PAGE for pgno in some]
        out.append(encoder.add(array("I", some), b"".join(source[s : s + PAGE] for s in starts)))
    return b"".join([*out, encoder.finish(0)])


def opened(records: list[bytes]) -> list[Decoder]:
    """Decoders that have not read anything but the headers."""
    return [Decoder(io.BytesIO(record).read) for record in records]


def again(records: list[bytes]) -> Iterator[bytes]:
    """The result by images in memory, each compressed again."""
    newest: dict[int, bytes] = {}
    for decoder in opened(records):
        for pgnos, images in decoder:
            view = bytes(images)
            for at, pgno in enumerate(memoryview(pgnos).cast("I")):
                newest[pgno] = view[at * PAGE : (at + 1) * PAGE]
    commit = max(newest)
    encoder = Encoder(derived_header(PAGE, commit, 1, len(records), 0))
    yield encoder.begin()
    for at in range(1, commit + 1, BATCH):
        some = range(at, min(at + BATCH, commit + 1))
        yield encoder.add(array("I", some), b"".join(newest[pgno] for pgno in some))
    yield encoder.finish(0)


def peak(work: Callable[[], Iterator[bytes]]) -> float:
    """Most memory that this allocates, in MB."""
    tracemalloc.start()
    for _ in work():
        pass
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found / 1e6


def fastest(work: Callable[[], Iterator[bytes]]) -> float:
    """Seconds of the fastest of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in work():
            pass
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pages", type=int, default=50_000, help="of the database (default %(default)s)")
    parser.add_argument("--changed", type=int, default=500, help="by each transaction (default %(default)s)")
    parser.add_argument("--inputs", type=int, default=32, help="files (default %(default)s)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng, source = random.Random(1), database_pages()
    everything = list(range(1, options.pages + 1))
    records = [record(1, options.pages, everything, source)]
    for txid in range(2, options.inputs + 1):
        some = sorted(rng.sample(everything, min(options.changed, options.pages)))
        records.append(record(txid, options.pages, some, source))
    count = options.pages + (options.inputs - 1) * min(options.changed, options.pages)
    copied = fastest(lambda: compact(opened(records)))
    memory = peak(lambda: compact(opened(records)))
    encoded = fastest(lambda: again(records))
    result = {
        "pages": count,
        "compact_mb_s": round(count * PAGE / copied / 1e6),
        "compact_us_per_page": round(copied / count * 1e6, 2),
        "compact_memory_mb": round(memory, 1),
        "encode_again_mb_s": round(count * PAGE / encoded / 1e6),
        "times_faster": round(encoded / copied, 2),
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:22} {value:>10}")


if __name__ == "__main__":
    main()
