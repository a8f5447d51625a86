"""A database made again of a log that was set aside."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

import pytest

from litefs.cli.main import main
from litefs.errors import FormatError, LogCorrupt
from litefs.store import log
from litefs.store import salvage as salvaging
from litefs.store.lost import keep_diverged
from litefs.store.rebuild import Overlay
from litefs.store.salvage import salvage
from tests.store.support import Writer, check_integrity, new_dir

LAST = "SELECT count(*), sum(length(v)) FROM t"


def diverged(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A log under ``lost/`` whose node had more than ``base``; and what it had, as a file."""
    directory = new_dir(tmp_path, "sub/app.db")
    writer = Writer(directory, tmp_path / "source.db")
    writer.fill(4)
    (tmp_path / "base.db").write_bytes(writer.images[-1])
    writer.run("INSERT INTO t (v) VALUES (randomblob(9000))")
    writer.run("UPDATE t SET v = randomblob(700) WHERE id = 2")
    whole = tmp_path / "whole.db"
    whole.write_bytes(writer.images[-1])
    writer.close()
    lost = keep_diverged(directory, 0, "diverged")
    assert lost is not None
    return lost, tmp_path / "base.db", whole


def test_the_database_comes_back_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost, base, whole = diverged(tmp_path)
    (found,) = salvaging.kept(tmp_path / "data")
    assert (found.name, found.reason, found.path, found.log) == ("sub/app.db", "diverged", lost, lost)
    assert main(["lost", "list", "-data", str(tmp_path / "data")]) == 0
    assert f"lost/{lost.name}" in capsys.readouterr().out
    target = tmp_path / "old.db"
    before = base.read_bytes()
    assert main(["lost", "salvage", "-base", str(base), str(lost), str(target)]) == 0
    printed = capsys.readouterr()
    assert "exactly the database" in printed.out
    assert not printed.err
    assert target.read_bytes() == whole.read_bytes()
    assert base.read_bytes() == before
    check_integrity(target)
    assert main(["lost", "salvage", "-base", str(base), str(lost), str(target)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_history_that_changed_further_pages_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = new_dir(tmp_path)
    writer = Writer(directory, tmp_path / "source.db")
    writer.fill(6)
    # The log begins here: retention took what was before.
    (tmp_path / "base.db").write_bytes(writer.images[-1])
    monkeypatch.setattr(log, "SEGMENT_BYTES", 1)
    writer.run("UPDATE t SET v = randomblob(3000) WHERE id = 1")
    writer.close()
    first, _ = sorted(directory.log.glob("*.seg"))
    first.unlink()
    with sqlite3.connect(tmp_path / "base.db") as other:
        other.execute("UPDATE t SET v = randomblob(3000) WHERE id = 9")
    other.close()
    kept = keep_diverged(directory, 0, "diverged")
    target = tmp_path / "old.db"
    assert main(["lost", "salvage", "-base", str(tmp_path / "base.db"), str(kept), str(target)]) == 0
    printed = capsys.readouterr()
    assert "not exact" in printed.err
    assert "exactly" not in printed.out
    with sqlite3.connect(target) as made, sqlite3.connect(tmp_path / "source.db") as source:
        query = "SELECT v FROM t WHERE id = 1"
        assert made.execute(query).fetchone() == source.execute(query).fetchone()
    made.close()
    source.close()


def test_what_cannot_be_used_is_refused_and_nothing_made(tmp_path: Path) -> None:
    lost, base, _ = diverged(tmp_path)
    target = tmp_path / "old.db"
    other = sqlite3.connect(tmp_path / "other.db")
    other.executescript("PRAGMA page_size=512; CREATE TABLE t(a)")
    other.close()
    with pytest.raises(FormatError, match="pages of 512 bytes, the log of 4096"):
        salvage(lost, tmp_path / "other.db", target)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LogCorrupt, match="no transaction"):
        salvage(empty, base, target)
    damaged = tmp_path / "damaged"
    shutil.copytree(lost, damaged)
    (segment,) = damaged.glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[200] ^= 1
    segment.write_bytes(content)
    with pytest.raises(LogCorrupt):
        salvage(damaged, base, target)
    assert not target.exists()


def test_a_failure_leaves_no_half_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost, base, _ = diverged(tmp_path)
    target = tmp_path / "old.db"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Overlay, "write", full)
        with pytest.raises(OSError, match="No space left"):
            salvage(lost, base, target)
    assert not target.exists()
    target.write_bytes(b"somebody's")
    with pytest.raises(FileExistsError):
        salvage(lost, base, target)
    assert target.read_bytes() == b"somebody's"


@pytest.mark.parametrize(("file", "words"), [("old.db-wal", "remove it"), ("base.db-wal", "not complete")])
def test_a_wal_beside_a_file_is_not_overlooked(file: str, words: str, tmp_path: Path) -> None:
    """SQLite would lay it over what was made; or the base lacks what is in it."""
    lost, base, _ = diverged(tmp_path)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(FormatError, match=words):
        salvage(lost, base, tmp_path / "old.db")
    assert not (tmp_path / "old.db").exists()
