"""One seeded run, and crashes after some of its events: what is left on the disk is recovered and judged."""

from __future__ import annotations

import copy
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import apsw

from litefs._core.pagesums import page_checksums
from litefs.store.database import Database
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.recovery import Report, recover, settle
from litefs.store.segments import list_segments
from litefs.types import CHECKSUM_FLAG, Position
from tests.crash.disk import Disk, Image, Style
from tests.crash.recorder import EVERY, SYNCS, WRITES, Event, Fault, Recorder, apply, disk_of, recording
from tests.crash.vfs import Primary
from tests.crash.workload import Client, Config, History, intact, state_of
from tests.fs.replay import replay

STYLES = (Style.NOTHING, Style.PREFIX, Style.SUBSET, Style.SUBSET, Style.TORN, Style.TORN)
KILL_SHARE = 0.25
AGAIN_SHARE = 0.3
"""So often the machine dies a second time, in recovery."""


@dataclass(frozen=True, slots=True)
class Crash:
    """After so many events: the process is killed, or the power fails in that style."""

    event: int
    style: Style | None
    rng: random.Random

    @classmethod
    def random(cls, rng: random.Random, events: int) -> Crash:
        return cls(rng.randint(0, events), None if rng.random() < KILL_SHARE else rng.choice(STYLES), rng)


class Run:
    """A history of one primary, with its faults, recorded below ``root``."""

    def __init__(self, seed: str, root: Path) -> None:
        """Make it. Raises AssertionError if an answer, or what clients saw, was wrong."""
        rng = random.Random(seed)
        self.seed = seed
        self.config = Config.random(rng)
        self.faulty = rng.random() < 0.4
        root.mkdir()
        with self.config.limits(), recording(root, Disk(), failed_syncs(seed)) as recorder:
            primary = Primary(directory_of(root), rng, split=self.config.split, psow=self.config.psow)
            client = Client(primary, recorder, self.config, rng)
            try:
                self._live(client, recorder, rng)
            finally:
                client.close()
                primary.close()
            if rng.random() < 0.3:
                settle(primary.dir)
        self.history: History = client.history
        self.events: list[Event] = recorder.events
        self.failed = recorder.failed

    def _live(self, client: Client, recorder: Recorder, rng: random.Random) -> None:
        for step in range(rng.randint(5, 14)):
            if self.faulty and recorder.fault is None and step and rng.random() < 0.3:
                recorder.fault = random_fault(rng, recorder.operations)
            client.step()
            if client.stopped:
                break
        recorder.fault = None
        if client.stopped:
            return
        assert client.check() == client.history.digests[client.state]
        if not self.config.reaps and client.state:
            check_replay(client.primary.dir, client.history.digests[client.state])


def failed_syncs(seed: str) -> str:
    """The seed of what failed syncs of a run left on the disk."""
    return seed + " failed syncs"


def random_fault(rng: random.Random, done: int) -> Fault:
    """An operation in the near future fails: once, several times, or all from then on."""
    first = done + rng.randint(1, 60)
    count = rng.choice((1, 1, 2, 5, 1 << 30))
    if rng.random() < 0.4:
        return Fault(first, count, 28, WRITES, overwrites=rng.random() < 0.3, short=rng.random() < 0.3)
    return Fault(first, count, 5, rng.choice((EVERY, SYNCS, WRITES)), short=rng.random() < 0.2)


def directory_of(root: Path) -> DatabaseDir:
    """Where the database of a data directory is; made durably."""
    return DataDir(root).database_dir("app.db")


def crashes(run: Run, chosen: list[Crash], root: Path) -> None:
    """Let the machine die at each of the moments, and judge what is found. Raises AssertionError."""
    disk = Disk()
    done = 0
    rng = random.Random(failed_syncs(run.seed))
    for number, crash in sorted(enumerate(chosen), key=lambda item: item[1].event):
        for event in run.events[done : crash.event]:
            apply(disk, done, event, rng)
            done += 1
        place = root / f"crash{number}"
        place.mkdir()
        try:
            judge(run, crash, left(disk, crash, run.events), place)
        except BaseException as error:
            error.add_note(
                f"run {run.seed}, crash {number}: {crash.style or 'kill'} after event {crash.event}"
            )
            raise
        shutil.rmtree(place)


def left(disk: Disk, crash: Crash, events: list[Event]) -> Disk:
    """The disk that the next start finds."""
    if crash.style is not None:
        return disk_of(disk.power_failed(crash.rng, crash.style, crash.rng.randint(0, crash.event)))
    disk = copy.deepcopy(disk)
    if crash.event < len(events) and crash.rng.random() < 0.5:
        event = events[crash.event]
        if event.kind == "write":  # the kernel had taken a part of it
            disk.files[event.node].write(
                crash.event, event.offset, event.data[: crash.rng.randint(0, len(event.data))]
            )
    return disk


def judge(run: Run, crash: Crash, disk: Disk, place: Path) -> None:
    """Recover, perhaps dying once more, and check that nothing promised is missing and work can go on."""
    rng = crash.rng
    power = crash.style is not None
    root, recorder, lost = restart(disk, place / "first")
    if rng.random() < AGAIN_SHARE and recorder.events:
        again = Crash.random(rng, len(recorder.events))
        for number, event in enumerate(recorder.events[: again.event]):
            apply(disk, number, event, rng)
        disk = left(disk, again, recorder.events)
        power = power or again.style is not None
        root, _, lost_now = restart(disk, place / "second")
        lost = lost or lost_now
    bounds = run.history.between(crash.event, power=power)
    if lost and power and not run.config.synchronous:
        # As with SQLite alone, synchronous=OFF with a rollback journal may leave any pages, where the log
        # does not have them: nothing is in it yet, or it was reaped.
        return
    assert lost in ("", "no log"), lost
    check(root, run, bounds)
    go_on(root, run, rng)


def restart(disk: Disk, root: Path) -> tuple[Path, Recorder, str]:
    """What the fs process does before it serves, on a copy of that disk; and what it lacked to do it."""
    disk.killed().write(root)
    with recording(root, disk) as recorder:
        data = DataDir(root)
        reports = [recover(data.database_dir(name)) for name in data.names()]
    if any(report.damaged for report in reports):
        return root, recorder, f"damaged: {reports}"
    return root, recorder, "no log" if any(report.adopted or report.ignored for report in reports) else ""


def check(root: Path, run: Run, bounds: tuple[int, int]) -> None:
    """The file is a state between the bounds, and checksums and log say the same."""
    directory = directory_of(root)
    low, high = bounds
    if not directory.database.exists() or not directory.database.stat().st_size:
        assert low == 0, f"state {low} was promised, but there is no database"
        return
    connection = apsw.Connection(f"file:{directory.database}?immutable=1", apsw.SQLITE_OPEN_URI | 1)
    try:
        state, content = state_of(connection), intact(connection)
    finally:
        connection.close()
    assert low <= state <= high, f"found state {state}, not {low} to {high}"
    assert content == run.history.digests[state], f"state {state} has another content"
    check_sums(directory)
    if not run.config.reaps:
        check_replay(directory, content)


def check_sums(directory: DatabaseDir) -> None:
    """Checksums, position and file agree."""
    if not list_segments(directory.log):
        return
    db = Database.open(directory)
    try:
        image = directory.database.read_bytes()
        assert len(image) == db.sums.page_count * db.page_size
        assert db.sums.array(1, db.sums.page_count) == page_checksums(1, image, db.page_size)
        total = 0
        for value in memoryview(db.sums.array(1, db.sums.page_count)).cast("Q"):
            total ^= value
        assert db.position == Position(db.position.txid, total | CHECKSUM_FLAG)
    finally:
        db.close()


def check_replay(directory: DatabaseDir, content: str) -> None:
    """The log alone gives the same database."""
    _, pages, page_size = replay(directory.log)
    image = b"".join(pages.get(pgno, bytes(page_size)) for pgno in range(1, max(pages) + 1))
    if image[18] == 2:  # WAL mode needs files beside a database, which an image in memory has not
        image = image[:18] + b"\1\1" + image[20:]
    connection = apsw.Connection(":memory:")
    connection.deserialize("main", image)
    try:
        assert intact(connection) == content, "the log gives another content"
    finally:
        connection.close()


def go_on(root: Path, run: Run, rng: random.Random) -> None:
    """The node can commit after recovery."""
    directory = directory_of(root)
    primary = Primary(directory, rng, split=run.config.split, psow=run.config.psow)
    try:
        connection = primary.connect()
        connection.execute(f"PRAGMA journal_mode={rng.choice(('wal', 'delete'))}").fetchall()
        for value in range(2):
            connection.execute(f"CREATE TABLE after{value} (v)")
            connection.execute(f"INSERT INTO after{value} VALUES (randomblob(5000))")
        content = intact(connection)
        connection.close()
        assert not primary.errors, primary.errors
    finally:
        primary.close()
    if not run.config.reaps:
        check_replay(directory, content)


__all__ = ["Crash", "Image", "Report", "Run", "crashes"]
