"""An archiver without node, log and clock: it stores what a History makes, by the code of litefs/backup."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

from litefs.backup import bundle
from litefs.backup.archive import Archive, Start
from litefs.backup.compaction import boundary, compact_level
from litefs.backup.layout import SNAPSHOT_LEVEL
from litefs.backup.target import Target
from litefs.backup.transcode import write_l0
from litefs.ltx import encode
from litefs.ltx.compactor import derived_header
from litefs.types import START
from tests.support.histories import FIRST_TIME, Step, Steps

INTERVALS = {1: 1_000, 2: 5_000, 3: 20_000}
"""Of the levels, in ms."""


def snapshot(step: Step) -> bytes:
    """The whole database after a transaction, as a file of level 9."""
    pgnos = array("I", range(1, len(step.pages) + 1))
    header = derived_header(step.page_size, len(step.pages), 1, step.point.txid, step.time)
    return encode(header, pgnos, step.image, 0)


class Archived:
    """A timeline of ``history``, from the transaction after ``start`` on."""

    def __init__(self, target: Target, prefix: str, history: Steps, scratch: Path, start: int = 0) -> None:
        self.archive = Archive(target, prefix)
        self.history = history
        self.scratch = scratch
        self.root = Path(target.name.removeprefix("file://")) / prefix
        self.done = start
        assert self.archive.claim("node", FIRST_TIME)
        if start:
            self.snapshot()
        step = history.steps[start - 1] if start else None
        begin = Start(step.point if step else START, step.time if step else FIRST_TIME, "new", "node")
        assert self.archive.begin(begin)

    @property
    def now(self) -> int:
        return self.history.steps[self.done - 1].time if self.done else FIRST_TIME

    def store(self, count: int, big: bool | None = None) -> None:
        """The next ``count`` transactions as one bundle; fewer if the page size changes before. ``big``: a
        single one beside its bundle, now and then by default."""
        steps = self.history.steps
        first = steps[self.done]
        changes = self.done > 0 and first.page_size != steps[self.done - 1].page_size
        last = self.done + 1
        while last < min(self.done + count, len(steps)) and steps[last].page_size == first.page_size:
            last += 1
        after = steps[self.done - 1].point if self.done else START
        some = steps[self.done : last]
        packed = bundle.pack(after, [(step.point, step.time, step.record) for step in some])
        if big is None:
            big = len(some) == 1 and self.history.rng.random() < 0.2
        if big:
            packed = bundle.pack_big(after, some[0].point, some[0].time, len(some[0].record))
            self.archive.write_big(some[0].point, [some[0].record])
        assert self.archive.append(self.done + 1, packed)
        found = self.archive.bundle(self.done + 1)
        assert found is not None
        write_l0(self.archive, found)
        self.done = last
        if changes:
            self.snapshot()

    def snapshot(self) -> None:
        step = self.history.steps[self.done - 1]
        self.archive.write(SNAPSHOT_LEVEL, 1, step.point.txid, step.time, snapshot(step))

    def compact(self, level: int, before: int | None = None) -> None:
        if before is None:
            before = boundary(self.now, INTERVALS[level])
        compact_level(self.archive, level, before, self.scratch)

    def run(self, choose: Callable[[], str]) -> None:
        """Everything that the history holds, between other things that ``choose`` names."""
        while self.done < len(self.history.steps):
            what = choose()
            if what == "snapshot" and self.done:
                self.snapshot()
            elif what.isdigit():
                self.compact(int(what))
            else:
                self.store(self.history.rng.choice([1, 2, 7, 30]))
