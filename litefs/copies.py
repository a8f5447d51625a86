"""Whole databases in and out over HTTP: imports and exports through the mount."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterable, Iterator
from pathlib import Path

import trio

from litefs.apply.ownprocess import call
from litefs.apply.transfer import export_file, import_file
from litefs.errors import DatabaseNotFound
from litefs.server.view import Export
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.trace import TRACE
from litefs.types import Position

COPIES = 4
"""Imports and exports that are worked on at a time; more of them wait, and hold up nothing else."""


class Copies:
    """Imports and exports databases, a few at a time, in worker threads."""

    def __init__(self, data: DataDir, mount: Path, catalog: StoreCatalog) -> None:
        self._data = data
        self._mount = mount
        self._catalog = catalog
        self._limiter = trio.CapacityLimiter(COPIES)
        self._scratch_dir = data.path / "tmp"
        self._scratch_dir.mkdir(exist_ok=True)
        for leftover in self._scratch_dir.iterdir():
            leftover.unlink()

    async def import_database(self, name: str, chunks: AsyncIterable[bytes], *, check: bool) -> Position:
        """Replace or create *name* by the SQLite database in *chunks*; nothing changes unless all is well,
        with *check* also SQLite's integrity check of it. Returns the position afterwards.

        Raises InvalidName, FormatError, LiteFSError, OSError.
        """
        self._data.database_dir(name)  # the name is checked before anything is received
        target = self._mount / name
        with self._scratch() as scratch:
            async with await trio.open_file(scratch, "wb") as file:
                async for chunk in chunks:
                    await file.write(chunk)
            await trio.to_thread.run_sync(call, import_file, scratch, target, check, limiter=self._limiter)
        self._catalog.refresh(name)  # it may be new, and the fs process's word of it under way
        position = self._catalog.position(name)
        if TRACE.enabled:
            TRACE("Import", name, pos=position)
        return position

    async def export_database(self, name: str, *, check: bool) -> Export:
        """A consistent copy of *name*, of any node, with *check* one that SQLite finds sound.

        Raises DatabaseNotFound, InvalidName, LiteFSError.
        """
        if self._data.database_dir(name).name not in self._catalog.sources():
            raise DatabaseNotFound("database not found")
        return await trio.to_thread.run_sync(self._export, name, check, limiter=self._limiter)

    def _export(self, name: str, check: bool) -> Export:
        with self._scratch() as scratch:
            call(export_file, self._mount / name, scratch, check)
            file = scratch.open("rb")
        size = os.fstat(file.fileno()).st_size
        if TRACE.enabled:
            TRACE("Export", name, bytes=size)
        return Export(file, size)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A temporary file's path; the file is removed afterwards."""
        path = self._scratch_dir / secrets.token_hex(8)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
