"""What ``resolve`` undoes and, above all, what it leaves alone. All crashes: ``crash/test_together.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.errors import CommitRefused, LogSyncFailed, PositionMismatch
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.log import Log
from litefs.store.paths import DataDir
from litefs.store.segments import list_segments
from litefs.store.together import Part, commit_together, resolve, super_dir
from litefs.types import ZERO, Position
from tests.store.support import pack

NAMES = ("a.db", "b.db")
PAGE = 512
INTENT = "a.db-mj0A1B2C9D3.intent"


def commit(db: Database, number: int) -> Position:
    return db.commit(pack(1), bytes([number]) * PAGE, 1, number)


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """Two databases with three transactions each."""
    data = DataDir(tmp_path / "data")
    for name in NAMES:
        data.database_dir(name).create()
        db = Database.open(data.database_dir(name))
        for number in range(3):
            commit(db, number)
        db.sync()
        db.close()
    super_dir(data).mkdir()
    return data


def position_before(data: DataDir, name: str, back: int) -> Position:
    """Where the database was *back* transactions ago."""
    scratch = DataDir(data.path.parent / "scratch")
    scratch.database_dir(name).create()
    db = Database.open(scratch.database_dir(name))
    position = ZERO
    for number in range(3 - back):
        position = commit(db, number)
    db.close()
    fileops.remove_tree(scratch.database_dir(name).path)
    return position


def intend(data: DataDir, back: dict[str, int]) -> None:
    positions = {name: str(position_before(data, name, number)) for name, number in back.items()}
    (super_dir(data) / INTENT).write_text(json.dumps(positions))


def tips(data: DataDir) -> list[int]:
    """The last transaction of each log, 0 without one; checksums are made to agree, as by recovery."""
    found = []
    for name in NAMES:
        directory = data.database_dir(name)
        fileops.unlink(directory.sums)
        if not list_segments(directory.log):
            found.append(0)
            continue
        log = Log.open(directory.log)
        found.append(log.tip.txid)
        log.close()
    return found


def test_a_part_without_its_counterpart_is_undone(data: DataDir) -> None:
    intend(data, {"a.db": 1, "b.db": 0})
    (super_dir(data) / "a.db-mj0A1B2C9D3").write_text("a super-journal of a client that is gone")
    lines, failed = resolve(data)
    assert lines == ["a.db: undid a transaction over several databases that a crash cut short"]
    assert not failed
    assert tips(data) == [2, 3]
    assert not list(super_dir(data).iterdir())
    assert resolve(data) == ([], {})


def test_the_only_record_of_a_database_is_undone(data: DataDir) -> None:
    fileops.remove_tree(data.database_dir("a.db").path)
    data.database_dir("a.db").create()
    db = Database.open(data.database_dir("a.db"))
    commit(db, 0)
    db.close()
    (super_dir(data) / INTENT).write_text(
        json.dumps({"a.db": str(ZERO), "b.db": str(position_before(data, "b.db", 0))})
    )
    assert len(resolve(data)[0]) == 1
    assert tips(data) == [0, 3]


@pytest.mark.parametrize(
    "back", [(1, 1), (0, 0), (2, 0), (0, 2), (2, 1)], ids=["all", "none", "old", "old too", "older"]
)
def test_what_is_whole_or_old_stays(data: DataDir, back: tuple[int, int]) -> None:
    intend(data, dict(zip(NAMES, back, strict=True)))
    assert resolve(data) == ([], {})
    assert tips(data) == [3, 3]
    assert not list(super_dir(data).iterdir())


def _remove(data: DataDir) -> None:
    fileops.remove_tree(data.database_dir("b.db").path)


def _remove_log(data: DataDir) -> None:
    fileops.remove_tree(data.database_dir("b.db").log)


def _damage(data: DataDir) -> None:
    path = list_segments(data.database_dir("b.db").log)[0][1]
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def _other_history(data: DataDir) -> None:
    directory = data.database_dir("b.db")
    fileops.remove_tree(directory.path)
    directory.create()
    db = Database.open(directory)
    for number in range(3):
        commit(db, number + 7)
    db.close()


@pytest.mark.parametrize("change", [_remove, _remove_log, _damage, _other_history])
def test_who_cannot_tell_does_not_cost_the_others_their_part(
    data: DataDir, change: Callable[[DataDir], None]
) -> None:
    intend(data, {"a.db": 1, "b.db": 0})
    change(data)
    assert resolve(data) == ([], {})
    fileops.remove_tree(data.database_dir("b.db").path)
    assert tips(data) == [3, 0]


@pytest.mark.parametrize("text", ["", "[]", '{"a.db": 1}', '{"../a": "0"}', '{"a.db": "0000000000000001/0"}'])
def test_an_intent_that_is_none(data: DataDir, text: str) -> None:
    (super_dir(data) / INTENT).write_text(text)
    lines, failed = resolve(data)
    assert not failed
    assert len(lines) == 1
    assert "not the intent of a transaction" in lines[0]
    assert tips(data) == [3, 3]


def test_what_cannot_be_undone_is_not_recovered(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its members are named, and the intent stays for the next start."""

    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    intend(data, {"a.db": 1, "b.db": 0})
    with monkeypatch.context() as patch:
        patch.setattr(fileops, "write_zeros", fail)
        lines, failed = resolve(data)
    assert not lines
    assert set(failed) == set(NAMES)
    assert "could not be undone" in failed["b.db"]
    assert [path.name for path in super_dir(data).iterdir()] == [INTENT]
    assert len(resolve(data)[0]) == 1
    assert tips(data) == [2, 3]


def test_only_the_last_record_can_be_taken_back(data: DataDir) -> None:
    db = Database.open(data.database_dir("a.db"))
    for position in (position_before(data, "a.db", 2), position_before(data, "a.db", 0), ZERO):
        with pytest.raises(PositionMismatch, match="does not end with one record after"):
            db.retract(position)
    db.close()


def test_an_intent_that_cannot_be_removed_stops_the_members(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction is there; but what a member did next could make it look like half of one."""
    databases = [Database.open(data.database_dir(name)) for name in NAMES]
    parts = [Part(db, pack(1), lambda: [(pack(1), bytes(PAGE))], 1, 9, PAGE) for db in databases]

    def unlink(path: Path) -> bool:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(fileops, "unlink", unlink)
        commit_together(super_dir(data), INTENT.removesuffix(".intent"), parts)
    assert [db.position.txid for db in databases] == [4, 4]
    assert all("could not be removed" in (db.stopped or "") for db in databases)
    for db in databases:
        db.close()
    assert resolve(data) == ([], {})
    assert tips(data) == [4, 4]


def test_a_record_that_was_taken_back_leaves_room_for_the_next(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer or shorter; nothing of the old one is found behind the new one."""
    databases = [Database.open(data.database_dir(name)) for name in NAMES]
    pages = b"".join(bytes((number * 7 + i * i) % 256 for i in range(PAGE)) for number in range(50))
    big = (pack(*range(1, 51)), pages)

    parts = [Part(db, big[0], lambda: [big], 50, 9, PAGE) for db in databases]

    def sync(db: Database) -> None:
        raise LogSyncFailed("no")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "sync", sync)
        with pytest.raises(LogSyncFailed):
            commit_together(super_dir(data), "a.db-mj0A1B2C9D3", parts)
    assert [db.stopped for db in databases] == [None, None]
    for db in databases:
        commit(db, 8)
        db.close()
    assert tips(data) == [4, 4]


def test_half_a_transaction_that_could_not_be_taken_back_is_in_no_later_intent(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record would look like a part of the later one, and be undone alone."""
    data.database_dir("c.db").create()
    first, second, third = (Database.open(data.database_dir(name)) for name in (*NAMES, "c.db"))
    real = Database.sync

    def together(name: str, *databases: Database) -> None:
        parts = [Part(db, pack(1), lambda: [(pack(1), bytes(PAGE))], 1, 9, PAGE) for db in databases]
        commit_together(super_dir(data), name, parts)

    def sync(db: Database) -> None:
        if db is first and db.log.tip.txid == 4:
            raise LogSyncFailed("no")
        real(db)

    def retract(db: Database, position: Position) -> None:
        raise LogSyncFailed("no")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "sync", sync)
        patch.setattr(Database, "retract", retract)
        with pytest.raises(LogSyncFailed):
            together("a.db-mj000000001", first, second)
    assert [bool(db.stopped) for db in (first, second, third)] == [True, True, False]
    intents: list[Path] = []
    monkeypatch.setattr(fileops, "write_file_atomic", lambda path, data: intents.append(path))
    with pytest.raises(CommitRefused, match="could not be removed"):
        together("c.db-mj000000002", third, first)
    assert not intents
    assert third.position == ZERO
