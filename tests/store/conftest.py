"""Fixtures of the store's tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from litefs.store.paths import DatabaseDir
from tests.store.support import Writer, new_dir


@pytest.fixture
def directory(tmp_path: Path) -> DatabaseDir:
    return new_dir(tmp_path)


@pytest.fixture
def make_writer(tmp_path: Path) -> Iterator[Callable[..., Writer]]:
    writers: list[Writer] = []

    def make(directory: DatabaseDir, page_size: int = 4096) -> Writer:
        writers.append(Writer(directory, tmp_path / f"source{len(writers)}.db", page_size))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)
