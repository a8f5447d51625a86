"""``litefs backup`` over an archive in a directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from litefs.cli.main import main
from tests.support.handmade import Archived

DAY = 86_400_000


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Archived]:
    archived = Archived(tmp_path / "archive", tmp_path / "work")
    archived.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    for number in range(5):
        archived.execute(f"INSERT INTO t VALUES ({number}, randomblob(5000))")
        archived.bundle()
    archived.merge(1)
    archived.snapshot(4)
    archived.execute("UPDATE t SET n = n + 1")
    archived.bundle()
    archived.snapshot(7)
    yield archived
    archived.close()


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(word) for word in argv])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_status_in_words_and_in_json(
    made: Archived, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = run(capsys, "backup", "status", tmp_path / "archive")
    assert code == 0
    assert "app.db" in text
    assert "0000000000000007" in text
    assert "level 1" in text
    code, text, _ = run(capsys, "backup", "status", "-json", "-database", "app.db", tmp_path / "archive")
    (found,) = json.loads(text)
    assert found["newest"]["txid"] == f"{7:016x}"
    assert found["oldest"]["txid"] == found["each-from"]["txid"] == f"{1:016x}"
    assert found["snapshot"]["txid"] == f"{7:016x}"
    assert found["levels"]["1"]["files"] == 1
    assert found["behind"] is None
    assert found["size"] == sum(
        path.stat().st_size
        for path in (tmp_path / "archive").rglob("*")
        if path.is_file() and path.name not in ("claim", "start", "head")
    )


def test_verify_says_what_it_proved_and_what_is_wrong(
    made: Archived, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = run(capsys, "backup", "verify", "-scratch", tmp_path, tmp_path / "archive")
    assert code == 0
    assert "sound" in text
    assert "every page as the primary had it" in text
    path = tmp_path / "archive" / made.archive.files(1)[0].key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, text, problem = run(capsys, "backup", "verify", tmp_path / "archive")
    assert code == 1
    assert "DAMAGED" in text
    assert path.name in problem
    code, text, _ = run(capsys, "backup", "verify", "-quick", "-json", tmp_path / "archive")
    (found,) = json.loads(text)
    assert code == 0
    assert found["proved"]
    assert found["audit"] is None
    assert not list(tmp_path.glob("litefs-verify-*"))


def test_a_newest_moment_that_is_damaged_is_found_quickly(
    made: Archived, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "archive" / made.archive.files(9)[-1].key
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    code, _, problem = run(capsys, "backup", "verify", "-quick", tmp_path / "archive")
    assert code == 1
    assert "checksum" in problem or "cannot be restored" in problem


def test_prune_says_what_would_go_and_removes_it(
    made: Archived, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def names() -> list[str]:
        return sorted(str(path) for path in (tmp_path / "archive").rglob("*") if path.is_file())

    before = names()
    code, text, _ = run(capsys, "backup", "prune", "-dry-run", "-retention", "1h", tmp_path / "archive")
    assert code == 0
    assert "would go" in text
    assert names() == before
    code, text, _ = run(capsys, "backup", "prune", "-json", "-retention", "1h", tmp_path / "archive")
    gone = json.loads(text)["app.db"]
    assert code == 0
    assert gone["bundle"] == len(before) - len(names()) - sum(
        number for kind, number in gone.items() if kind != "bundle"
    )
    code, text, _ = run(capsys, "backup", "verify", tmp_path / "archive")
    assert code == 0


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nothing",),
        ("status",),
        ("status", "a", "b"),
        ("verify", "-timeline", "x", "."),
        ("snapshot", "x"),
    ],
)
def test_wrong_arguments_are_refused(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, problem = run(capsys, "backup", *argv)
    assert code == 2
    assert "Usage" in problem


def test_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "backup", "status", tmp_path / "none")[:2] == (
        0,
        f"file://{tmp_path}/none holds no database\n",
    )
    code, _, problem = run(capsys, "backup", "verify", "-database", "x.db", tmp_path)
    assert code == 1
    assert "database not found" in problem
    code, _, problem = run(capsys, "backup", "verify", tmp_path / "none")
    assert code == 1
    assert "nothing was verified" in problem
