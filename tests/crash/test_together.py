"""Transactions over several databases, with faults and crashes at any operation, by seed (I16).

``LITEFS_SOAK`` and ``LITEFS_SEED`` as in ``test_crash``.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from array import array
from pathlib import Path

import pytest

from litefs.errors import LiteFSError
from litefs.ltx.decoder import decode
from litefs.store import fileops, log
from litefs.store.database import Database, Prepared
from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.store.recovery import recover, settle
from litefs.store.segments import list_segments
from litefs.store.together import Part, commit_together, resolve, super_dir
from litefs.types import START
from tests.crash.disk import Disk, Style
from tests.crash.recorder import Recorder, apply, disk_of, recording
from tests.crash.schedule import AGAIN_SHARE, Crash, failed_syncs, left, random_fault

RUNS = int(os.environ.get("LITEFS_SOAK", "30")) // 2
CRASHES = 17
PAGE = 512
NAMES = ("a.db", "b.db", "dir/c.db")
_NUMBER = struct.Struct(">8xQ")
"""A transaction is known by a number in its first page."""


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 8 << 10)


def pages(number: int, rng: random.Random) -> tuple[array[int], bytes]:
    """Some pages of transaction *number*, the first one always."""
    count = rng.choice((1, 1, 2, 5, 20))
    first = _NUMBER.pack(number).ljust(PAGE, b"\0")
    return array("I", range(1, count + 1)), first + rng.randbytes((count - 1) * PAGE)


class Run:
    """What one primary did, below ``root``, and what it was told."""

    def __init__(self, seed: str, root: Path) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.members: dict[int, list[str]] = {}
        """Of each transaction over several databases."""
        self.shown: dict[int, int] = {}
        """The event before which a transaction over several databases was first published anywhere."""
        self.refused: set[int] = set()
        """Those that failed, although every member could go on."""
        root.mkdir()
        with recording(root, Disk(), failed_syncs(seed)) as recorder:
            data = DataDir(root)
            fileops.make_dir(super_dir(data))
            self.databases = {}
            for name in NAMES:
                data.database_dir(name).create()
                os.close(fileops.open_file(data.database_dir(name).database, os.O_RDWR | os.O_CREAT))
                self.databases[name] = Database.open(data.database_dir(name))
            try:
                self._live(data, recorder, rng)
            finally:
                recorder.fault = None
                for db in self.databases.values():
                    db.close()
            if rng.random() < 0.3:
                _, failed = resolve(data)
                for name in set(NAMES) - set(failed):
                    settle(data.database_dir(name))
        self.events = recorder.events

    def _live(self, data: DataDir, recorder: Recorder, rng: random.Random) -> None:
        faulty = rng.random() < 0.5
        for number in range(1, rng.randint(4, 14)):
            if faulty and recorder.fault is None and rng.random() < 0.4:
                recorder.fault = random_fault(rng, recorder.operations)
            if rng.random() < 0.4:
                self._alone(number, rng)
            else:
                self._together(number, data, recorder, rng)

    def _alone(self, number: int, rng: random.Random) -> None:
        db = self.databases[rng.choice(NAMES)]
        pgnos, images = pages(number, rng)
        try:
            db.commit(pgnos, images, max(len(pgnos), db.sums.page_count), number)
            if rng.random() < 0.5:
                db.sync()
        except (LiteFSError, OSError):
            if db.page_size and db.stopped is None:
                assert db.position == db.log.tip.position

    def _together(self, number: int, data: DataDir, recorder: Recorder, rng: random.Random) -> None:
        names = rng.sample(NAMES, rng.choice((1, 2, 2, 3)))
        self.members[number] = names
        databases = [self.databases[name] for name in names]
        parts = []
        for db in databases:
            pgnos, images = pages(number, rng)
            commit = max(len(pgnos), db.sums.page_count)
            parts.append(Part(db, pgnos, lambda p=pgnos, i=images: [(p, i)], commit, number, PAGE))
        before = [db.position for db in databases]

        def publish(prepared: Prepared) -> None:
            self.shown.setdefault(number, len(recorder.events))

        try:
            with pytest.MonkeyPatch.context() as patch:
                original = Database.publish
                patch.setattr(
                    Database, "publish", lambda db, prepared: (publish(prepared), original(db, prepared))
                )
                commit_together(super_dir(data), f"app.db-mj{number:09X}", parts)
        except (LiteFSError, OSError):
            assert [db.position for db in databases] == before, "refused, but published"
            assert number not in self.shown
            if all(db.stopped is None for db in databases):
                self.refused.add(number)
        else:
            assert [db.position.txid for db in databases] == [at.txid + 1 for at in before]


def logged(data: DataDir, name: str) -> list[int]:
    """The numbers of the transactions in a log."""
    directory = data.database_dir(name)
    if not list_segments(directory.log):
        return []
    numbers = []
    with LogReader(directory.log) as reader:
        db = Database.open(directory)
        tip = db.position.txid
        db.close()
        assert reader.seek(START)
        for entry in reader.read(tip, 1 << 30):
            numbers.append(_NUMBER.unpack_from(decode(entry.body).images)[0])
    return numbers


def restart(disk: Disk, root: Path) -> Recorder:
    """What the fs process does before it serves."""
    disk.killed().write(root)
    with recording(root, disk) as recorder:
        data = DataDir(root)
        _, failed = resolve(data)
        assert not failed
        for name in data.names():
            report = recover(data.database_dir(name))
            assert not report.damaged, report
    return recorder


def judge(run: Run, crash: Crash, disk: Disk, place: Path) -> None:
    recorder = restart(disk, place / "first")
    root = place / "first"
    if crash.rng.random() < AGAIN_SHARE and recorder.events:
        again = Crash.random(crash.rng, len(recorder.events))
        for number, event in enumerate(recorder.events[: again.event]):
            apply(disk, number, event, crash.rng)
        root = place / "second"
        restart(left(disk, again, recorder.events), root)
    data = DataDir(root)
    assert not super_dir(data).is_dir() or not list(super_dir(data).iterdir())
    found = {name: logged(data, name) for name in data.names()}
    for numbers in found.values():
        assert numbers == sorted(numbers)
    for number, names in run.members.items():
        there = [name for name in names if number in found.get(name, ())]
        assert there in ([], names), f"transaction {number} of {names} is only in {there}"
        assert not (number in run.refused and there), f"transaction {number} was refused"
        if number in run.shown and run.shown[number] < crash.event:
            assert there, f"transaction {number} is lost, though it was published"


def attempt(seed: str, root: Path) -> None:
    root.mkdir()
    try:
        run = Run(seed, root / "live")
        disk, done = Disk(), 0
        rng = random.Random(failed_syncs(seed))
        chosen = [Crash.random(random.Random(f"{seed} {n}"), len(run.events)) for n in range(CRASHES)]
        for number, crash in enumerate(sorted(chosen, key=lambda crash: crash.event)):
            for event in run.events[done : crash.event]:
                apply(disk, done, event, rng)
                done += 1
            place = root / f"crash{number}"
            place.mkdir()
            judge(run, crash, left(disk, crash, run.events), place)
            shutil.rmtree(place)
    except BaseException as error:
        error.add_note(f"repeat with LITEFS_SEED={seed}")
        raise
    finally:
        shutil.rmtree(root)


def test_all_members_have_a_transaction_or_none(tmp_path: Path) -> None:
    repeated = os.environ.get("LITEFS_SEED")
    first = random.randrange(1 << 32)
    for seed in [f"{first}-{number}" for number in range(RUNS)] if repeated is None else [repeated]:
        attempt(seed, tmp_path / "run")


class Died(BaseException):
    """The process is killed here."""


def test_members_are_durable_before_their_intent_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with the records in all logs, but synced in none; at the next start the power fails."""
    disk, rng = Disk(), random.Random(1)
    live = tmp_path / "live"
    live.mkdir()
    with recording(live, disk) as recorder:
        data = DataDir(live)
        fileops.make_dir(super_dir(data))
        parts = []
        for name in NAMES:
            data.database_dir(name).create()
            os.close(fileops.open_file(data.database_dir(name).database, os.O_RDWR | os.O_CREAT))
            pgnos, images = pages(1, rng)
            db = Database.open(data.database_dir(name))
            parts.append(Part(db, pgnos, lambda p=pgnos, i=images: [(p, i)], len(pgnos), 1, PAGE))

        syncs: list[Database] = []

        def sync(db: Database) -> None:
            if len(syncs) == len(NAMES):  # each was synced once, before the intent
                raise Died
            syncs.append(db)

        with monkeypatch.context() as patch:
            patch.setattr(Database, "sync", sync)
            with pytest.raises(Died):
                commit_together(super_dir(data), "app.db-mj000000001", parts)
        count = len(recorder.events)
        for part in parts:
            part.db.close()
    for number, event in enumerate(recorder.events[:count]):
        apply(disk, number, event, rng)
    disk.killed().write(tmp_path / "first")
    with recording(tmp_path / "first", disk) as recorder:
        assert resolve(DataDir(tmp_path / "first")) == ([], {})
    for number, event in enumerate(recorder.events):
        apply(disk, number, event, rng)
    restart(disk_of(disk.power_failed(rng, Style.NOTHING, 0)), tmp_path / "second")
    assert [logged(DataDir(tmp_path / "second"), name) for name in NAMES] == [[1]] * len(NAMES)
