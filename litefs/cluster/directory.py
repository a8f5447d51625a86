"""The lease in a directory that nodes of one machine share.

::

    DIRECTORY/KEY/lock        flock of whoever writes, for the moment of it
    DIRECTORY/KEY/%016x       the beat, one file for each term; the highest one counts
    DIRECTORY/KEY/clusterid
    DIRECTORY/KEY/*.tmp       a beat that is being written

A new term is a name that did not exist before (link(2) fails if it does), a renewal replaces its term's file
by rename(2); both under the lock, after a look that the highest file is the one that was expected. What
readers find is always whole, and the newest. A process that is killed leaves the lock; one that is stopped
inside it keeps the others out, so only looking and renaming happen there, and the wait for it is bounded.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from litefs.cluster.object import Stored
from litefs.store import fileops

LOCK_SECONDS = 1.0
POLL_SECONDS = 0.25
STALE_SECONDS = 60.0
"""After which a temporary file was left by a writer that died."""

_TERM = re.compile(r"\A[0-9a-f]{16}\Z")
_LOCK_POLL_SECONDS = 0.005


class DirectoryStore:
    """Implements :class:`litefs.cluster.object.ObjectStore`. All calls raise OSError."""

    errors: tuple[type[Exception], ...] = ()
    poll = POLL_SECONDS

    def __init__(self, directory: Path, key: str) -> None:
        self.name = str(directory / key)
        self._directory = directory / key

    def read(self) -> Stored | None:
        """See the protocol."""
        while True:
            terms = self._terms()
            if not terms:
                return None
            # It goes only after two higher ones have come.
            with contextlib.suppress(FileNotFoundError):
                data = self._path(terms[-1]).read_bytes()
                return Stored(xxhash.xxh3_128_hexdigest(data), data)

    def swap(self, version: str, term: int, data: bytes) -> str | None:
        """See the protocol."""
        with self._temporary(data) as temporary, self._locked():
            present = self.read()
            if (present.version if present is not None else "") != version:
                return None
            if present is not None and self._terms()[-1] == term:
                fileops.rename(temporary, self._path(term))
            else:
                fileops.link(temporary, self._path(term))
        fileops.sync_dir(self._directory)
        self._clean()
        return xxhash.xxh3_128_hexdigest(data)

    def create(self, name: str, data: bytes) -> bytes:
        """See the protocol."""
        path = self._directory / name
        if not path.exists():
            with self._temporary(data) as temporary, contextlib.suppress(FileExistsError):
                fileops.link(temporary, path)
        fileops.sync_dir(self._directory)
        return path.read_bytes()

    def _path(self, term: int) -> Path:
        return self._directory / f"{term:016x}"

    def _terms(self) -> list[int]:
        """The terms that have a file, ascending."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(int(name, 16) for name in names if _TERM.match(name))

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """A durable file of its own for each call, since one that was given up may still run."""
        fileops.make_dir(self._directory)
        path = self._directory / f"{secrets.token_hex(8)}.tmp"
        try:
            fd = fileops.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                fileops.pwrite_all(fd, data, 0)
                fileops.fsync(fd)
            finally:
                os.close(fd)
            yield path
        finally:
            fileops.unlink(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory's lock. Raises TimeoutError."""
        end = time.monotonic() + LOCK_SECONDS
        fd = fileops.open_file(self._directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            while not fileops.try_lock(fd):
                if time.monotonic() > end:
                    raise TimeoutError(f"locked by another process for {LOCK_SECONDS:g} s")
                time.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(fd)

    def _clean(self) -> None:
        """Remove what writers that died left, and all terms but the last two: a listing that runs while the
        last one comes may miss it, and then finds the one before."""
        for term in self._terms()[:-2]:
            fileops.unlink(self._path(term))
        for path in self._directory.glob("*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    fileops.unlink(path)
