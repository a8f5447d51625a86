"""Nodes that archive while clients write and things fail, and what the archive has to hold in the end."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litefs.backup.archive import Archive, timelines
from litefs.backup.bundle import Logged
from litefs.backup.target import Target
from litefs.cli.connection import Connection
from litefs.cli.transfer import export_database
from litefs.errors import LiteFSError
from litefs.types import Point
from tests.archive.load import KINDS, Writer
from tests.archive.stores import Mode, Store
from tests.archive.truth import Truth, tip_of
from tests.support.elected import CHANGE_SECONDS, Elected
from tests.support.node import Node, wait_equal
from tests.support.processes import Client, pause, wait_until

NAMES = ("a", "b")
TAIL = 6
"""Transactions at least that only a primary which is about to die has, when its tail is to be given up."""
TAIL_SECONDS = 8.0
QUIET_SECONDS = 60.0
WATCH_SECONDS = 0.2
STRIKES = ("kill", "handoff", "diverge", "store", "kill fs", "store and kill")
STORE_SECONDS = (0.5, 2.5)
DOWN_SECONDS = (0.2, 3.0)
OWN_BYTES = (slice(24, 28), slice(40, 44), slice(92, 96))
"""Of page 1, in a copy made by SQLite's online backup: its schema cookie and what follows from that."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A database as ``litefs export`` gave it."""

    name: str
    point: Point
    content: bytes

    def is_of(self, content: bytes) -> bool:
        """Whether it was taken of a database with that content."""
        expected = bytearray(content)
        for part in OWN_BYTES:
            expected[part] = self.content[part]
        return bytes(expected) == self.content


@dataclass(slots=True)
class Timeline:
    """What an archive says that it holds of one history: all transactions after ``start``."""

    archive: Archive
    start: Point
    reason: str
    entries: dict[int, Logged] = field(default_factory=dict)

    @property
    def tip(self) -> Point:
        return self.entries[max(self.entries)].point if self.entries else self.start


def read_timelines(target: Target, name: str) -> list[Timeline]:
    """Those that were begun, the newest last; every bundle follows the one before it (Archive.bundles)."""
    found = []
    for archive in timelines(target, name):
        start = archive.start()
        if start is None:
            continue
        timeline = Timeline(archive, start.point, start.reason)
        for bundle in archive.bundles(start.point.txid + 1):
            assert bundle.entries[0].txid != start.point.txid + 1 or bundle.after == start.point
            timeline.entries.update((entry.txid, entry) for entry in bundle.entries)
        found.append(timeline)
    return found


class Watch(threading.Thread):
    """Looks at the archive all the time: what is there once stays, as it is."""

    def __init__(self, target: Target) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._wanted = True
        self._seen: dict[str, int] = {}
        self.broken: list[str] = []
        self.looks = 0

    def run(self) -> None:
        while self._wanted:
            try:
                self.look()
            except Exception as error:
                self.broken.append(f"the archive cannot be read: {error!r}")
            time.sleep(WATCH_SECONDS)

    def look(self) -> None:
        """Once."""
        held: dict[str, int] = {}
        for kind in KINDS:
            for archive in timelines(self._target, kind.name):
                held.update((key, size) for _, size, key in archive.bundle_names())
        for key, size in self._seen.items():
            if held.get(key) != size:
                self.broken.append(f"{key} had {size} bytes, then {held.get(key)}")
        self._seen = held
        self.looks += 1

    def stop(self) -> None:
        self._wanted = False
        self.join(30)


class Campaign:
    """Two candidates and an archive, under load."""

    def __init__(
        self,
        root: Path,
        store: Store,
        target: Target,
        lease: dict[str, Any],
        make_node: Callable[..., Node],
        make_client: Callable[..., Client],
        rng: random.Random,
        **backup: Any,
    ) -> None:
        """``target``: the archive, by a way that does not fail. ``backup``: more of that section."""
        self._rng = rng
        self.store = store
        self.target = target
        self.counts: Counter[str] = Counter()
        self.copies: list[Copy] = []
        self._root = root
        settings = {**store.backup, "sync-interval": "200ms", **backup}
        self.elected = Elected(make_node, lease, NAMES, backup=settings)
        self.nodes = self.elected.nodes
        self.truths = {kind.name: Truth(root / f"{n}.truth", kind.name) for n, kind in enumerate(KINDS)}
        self.watch = Watch(target)
        self.writers = [
            Writer(kind, list(self.nodes.values()), make_client, random.Random(rng.getrandbits(64)))
            for kind in KINDS
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write, and look at the archive, until the end of the block."""
        with ExitStack() as stack:
            stack.callback(self.elected.close)
            for truth in self.truths.values():
                stack.callback(truth.close)
            for writer in self.writers:
                stack.callback(writer.end)
                writer.go()
            stack.callback(self.watch.stop)
            self.watch.start()
            yield

    @property
    def acknowledged(self) -> int:
        """Transactions that were answered."""
        return sum(writer.acknowledged for writer in self.writers)

    def await_transactions(self, count: int, seconds: float) -> None:
        """Until that many were answered, of each database some."""

        def look() -> bool:
            return self.acknowledged >= count and all(writer.acknowledged for writer in self.writers)

        wait_until(look, seconds, f"{count} transactions\n{self.describe()}", 0.02)

    def describe(self) -> str:
        """What there is to know of a failure."""
        lines = [
            f"{one.kind.name}: {one.acknowledged} answered, refused {one.refused[-3:]}"
            for one in self.writers
        ]
        return "\n".join([*lines, self.elected.logs()])

    # -- faults ---------------------------------------------------------------------------------------

    def strikes(self, count: int) -> list[str]:
        """Each kind before any comes again, in an order by chance."""
        decks = (self._rng.sample(STRIKES, len(STRIKES)) for _ in itertools.count())
        return list(itertools.islice(itertools.chain.from_iterable(decks), count))

    def strike(self, kind: str) -> None:
        """Let it happen, and wait until a primary has a replica again."""
        self.collect()
        self.counts[kind] += 1
        if kind == "handoff":
            node = self.nodes[self.elected.await_following()]
            node.post("/handoff")
        elif kind == "diverge":
            self._diverge()
        elif kind == "kill fs":
            node = self.nodes[self.elected.await_primary()]
            before = node.fs_pid()
            node.kill("fs")
            node.wait_recovered(before)
        elif kind == "kill":
            self._kill(self._rng.uniform(*DOWN_SECONDS))
        else:
            self._store(kind == "store and kill")
        self.elected.await_following()
        self.collect()

    def _kill(self, down: float) -> None:
        node = self.nodes[self.elected.await_primary()]
        node.kill("both")
        self.collect()
        time.sleep(down)
        node.start()
        self.elected.await_primary()

    def _store(self, kill: bool) -> None:
        mode: Mode = self._rng.choice(self.store.modes)
        self.counts[f"store: {mode}"] += 1
        self.store.fail(mode)
        try:
            time.sleep(self._rng.uniform(*STORE_SECONDS))
            if kill:
                self._kill(self._rng.uniform(*DOWN_SECONDS))
        finally:
            self.store.fail("")

    def _diverge(self) -> None:
        """The replica stands still while the primary archives; then the primary dies, and the replica leads
        without what only the archive and the dead one have."""
        name = self.elected.await_following()
        node = self.nodes[name]
        (other,) = (one for one in self.nodes.values() if one is not node)
        assert other.process is not None
        stopped = other.process.pid
        pause(stopped)
        try:
            before = {kind.name: self._txid(node, kind.name) for kind in KINDS}
            wait_until(
                lambda: any(self.archived(kind) >= before[kind] + TAIL for kind in before),
                TAIL_SECONDS,
                f"a tail is archived, beyond {before}\n{self.describe()}",
                0.02,
            )
            self.collect()
            node.kill("both")
            self.collect()
        finally:
            os.kill(stopped, signal.SIGCONT)
        self._lead(other)
        node.start()

    def _lead(self, node: Node) -> None:
        """Have it lead, though it may be behind what the other one published."""
        deadline = time.monotonic() + CHANGE_SECONDS
        while self.elected.primary() != node.name:
            assert time.monotonic() < deadline, f"{node.name} does not lead\n{self.describe()}"
            try:
                node.post("/promote?force=1", timeout=10)
            except OSError:  # the lease of the dead one is not over
                time.sleep(0.2)

    @staticmethod
    def _txid(node: Node, name: str) -> int:
        position = node.position(name)
        return position.txid if position is not None else 0

    def archived(self, name: str) -> int:
        """The last transaction that is in the newest timeline, by the names of bundles alone: its first."""
        found = [first for one in timelines(self.target, name)[-1:] for first, _, _ in one.bundle_names()]
        return max(found, default=0)

    # -- the truth ------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Take what the logs hold by now."""
        for node in self.nodes.values():
            for name, truth in self.truths.items():
                if node.process is None:
                    truth.collect(node.data, None)
                elif (position := node.position(name)) is not None:
                    truth.collect(node.data, position.txid)

    def copy(self) -> None:
        """While the writers rest: each database by ``litefs export``, and where its log leads."""
        self.rest()
        node = self.nodes[self.elected.await_primary()]
        for kind in KINDS:
            path = self._root / "copy.db"
            export_database(Connection(node.url), kind.name, path)
            self.copies.append(Copy(kind.name, tip_of(node.data, kind.name), path.read_bytes()))
        self.go()

    def go(self) -> None:
        """Have the writers go on."""
        for writer in self.writers:
            writer.go()

    def rest(self) -> None:
        """Have them rest."""
        for writer in self.writers:
            writer.rest()

    def quiet(self) -> dict[str, Point]:
        """At rest: until the nodes are alike and the archive has everything. Where each log leads."""
        self.store.fail("")
        self.rest()
        primary = self.nodes[self.elected.await_following()]
        for node in self.nodes.values():
            for kind in KINDS if node is not primary else ():
                wait_equal(primary, node, kind.name, CHANGE_SECONDS)
        self.collect()
        tips = {kind.name: tip_of(primary.data, kind.name) for kind in KINDS}
        for name, tip in tips.items():
            wait_until(
                lambda name=name, tip=tip: self._holds(name, tip),  # type: ignore[misc]
                QUIET_SECONDS,
                f"the archive of {name} reaches {tip}\n{self.elected.logs()}",
                0.1,
            )
        return tips

    def _holds(self, name: str, tip: Point) -> bool:
        try:
            found = read_timelines(self.target, name)
        except LiteFSError:
            return False
        return bool(found) and found[-1].tip == tip

    # -- the archive ----------------------------------------------------------------------------------

    def judge(self, name: str, tip: Point) -> tuple[list[Timeline], int]:
        """Hold the archive of a database to its history. Its timelines, and how many transactions they hold
        that were given up."""
        truth = self.truths[name]
        surviving = {record.point for record in truth.history(tip)}
        found = read_timelines(self.target, name)
        assert found[-1].tip == tip
        archived: set[Point] = set()
        for timeline in found:
            history = truth.history(timeline.tip)
            points = [entry.point for entry in timeline.entries.values()]
            assert points == [one.point for one in history if one.point.txid > timeline.start.txid]
            times = [entry.time for entry in timeline.entries.values()]
            assert times == sorted(times), f"{timeline.archive.url}: times go backwards"
            archived.update(points)
        assert [entry.point for entry in found[-1].entries.values() if entry.point not in surviving] == []
        missing = sorted(point.txid for point in surviving - archived)
        excused = {txid for one in unfollowed(found, truth) for txid in one}
        assert set(missing) <= excused, f"{name}: never archived: {sorted(set(missing) - excused)[:20]}"
        lost = len(archived - surviving)
        print(f"{name}: {len(surviving)} transactions, {len(found)} timelines, {lost} of other histories")
        if missing:
            print(f"{name}: {len(missing)} transactions only in the snapshots that timelines begin with")
        return found, lost


def unfollowed(found: Sequence[Timeline], truth: Truth) -> Iterator[range]:
    """TXIDs between where histories part and where the later one's timeline begins: it starts with a snapshot
    of what is there when its archiver finds that they have parted."""
    for older, newer in itertools.pairwise(found):
        past = {record.point for record in truth.history(older.tip)}
        common = max((r.point.txid for r in truth.history(newer.start) if r.point in past), default=0)
        yield range(common + 1, newer.start.txid + 1)
