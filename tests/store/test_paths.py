"""Names, the data directory and its lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litefs.errors import ClusterMismatch, DataDirInUse, InvalidName
from litefs.store import fileops
from litefs.store.paths import DataDir, decode_name, encode_name, validate_name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/../b",
        "./a",
        "/etc/passwd",
        "a//b",
        "a/",
        "a\0b",
        "x" * 201,
        "/" * 3,
        "a" * 150 + "/b" * 20,
        "app.db-journal",
        "app.db-wal",
        "app.db-shm",
        "app.db-pos",
        "app.db-lock",
        "app.db-mj0A1B2C3D9",
        ".primary",
        ".lag",
        "\udcff",
    ],
)
def test_refuses_names(name: str) -> None:
    with pytest.raises(InvalidName, match="invalid database name"):
        validate_name(name)


@pytest.mark.parametrize(
    "name", ["app.db", "a/b/c.db", "100%.db", "a%2Fb", "Ünï.db", "-x", ".hidden", "a-wal.db"]
)
def test_allows_names(tmp_path: Path, name: str) -> None:
    data = DataDir(tmp_path)
    directory = data.database_dir(name)
    directory.create()
    assert directory.path.parent == tmp_path / "dbs"
    assert data.names() == [name]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_encoding_is_one_component_and_reversible(name: str) -> None:
    encoded = encode_name(name)
    assert "/" not in encoded
    assert decode_name(encoded) == name


@pytest.mark.parametrize("component", ["a%b", "%2f", "%41", "a/b"])
def test_decoding_refuses_what_encoding_never_makes(component: str) -> None:
    with pytest.raises(InvalidName):
        decode_name(component)


def test_foreign_entries_are_no_databases(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    (tmp_path / "dbs" / "a%zz").mkdir()
    (tmp_path / "dbs" / "file").touch()
    assert data.names() == []


def test_lock_names_the_holder_and_outlives_it_in_a_child(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    fd = data.lock()
    with pytest.raises(DataDirInUse, match=f"in use by process {os.getpid()}"):
        data.lock()
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[fd]
    )
    try:
        os.close(fd)
        with pytest.raises(DataDirInUse):
            data.lock()
    finally:
        child.communicate(timeout=10)
    os.close(data.lock())


def test_cluster_id_is_set_once(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    assert data.cluster_id() is None
    data.set_cluster_id("LFSC0123456789ABCDEF")
    data.set_cluster_id("LFSC0123456789ABCDEF")
    assert (tmp_path / "clusterid").read_bytes() == b"LFSC0123456789ABCDEF\n"
    with pytest.raises(ClusterMismatch, match="belongs to cluster LFSC0123456789ABCDEF"):
        data.set_cluster_id("LFSC0123456789ABCDE0")
    with pytest.raises(ClusterMismatch, match="not a cluster id"):
        data.set_cluster_id("nonsense")
    (tmp_path / "clusterid").write_text("garbage")
    with pytest.raises(ClusterMismatch, match="does not hold a cluster id"):
        data.cluster_id()


def test_lost_directories_never_collide(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    made = {data.lost("a/b.db", "diverged") for _ in range(3)}
    assert len(made) == 3
    assert all(path.name.startswith("a%2Fb.db-") and "-diverged" in path.name for path in made)


def test_atomic_write_leaves_old_content_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    fileops.write_file_atomic(path, b"old")

    def fail(fd: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(fileops, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        fileops.write_file_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_copy_is_equal_and_never_overwrites(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(3_000_000))
    fileops.copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(FileExistsError):
        fileops.copy_file(source, target)
