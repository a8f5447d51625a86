"""What is asked of a restore, by this package and by Litestream, and what it must give."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from litefs.backup.archive import timelines
from litefs.backup.finding import Goal, find
from litefs.backup.layout import LEVELS
from litefs.backup.restore import restore
from litefs.backup.targets import open_target
from litefs.errors import NotRestorable
from litefs.types import Point
from tests.archive.campaign import Timeline
from tests.archive.load import quick_check
from tests.archive.truth import Truth
from tests.support.litestream import litestream_binary
from tests.support.litestream import timestamp as stamp
from tests.support.processes import ROOT

RUN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A moment, and what was there then. ``time``: Unix ms, strictly after it; 0: by TXID."""

    name: str
    timeline: int
    point: Point
    time: int = 0

    def __str__(self) -> str:
        moment = stamp(self.time) if self.time else f"{self.point.txid:016x}"
        return f"{self.name}, timeline {self.timeline}, {moment}"


def draw(rng: random.Random, name: str, found: Sequence[Timeline], count: int) -> Iterator[Wanted]:
    """Transactions and times by chance, of all timelines: the first and the last of each, and any."""
    for timeline in found:
        txids = sorted(timeline.entries)
        if not txids:
            continue
        share = max(2, count * len(txids) // sum(len(one.entries) for one in found))
        picked = {txids[0], txids[-1], *rng.sample(txids, min(share, len(txids)))}
        for number, txid in enumerate(sorted(picked)):
            entry = timeline.entries[txid]
            if number % 2 == 0:
                yield Wanted(name, timeline.archive.number, entry.point)
                continue
            time = entry.time + rng.randrange(1, 50)
            last = max(other for other in txids if timeline.entries[other].time < time)
            newest = max(entry.time for entry in timeline.entries.values())
            if time <= newest + 1:
                yield Wanted(name, timeline.archive.number, timeline.entries[last].point, time)


def ours(source: str, wanted: Wanted, out: Path) -> None:
    """By the API."""
    goal = Goal(time=wanted.time) if wanted.time else Goal(txid=wanted.point.txid)
    there = timelines(open_target(source), wanted.name)
    found = find([one for one in there if one.number == wanted.timeline], goal)
    if found is None:
        raise NotRestorable(f"{wanted}: it did not exist then")
    restored = restore(*found, out)
    assert restored.proved
    assert (restored.txid, restored.checksum) == (wanted.point.txid, wanted.point.checksum)


def command(source: str, wanted: Wanted, out: Path) -> None:
    """By ``litefs restore``."""
    words = ["-timestamp", stamp(wanted.time)] if wanted.time else ["-txid", f"{wanted.point.txid:016x}"]
    words += ["--database", wanted.name, "-timeline", str(wanted.timeline), "-integrity-check", "full"]
    line = [sys.executable, "-m", "litefs.cli.main", "restore", "-o", str(out), *words, source]
    _run(line)


def _run(line: Sequence[str]) -> str:
    # Litestream 0.5.16 takes no other authorities for S3, and this S3 server needs none.
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS, env=environment
    )
    assert done.returncode == 0, f"{' '.join(line)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def compare(
    truth: Truth, tip: Point, wanted: Sequence[Wanted], bring: Callable[[Wanted, Path], None], out: Path
) -> int:
    """Bring each of one timeline, whose history leads to ``tip``, and hold it to what was there. How many."""
    left = {one.point: [other for other in wanted if other.point == one.point] for one in wanted}
    done = 0
    for record, image in truth.images(tip):
        for one in left.pop(record.point, ()):
            bring(one, out)
            content = out.read_bytes()
            expected = image.content
            assert len(content) == len(expected), f"{one}: {len(content)} bytes, not {len(expected)}"
            if content != expected:
                at = next(i for i, (a, b) in enumerate(zip(content, expected, strict=True)) if a != b)
                raise AssertionError(f"{one}: differs at {at}, page {at // image.page_size + 1}")
            if content:
                assert quick_check(str(out)) == "ok", f"{one}"
            out.unlink()
            done += 1
    assert not left, f"not in the history: {left}"
    return done


def litestream_moments(rng: random.Random, timeline: Timeline, count: int, *, times: bool) -> list[Wanted]:
    """The newest state, and some moments at which files end that Litestream reads from."""
    archive = timeline.archive
    files = {file.max_txid for level in LEVELS for file in archive.files(level)} & timeline.entries.keys()
    picked = rng.sample(sorted(files), min(count, len(files)))
    found = []
    for number, txid in enumerate(sorted(picked)):
        entry = timeline.entries[txid]
        if times and number % 2:
            last = max(other for other in files if timeline.entries[other].time < entry.time + 1)
            found.append(Wanted(archive.name, archive.number, timeline.entries[last].point, entry.time + 1))
        else:
            found.append(Wanted(archive.name, archive.number, entry.point))
    return found


def litestream(url: str, wanted: Wanted, out: Path) -> None:
    """By the real Litestream, from the timeline's own URL."""
    binary = litestream_binary()
    assert binary is not None
    words = ["-timestamp", stamp(wanted.time)] if wanted.time else ["-txid", f"{wanted.point.txid:016x}"]
    _run([str(binary), "restore", "-integrity-check", "full", "-json", *words, "-o", str(out), url])


def litestream_url(source: str, prefix: str) -> str:
    """Of one timeline of an archive."""
    base, mark, query = source.partition("?")
    return f"{base}/{prefix}{mark}{query}"
