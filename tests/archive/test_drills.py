"""Restore drills by a node: the real process, over an archive in a directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from litefs import verifying
from litefs.backup.drill import Job
from litefs.config_backup import BackupConfig, EncryptionConfig
from litefs.config_types import FilePath, Secret
from litefs.verifying import Plan, Verifying
from tests.support.handmade import Archived
from tests.support.node import Node
from tests.support.processes import wait_until


@pytest.fixture
def made(tmp_path: Path) -> Archived:
    archived = Archived(tmp_path / "archive", tmp_path / "work")
    archived.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    for number in range(4):
        archived.execute(f"INSERT INTO t VALUES ({number}, randomblob(50000))")
        archived.bundle()
    archived.snapshot(3)
    archived.close()
    return archived


class Told:
    """A node that leads, and the events that it was given."""

    def __init__(self, tmp_path: Path, interval: float = 3600) -> None:
        self.leads = True
        self.events: list[tuple[str, Mapping[str, object], str]] = []
        job = Job(BackupConfig(type="file", path=str(tmp_path / "archive")), str(tmp_path / "scratch"))
        self.note = tmp_path / "verified"
        plan = Plan(interval, job.encode, self.note)
        self.verifying = Verifying(
            plan, lambda: self.leads, lambda kind, data, db: self.events.append((kind, data, db))
        )


def bounded(main: Callable[[], object], seconds: float = 30) -> None:
    async def run() -> None:
        with trio.fail_after(seconds):
            await main()  # type: ignore[misc]

    trio.run(run)


def test_a_drill_restores_and_tells(made: Archived, tmp_path: Path) -> None:
    told = Told(tmp_path)
    bounded(told.verifying.drill)
    ((kind, data, name),) = told.events
    assert (kind, name) == ("archiveVerify", "app.db")
    assert data["sound"] is data["proved"] is True
    assert data["txID"] == f"{made.txid:016x}"
    (figures,) = told.verifying.figures()
    assert (figures.sound, figures.runs, figures.failures, figures.txid) == (True, 1, 0, made.txid)
    assert time.time() - figures.ended < 30
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_drill_finds_damage(made: Archived, tmp_path: Path) -> None:
    path = tmp_path / "archive" / made.archive.files(9)[0].key
    data = bytearray(path.read_bytes())
    data[20000] ^= 4
    path.write_bytes(data)
    told = Told(tmp_path)
    bounded(told.verifying.drill)
    ((_, event, _),) = told.events
    assert event["sound"] is False
    assert event["problems"]
    (figures,) = told.verifying.figures()
    assert (figures.sound, figures.failures) == (False, 1)


def test_drills_keep_their_interval_over_restarts(
    made: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "LOOK_SECONDS", 0.01)

    async def for_a_while(told: Told, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await told.verifying.run()

    first = Told(tmp_path)
    first.leads = False
    bounded(partial(for_a_while, first, 0.2))
    assert not first.note.exists(), "a replica has no drills"
    first.leads = True

    async def until_told() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.verifying.run)
            while not first.note.exists():
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    bounded(until_told)
    assert len(first.events) == 1
    again = Told(tmp_path)
    bounded(partial(for_a_while, again, 0.3))
    assert again.events == []


def test_a_drill_ends_with_the_role(made: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "LOOK_SECONDS", 0.01)
    told = Told(tmp_path)
    told.leads = False
    begun = time.monotonic()
    bounded(told.verifying.drill)
    assert time.monotonic() - begun < 5
    assert not told.note.exists()


def test_a_drill_that_fails_is_not_noted_and_not_repeated_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "LOOK_SECONDS", 0.01)
    asked = []

    def job() -> bytes:
        asked.append(1)
        return b"{}\n"

    failing = Verifying(Plan(3600, job, tmp_path / "verified"), lambda: True, lambda *event: None)

    async def look() -> None:
        with trio.move_on_after(2):
            await failing.run()

    bounded(look)
    assert asked == [1]
    assert not (tmp_path / "verified").exists()
    assert failing.figures() == []


def test_a_job_comes_back_as_it_was() -> None:
    backup = BackupConfig(
        url="s3://bucket/prefix",
        secret_access_key=Secret("file:/secret"),
        access_key_id="id",
        encryption=EncryptionConfig(key_file=FilePath("/key")),
        databases=("a*",),
    )
    job = Job(backup, "/scratch")
    line = job.encode()
    assert line.count(b"\n") == 1
    found = Job.decode(line)
    assert found == job
    assert found.backup.secret_access_key is not None
    assert found.backup.secret_access_key.path == "/secret"
    assert found.backup.reach == backup.reach


def test_a_node_has_drills_of_its_own(made: Archived, tmp_path: Path) -> None:
    backup = {"type": "file", "path": str(tmp_path / "archive"), "verify-interval": "1h"}
    node = Node(tmp_path, "primary", backup=backup)
    try:
        node.start()

        def figures() -> str:
            return httpx.get(f"{node.url}/metrics", timeout=5).text

        sound = 'litefs_archive_verify_sound{db="app.db"} 1.0'
        wait_until(lambda: sound in figures(), 20, "a drill", 0.2)
        assert f'litefs_archive_verify_txid{{db="app.db"}} {made.txid}.0' in figures()
        assert list((node.data / "verify").iterdir()) == []
        assert (node.data / "verified").exists()
    finally:
        node.discard()
