"""The simulator itself: its model agrees with the real files, it misses no operation, and it finds faults."""

from __future__ import annotations

import ast
import copy
import random
import shutil
from pathlib import Path

import pytest

import litefs.capture
import litefs.store
from litefs.store.log import Log
from tests.crash.disk import PAGE, ROOT, Disk, File, Style
from tests.crash.recorder import Event, apply, recording
from tests.crash.schedule import directory_of
from tests.crash.test_crash import attempt
from tests.crash.vfs import Primary

CHANGES = {
    *("chmod", "copy_file_range", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir", "pwrite"),
    *(
        "posix_fallocate",
        "pwritev",
        "remove",
        "removedirs",
        "rename",
        "renames",
        "replace",
        "rmdir",
        "rmtree",
    ),
    *("symlink", "sync", "truncate", "unlink", "write", "writev", "copy", "copyfile", "copyfileobj", "move"),
}
PATH_CHANGES = {"mkdir", "rename", "replace", "rmdir", "touch", "unlink", "write_bytes", "write_text"}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def test_replayed_events_give_the_real_files(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    with recording(live, Disk()) as recorder:
        primary = Primary(directory_of(live), random.Random(1), split=True, psow=True)
        connection = primary.connect()
        for mode in ("wal", "delete", "persist", "wal"):
            connection.execute(f"PRAGMA journal_mode={mode}").fetchall()
            connection.execute(f"CREATE TABLE {mode}{recorder.operations} (v)")
            connection.execute("VACUUM")
        expected = contents(live)
        connection.close()
        primary.close()
    disk = Disk()
    for number, event in enumerate(recorder.events):
        apply(disk, number, event, random.Random(1))
    disk.killed().write(tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(live)
    assert contents(live) != expected


def survivors(file: File, style: Style) -> set[bytes]:
    """What the one page of a file may hold, over many seeds."""
    found = set()
    for seed in range(200):
        size, pages = file.survivors(random.Random(seed), style, 1)
        found.add(pages.get(0, b"")[:size])
    return found


def test_what_was_not_synced_may_be_lost() -> None:
    file = File()
    pages = [bytes([letter]) * PAGE for letter in b"abc"]
    file.write(0, 0, pages[0])
    file.sync()
    file.write(1, 0, pages[1])
    file.write(2, 0, pages[2])
    assert survivors(file, Style.NOTHING) == {pages[0]}
    assert survivors(file, Style.PREFIX) == {pages[1]}
    assert survivors(file, Style.SUBSET) == set(pages)
    torn = survivors(file, Style.TORN)
    assert any(len(set(page)) > 1 for page in torn)
    assert all(len(set(page[:512])) == 1 for page in torn)


def test_a_failed_sync_leaves_pages_that_a_later_one_does_not_write() -> None:
    lost = 0
    for seed in range(50):
        file = File()
        file.write(0, 0, b"a" * PAGE)
        file.fail_sync(random.Random(seed))
        file.sync()
        lost += file.survivors(random.Random(), Style.NOTHING, 0)[1].get(0) != b"a" * PAGE
        file.write(1, 1, b"b")
        file.sync()
        deaf = file.disk.get(0) != b"ab" + b"a" * (PAGE - 2)
        assert not deaf or file.disk.get(0, bytes(PAGE)) == bytes(PAGE), "written through the cache: in vain"
        assert deaf == bool(file.deaf)
        dropped = copy.deepcopy(file)
        dropped.reread()
        dropped.write(2, 0, b"c" * PAGE)
        file.write_direct(2, 0, b"c" * PAGE)
        for one in (file, dropped):
            one.sync()
            assert one.disk[0] == b"c" * PAGE
    assert 10 < lost < 40


def test_names_are_durable_only_with_their_directory() -> None:
    disk = Disk()
    apply(disk, 0, Event("name", ROOT, name="file", target=1), random.Random())
    apply(disk, 1, Event("write", 1, 0, data=b"data"), random.Random())
    apply(disk, 2, Event("sync", 1), random.Random())
    assert disk.power_failed(random.Random(), Style.NOTHING, 0).names == {}
    apply(disk, 3, Event("sync names", ROOT), random.Random())
    names = disk.power_failed(random.Random(), Style.NOTHING, 0).names
    assert names is not None
    assert names["file"].size == 4


def test_a_log_that_is_never_synced_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "sync", lambda self: None)
    found = ""
    for seed in range(40):
        root = tmp_path / "run"
        root.mkdir()
        try:
            attempt(f"mutant {seed}", root)
        except AssertionError as error:
            found = str(error)
            break
        finally:
            shutil.rmtree(root, ignore_errors=True)
    assert "found state" in found or "promised" in found or "damaged" in found


def changing_calls(source: Path) -> list[str]:
    """Calls that change files or names, or make them durable, past ``fileops``."""
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        if isinstance(owner, ast.Name) and owner.id == "fileops":
            continue
        of_os = isinstance(owner, ast.Name) and owner.id in ("os", "shutil")
        arguments = ast.unparse(node)
        if (of_os and (name in CHANGES or "O_CREAT" in arguments or "O_TRUNC" in arguments)) or (
            not of_os and name in PATH_CHANGES and "path" in ast.unparse(owner).lower()
        ):
            found.append(f"{source.name}:{node.lineno}: {arguments[:60]}")
        if name == "open" and any(f"'{mode}" in arguments for mode in ("w", "x", "a")):
            found.append(f"{source.name}:{node.lineno}: {arguments[:60]}")
    return found


@pytest.mark.parametrize("package", [litefs.store, litefs.capture])
def test_every_change_goes_through_fileops(package: object) -> None:
    (folder,) = package.__path__  # type: ignore[attr-defined]
    sources = [path for path in Path(folder).glob("*.py") if path.name != "fileops.py"]
    assert len(sources) > 4
    assert [call for path in sources for call in changing_calls(path)] == []
