"""Room for one big record while its pieces arrive: memory up to a limit, beyond it an unnamed file."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import trio

from litefs.stream.protocols import Buffer

MEMORY_LIMIT = 8 << 20
"""Records up to this size are collected in memory."""


class Spool:
    """Collects a record of ``size`` bytes. ``directory`` holds the temporary file if one is needed."""

    def __init__(self, size: int, directory: Path | None) -> None:
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        if size > MEMORY_LIMIT:
            self._file = tempfile.TemporaryFile(dir=directory, prefix="record-", buffering=0)  # noqa: SIM115

    async def write(self, data: bytes) -> None:
        """Append a piece. Raises OSError if the file cannot take it."""
        if self._file is None:
            self._memory += data
        else:
            await trio.to_thread.run_sync(_write_all, self._file.fileno(), data)

    @contextmanager
    def view(self) -> Iterator[Buffer]:
        """The whole record, valid inside the block."""
        if self._file is None:
            with memoryview(self._memory) as view:
                yield view
            return
        with mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            yield view

    def close(self) -> None:
        """Free memory or file; may be called twice."""
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()


def _write_all(fd: int, data: bytes) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])
