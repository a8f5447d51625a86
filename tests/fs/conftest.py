"""Fixtures of the tests on mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A data directory on a file system of 6 MiB."""
    with disks.small_disk(tmp_path / "data", 6) as data:
        yield data
