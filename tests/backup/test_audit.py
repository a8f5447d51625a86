"""Every kind of damage to an archive is found, and named, by looking at all of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.backup.archive import Archive
from litefs.backup.audit import Audit, Auditor
from litefs.backup.directory import DirectoryTarget
from litefs.backup.layout import ltx_name
from litefs.ltx import decode, encode
from tests.support.handmade import Archived

NAME = "app.db"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles, levels 0 to 2, snapshots, growth and shrinking, a change of the page size."""
    root = tmp_path_factory.mktemp("made") / "archive"
    archived = Archived(root, tmp_path_factory.mktemp("work"), NAME, page_size=1024)
    archived.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    for round_ in range(3):
        for number in range(12 if round_ == 1 else 4):
            archived.execute(f"INSERT INTO t VALUES ({number}, randomblob({2000 + number}))")
        archived.execute(f"DELETE FROM t WHERE n = {round_}")
        archived.bundle()
        if round_ < 2:
            archived.merge(1)
    archived.merge(2)
    archived.execute("DELETE FROM t WHERE n > 1", "VACUUM")
    archived.bundle()
    archived.snapshot()
    archived.merge(1)
    archived.db.execute("PRAGMA page_size = 4096")
    archived.execute("VACUUM")
    archived.bundle()
    archived.snapshot()
    archived.execute("INSERT INTO t VALUES (7, randomblob(9000))")
    archived.bundle()
    archived.execute("UPDATE t SET n = n + 1")
    archived.bundle(raw=False)
    archived.close()
    return root


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Archive:
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "archive")
    return Archive(DirectoryTarget(tmp_path / "archive"), NAME, NAME)


def look(archive: Archive) -> Audit:
    return Auditor(archive).run()


def path_of(archive: Archive, key: str) -> Path:
    assert isinstance(archive.target, DirectoryTarget)
    return archive.target.root / key


def keys(archive: Archive) -> list[str]:
    files = [file.key for level in range(10) for file in archive.files(level)]
    return files + [key for _, _, key in archive.bundle_names()]


def test_a_sound_archive_is_proved_file_by_file(archive: Archive) -> None:
    found = look(archive)
    assert found.problems == []
    assert found.proved == found.files == sum(len(archive.files(level)) for level in range(10))
    assert found.bundles == 7
    assert found.transactions == found.last == 28


def test_every_changed_byte_that_means_something_is_found(archive: Archive) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    pick = random.Random(seed)
    for key in keys(archive):
        path = path_of(archive, key)
        data = path.read_bytes()
        for at in {pick.randrange(len(data)) for _ in range(3)}:
            broken = bytearray(data)
            broken[at] ^= 1 << pick.randrange(8)
            path.write_bytes(broken)
            found = look(archive)
            if found.sound and key.endswith(".ltx"):
                # the checksum is of the pages: another way of LZ4 to say the same harms nothing
                one, two = decode(data), decode(bytes(broken))
                assert (one.header, one.pgnos, one.images) == (two.header, two.pgnos, two.images)
                continue
            assert not found.sound, f"{key}: byte {at}"
            assert any(Path(key).name in text for text in found.problems), (key, at, found.problems)
        path.write_bytes(data)
    assert look(archive).sound


def test_every_object_cut_short_or_emptied_is_found(archive: Archive) -> None:
    for key in keys(archive):
        path = path_of(archive, key)
        data = path.read_bytes()
        for size in (0, len(data) - 1):
            path.write_bytes(data[:size])
            assert not look(archive).sound, f"{key} at {size}"
        path.write_bytes(data)


def test_every_missing_bundle_is_found(archive: Archive) -> None:
    bundles = list(archive.bundle_names())
    for first, _, key in bundles[1:]:
        path = path_of(archive, key)
        data = path.read_bytes()
        path.unlink()
        found = look(archive)
        assert not found.sound, f"{first:x}"
        path.write_bytes(data)


def test_a_missing_file_between_others_is_found(archive: Archive) -> None:
    for level in (0, 1):
        for file in archive.files(level)[1:-1]:
            path = path_of(archive, file.key)
            data = path.read_bytes()
            path.unlink()
            assert any("gap" in text for text in look(archive).problems), file.key
            path.write_bytes(data)


def test_the_oldest_bundles_may_be_gone(archive: Archive) -> None:
    snapshot = archive.files(9)[0].max_txid
    gone = [key for first, _, key in archive.bundle_names() if first <= snapshot]
    archive.target.delete(gone[:-1])
    found = look(archive)
    assert found.problems == []
    assert found.proved < found.files


@pytest.mark.parametrize("level", [0, 1, 2, 9])
def test_a_whole_file_of_wrong_content_is_found(archive: Archive, level: int) -> None:
    file = archive.files(level)[0]
    path = path_of(archive, file.key)
    data = path.read_bytes()

    def again(change: Callable[[bytearray], object]) -> Audit:
        record = decode(data)
        images = bytearray(record.images)
        change(images)
        path.write_bytes(encode(record.header, record.pgnos, images, 0))
        return look(archive)

    assert again(lambda images: None).sound

    def swap(images: bytearray) -> None:
        images[-1] ^= 1

    found = again(swap)
    assert any(Path(file.key).name in text and "page" in text for text in found.problems), found.problems
    path.write_bytes(data)
    record = decode(data)
    if level != 9 and len(record.pgnos) > 4 and not record.header.is_full:
        size = record.header.page_size
        path.write_bytes(encode(record.header, record.pgnos[4:], record.images[size:], 0))
        assert any("missing" in text for text in look(archive).problems)


def test_overlaps_and_wrong_names_are_found(archive: Archive) -> None:
    one, two = archive.files(1)[:2]
    target = archive.target
    directory = one.key.rpartition("/")[0]
    target.write(f"{directory}/{ltx_name(one.min_txid, two.min_txid)}", target.read(one.key))
    found = look(archive)
    assert any("overlap" in text for text in found.notes)
    assert any("holds" in text for text in found.problems)


def test_what_litestream_wrote_is_found_whole_or_not(archive: Archive) -> None:
    target = archive.target
    target.delete([key for _, _, key in archive.bundle_names()])
    target.delete([f"{NAME}/litefs/{name}" for name in ("claim", "start", "head")])
    found = look(archive)
    assert found.problems == []
    assert (found.proved, found.bundles) == (0, 0)
    path = path_of(archive, archive.files(1)[0].key)
    data = bytearray(path.read_bytes())
    data[300] ^= 8
    path.write_bytes(data)
    assert not look(archive).sound
