"""The note that replicas may hold commits which this node's disk lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from litefs.store import streamed
from litefs.store.paths import DataDir
from litefs.store.streamed import Streamed, boot_id


def test_only_another_boot_tells_of_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataDir(tmp_path)
    assert not Streamed(data).before_this_boot()
    first = Streamed(data)
    first.note()
    first.note()
    assert not first.before_this_boot()
    assert not Streamed(data).before_this_boot(), "only the process died"
    written = (tmp_path / "streamed").stat()
    Streamed(data).note()
    assert (tmp_path / "streamed").stat() == written, "it would take room on a full disk"

    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    assert boot_id() != "another boot"
    monkeypatch.setattr(streamed, "BOOT_ID", other)
    assert Streamed(data).before_this_boot()
    Streamed(data).clear()
    Streamed(data).clear()
    assert not Streamed(data).before_this_boot()


def test_a_boot_that_cannot_be_told_from_others_counts_as_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "BOOT_ID", tmp_path / "missing")
    note = Streamed(DataDir(tmp_path))
    note.note()
    assert note.before_this_boot()
