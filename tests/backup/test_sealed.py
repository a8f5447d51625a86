"""What is encrypted: nothing that was changed, moved or cut off is taken for what was stored."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from litefs.backup.archive import Archive, Start
from litefs.backup.directory import DirectoryTarget
from litefs.backup.sealed import CHUNK, HEAD, TAG, Keys, SealedTarget
from litefs.backup.targets import TargetOptions, open_target
from litefs.errors import ArchiveCorrupt, ConfigError
from litefs.types import START

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
STEP = CHUNK + TAG
DATA = Random(3).randbytes(3 * CHUNK + 100)

GOLDEN = (
    "4c46535345414c316426c7dd8ca0c27900bdcabfade46b84cfe3f012725d0c22"
    "f06721fb729af6c964969a4fb702a85520048be0a132"
)
"""The object ``a`` under the key ``ONE`` that holds ``golden``."""


def sealed(root: Path, *keys: str) -> SealedTarget:
    return SealedTarget(DirectoryTarget(root), Keys.parse("\n".join(keys), "k"))


@pytest.fixture
def target(tmp_path: Path) -> SealedTarget:
    target = sealed(tmp_path, ONE)
    target.write("d/a", DATA)
    return target


def stream(target: SealedTarget) -> bytes:
    reader = target.open("d/a")
    return b"".join(iter(lambda: reader.read(10_000), b""))


READS: dict[str, Callable[[SealedTarget], object]] = {
    "whole": lambda target: target.read("d/a"),
    "stream": stream,
    "in parts": lambda target: [target.read("d/a", at, 7000) for at in range(0, len(DATA), 7000)],
    "from the middle": lambda target: [target.read("d/a", at) for at in range(0, len(DATA), 7000)],
    "beyond": lambda target: [target.read("d/a", 0, 1), target.read("d/a", len(DATA) + CHUNK, 9)],
}


def test_what_is_stored_shows_nothing(target: SealedTarget, tmp_path: Path) -> None:
    stored = (tmp_path / "d/a").read_bytes()
    assert DATA[:8] not in stored
    target.write("d/a", DATA)
    again = (tmp_path / "d/a").read_bytes()
    assert not any(stored[at : at + 16] == again[at : at + 16] for at in range(HEAD, len(stored) - 16))


@pytest.mark.parametrize("how", ["whole", "stream", "in parts"])
def test_every_changed_byte_is_found(target: SealedTarget, tmp_path: Path, how: str) -> None:
    path = tmp_path / "d/a"
    stored = path.read_bytes()
    places = {*range(HEAD + 4), len(stored) - 1, *(HEAD + n * STEP + d for n in range(1, 4) for d in (-1, 0))}
    places |= {Random(4).randrange(len(stored)) for _ in range(20)}
    for at in places:
        broken = bytearray(stored)
        broken[at] ^= 1 << Random(at).randrange(8)
        path.write_bytes(broken)
        with pytest.raises(ArchiveCorrupt, match="d/a"):
            READS[how](target)


@pytest.mark.parametrize("how", ["whole", "stream", "in parts", "from the middle", "beyond"])
def test_what_is_cut_off_is_found_wherever_that_is(target: SealedTarget, tmp_path: Path, how: str) -> None:
    path = tmp_path / "d/a"
    stored = path.read_bytes()
    for end in (
        *(HEAD + n * STEP for n in range(4)),
        *(0, 5, HEAD - 1, HEAD + 3, HEAD + STEP - 1, HEAD + STEP + 10, len(stored) - 1),
    ):
        path.write_bytes(stored[:end])
        with pytest.raises(ArchiveCorrupt, match="d/a"):
            READS[how](target)
    path.write_bytes(stored + b"x")
    with pytest.raises(ArchiveCorrupt, match="d/a"):
        READS["whole"](target)


def test_chunks_and_objects_in_other_places_are_found(target: SealedTarget, tmp_path: Path) -> None:
    path = tmp_path / "d/a"
    stored = path.read_bytes()
    head, chunks = stored[:HEAD], [stored[at : at + STEP] for at in range(HEAD, len(stored), STEP)]
    for order in ((1, 0, 2, 3), (0, 0, 2, 3), (0, 2, 3), (0, 1, 2, 2, 3)):
        path.write_bytes(head + b"".join(chunks[number] for number in order))
        with pytest.raises(ArchiveCorrupt):
            target.read("d/a")
    path.write_bytes(stored)
    target.write("d/c", DATA)
    other = (tmp_path / "d/c").read_bytes()
    path.write_bytes(other)
    with pytest.raises(ArchiveCorrupt, match="not what was stored under this name"):
        target.read("d/a")
    path.write_bytes(head + chunks[0] + other[HEAD + STEP :])
    assert target.read("d/a", 0, CHUNK) == DATA[:CHUNK]
    with pytest.raises(ArchiveCorrupt):
        target.read("d/a", CHUNK, 1)


def test_keys_change(tmp_path: Path) -> None:
    sealed(tmp_path, ONE).write("a", b"old")
    both = sealed(tmp_path, TWO, ONE)
    both.write("b", b"new")
    assert (both.read("a"), both.read("b")) == (b"old", b"new")
    assert sealed(tmp_path, TWO).read("b") == b"new", "the first key encrypts"
    for target in (sealed(tmp_path, TWO), sealed(tmp_path, THREE)):
        with pytest.raises(ArchiveCorrupt, match="encrypted with another key"):
            target.read("a")


def test_encrypted_and_not_are_not_mixed_up(tmp_path: Path) -> None:
    plain = DirectoryTarget(tmp_path)
    archive = Archive(sealed(tmp_path, ONE), "d")
    archive.begin(Start(START, 1, "new", "n"))
    with pytest.raises(ArchiveCorrupt, match="the archive is encrypted; give its key"):
        Archive(plain, "d").start()
    plain.write("x", b"plain")
    with pytest.raises(ArchiveCorrupt, match="not encrypted, though keys are given"):
        archive.target.read("x")


def test_an_archive_of_one_database_is_opened_by_itself(tmp_path: Path) -> None:
    root = sealed(tmp_path, ONE)
    root.write("app.db/ltx/0/x", b"1")
    alone = sealed(tmp_path / "app.db", ONE)
    assert alone.read("ltx/0/x") == b"1"
    (tmp_path / "other.db/ltx/0").mkdir(parents=True)
    os.rename(tmp_path / "app.db/ltx/0/x", tmp_path / "other.db/ltx/0/x")
    with pytest.raises(ArchiveCorrupt):
        sealed(tmp_path / "other.db", ONE).read("ltx/0/x")


def test_an_object_that_is_replaced_is_read_as_it_is_now(target: SealedTarget) -> None:
    assert target.read("d/a", CHUNK, 4) == DATA[CHUNK : CHUNK + 4]
    target.write("d/a", DATA[::-1])
    assert target.read("d/a", CHUNK, 4) == DATA[::-1][CHUNK : CHUNK + 4]


def test_the_format_stays(tmp_path: Path) -> None:
    golden = bytes.fromhex(GOLDEN)
    (tmp_path / "a").write_bytes(golden)
    assert sealed(tmp_path, ONE).read("a") == b"golden"


def test_keys_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of 2026\n{TWO}\n\n  {ONE.upper()}  \n")
    monkeypatch.setenv("KEYS", ONE)
    sealed(tmp_path / "a", ONE).write("x", b"1")
    for options in (TargetOptions(key_file=str(file)), TargetOptions(key_env="KEYS")):
        assert open_target(str(tmp_path / "a"), options).read("x") == b"1"
    for text, message in (
        ("", "no key in it"),
        ("# x\n", "no key in it"),
        (f"{ONE}\n{TWO}0", "key 2 is not 64 hexadecimal digits"),
        ("password", "key 1 is not 64 hexadecimal digits"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            open_target(str(tmp_path), TargetOptions(key_file=str(file)))
        assert "2222" not in str(caught.value)
    file.write_bytes(b"\xff\x00")
    for options in (
        TargetOptions(key_file=str(file)),
        TargetOptions(key_file=str(tmp_path / "none")),
        TargetOptions(key_env="NO_SUCH_VARIABLE"),
    ):
        with pytest.raises(ConfigError):
            open_target(str(tmp_path), options)
