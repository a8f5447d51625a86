"""A process is killed, recovery says that all is durable, and then the power fails.

What a failed sync left in the page cache is read as if it were on the disk, and a later sync of it tells of
success.
"""

from __future__ import annotations

import contextlib
import os
import random
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.capture.database import DatabaseCapture
from litefs.errors import LogSyncFailed
from litefs.store import fileops, log
from litefs.store.database import Database
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.recovery import recover, settle
from litefs.types import Position
from tests.crash.disk import Disk, Style
from tests.crash.recorder import SYNCS, Fault, Recorder, apply, disk_of, recording
from tests.crash.vfs import Open, Watch

PAGE = 512
PAGES = 29
SEEDS = 20
NAME = "app.db"


def live(root: Path, work: Callable[[Database, Recorder], None]) -> Disk:
    """The disk after some work, whose process is killed then."""
    root.mkdir()
    disk = Disk()
    with recording(root, disk) as recorder:
        directory = DataDir(root).database_dir(NAME)
        directory.create()
        os.close(fileops.open_file(directory.database, os.O_RDWR | os.O_CREAT))
        database = Database.open(directory)
        work(database, recorder)
        recorder.finish()
        count = len(recorder.events)
        recorder.fault = None
        database.close()
    return played(disk, recorder, count, root.name)


def played(disk: Disk, recorder: Recorder, count: int, seed: str) -> Disk:
    rng = random.Random(seed)
    for number, event in enumerate(recorder.events[:count]):
        apply(disk, number, event, rng)
    return disk


def restarted(disk: Disk, root: Path, how: Callable[[DatabaseDir], object]) -> tuple[Disk, Position]:
    """The disk after a recovery, and the position that it came to."""
    disk.killed().write(root)
    with recording(root, disk) as recorder:
        how(DataDir(root).database_dir(NAME))
    database = Database.open(DataDir(root).database_dir(NAME))
    position = database.position
    database.close()
    return played(disk, recorder, len(recorder.events), root.name), position


def commit(database: Database, rng: random.Random) -> bytes:
    """A transaction; returns its pages, which are the whole database."""
    pages = array("I", range(1, PAGES + 1))
    images = rng.randbytes(PAGES * PAGE)
    database.commit(pages, images, PAGES, 1)
    return images


def fails_to_sync(database: Database, recorder: Recorder) -> None:
    """Two transactions; the sync of the second one fails, in a new segment too."""
    rng = random.Random(2)
    commit(database, rng)
    database.sync()
    commit(database, rng)
    recorder.fault = Fault(recorder.operations + 1, 2, 5, SYNCS)
    with contextlib.suppress(LogSyncFailed):
        database.sync()
    assert recorder.failed == ["sync", "sync"]


def begins_a_segment(database: Database, recorder: Recorder) -> None:
    """Two transactions, the second one in a segment whose name nobody synced."""
    rng = random.Random(1)
    commit(database, rng)
    database.sync()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "SEGMENT_BYTES", 1)
        commit(database, rng)


@pytest.mark.parametrize("how", [recover, settle])
@pytest.mark.parametrize("work", [fails_to_sync, begins_a_segment])
def test_what_recovery_found_is_durable(
    tmp_path: Path, work: Callable[[Database, Recorder], None], how: Callable[[DatabaseDir], object]
) -> None:
    for seed in range(SEEDS):
        disk = live(tmp_path / f"live{seed}", work)
        disk, before = restarted(disk, tmp_path / f"first{seed}", how)
        assert before.txid == 2
        disk = disk_of(disk.power_failed(random.Random(seed), Style.NOTHING, 0))
        _, after = restarted(disk, tmp_path / f"second{seed}", recover)
        assert after == before, f"seed {seed}"


def writes_the_file(database: Database, recorder: Recorder) -> None:
    """The second of two transactions is in the database file, whose sync fails."""
    rng = random.Random(3)
    commit(database, rng)
    capture = DatabaseCapture(NAME, database, Open(), Watch(), lambda: fd)
    fd = fileops.open_file(database.dir.database, os.O_RDWR)
    try:
        for number in range(2):
            images = commit(database, rng)
            fileops.pwrite_all(fd, images, 0)
            if number:
                recorder.fault = Fault(recorder.operations + 2, 1, 5, SYNCS)
                with pytest.raises(OSError, match="Input/output"):
                    capture.database_sync(fd)
            else:
                capture.database_sync(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("how", [recover, settle])
def test_what_recovery_found_in_the_file_needs_no_log(
    tmp_path: Path, how: Callable[[DatabaseDir], object]
) -> None:
    for seed in range(SEEDS):
        disk = live(tmp_path / f"live{seed}", writes_the_file)
        disk, before = restarted(disk, tmp_path / f"first{seed}", how)
        assert before.txid == 3
        content = (DataDir(tmp_path / f"first{seed}").database_dir(NAME).database).read_bytes()
        disk = disk_of(disk.power_failed(random.Random(seed), Style.NOTHING, 0))
        root = tmp_path / f"second{seed}"
        disk.killed().write(root)
        assert DataDir(root).database_dir(NAME).database.read_bytes() == content, f"seed {seed}"
