"""Fixtures: a captured source, a replica directory as recovery would leave it, and clients that are always
ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from litefs.apply.applier import Applier
from litefs.apply.checkpoint import CheckpointPolicy
from litefs.store.paths import DataDir
from litefs.store.snapshot import SnapshotTarget
from litefs.types import START
from tests.apply.support import Client, Source

ClientMaker = Callable[..., Client]
SourceMaker = Callable[..., Source]


@pytest.fixture
def client() -> Iterator[ClientMaker]:
    """Make clients (path, kind, mmap_size) that are killed at the end."""
    made: list[Client] = []

    def make(path: Path, kind: str, mmap_size: int = 0, *, writable: bool = False) -> Client:
        made.append(Client(path, kind, mmap_size, writable=writable))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceMaker]:
    """Make sources (page_size, mode, seed)."""
    made: list[Source] = []

    def make(page_size: int = 4096, mode: str = "wal", seed: int = 1) -> Source:
        made.append(Source(tmp_path / f"source{len(made)}", page_size, mode, seed))
        return made[-1]

    yield make
    for one in made:
        one.close()


def replica_of(source: Source, path: Path, policy: CheckpointPolicy | None = None) -> Applier:
    """An applier for a new replica that holds what ``source`` has now."""
    directory = DataDir(path).database_dir("app.db")
    target = SnapshotTarget(directory, source.page_size, 1, START, 0)
    for body in source.take():
        target.record(body)
    target.verify(source.point)
    target.install()
    return Applier(directory, directory.database, policy=policy)
