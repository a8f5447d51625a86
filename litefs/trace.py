"""The trace log: a line for each thing that happens to a database, for those who look for a fault afterwards.

``2026/11/22 20:13:00.667902 [Op(db)]: k=v``, UTC, the form of Go LiteFS's. Both processes of a node append to
one file; the node process rotates it (:class:`Rotation`), and whoever writes next finds the new one.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from litefs.errors import LiteFSError

log = logging.getLogger("litefs.trace")

MEGABYTE = 1 << 20
SETTLE_SECONDS = 0.2
"""After a file was renamed: a line that is just being written still goes there."""
_MODE = 0o600


class TraceOptions(Protocol):
    """``path``: of the file, none if it is empty; ``stdout``: to standard output too."""

    @property
    def path(self) -> str: ...
    @property
    def stdout(self) -> bool: ...


class Tracer:
    """Ask ``enabled`` before a call: then a trace that nobody wants costs nothing."""

    def __init__(self) -> None:
        self.enabled = False
        self._path = ""
        self._stdout = False
        self._fd = -1
        self._inode = 0
        self._failed = False

    def setup(self, options: TraceOptions) -> None:
        """Write where these say. Raises LiteFSError if that cannot be."""
        self.close()
        self._path, self._stdout = options.path, options.stdout
        if self._path:
            try:
                os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
                self._open()
            except OSError as error:
                raise LiteFSError(
                    f"tracing.path: {self._path} cannot be written: {error.strerror}; name another file, or "
                    "none"
                ) from error
        self.enabled = bool(self._path) or self._stdout

    def close(self) -> None:
        """Trace nothing; harmless if repeated."""
        self.enabled = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __call__(self, operation: str, database: str = "", **values: object) -> None:
        """Write one line."""
        moment = datetime.now(UTC).strftime("%Y/%m/%d %H:%M:%S.%f")
        pairs = " ".join(f"{key}={value}" for key, value in values.items())
        line = f"{moment} [{operation}({database})]: {pairs}\n"
        if self._path:
            self._append(line.encode(errors="surrogateescape"))
        if self._stdout:
            self._print(line)

    def _print(self, line: str) -> None:
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except (OSError, ValueError) as error:  # its reader is gone, or it was closed
            self._stdout = False
            self.enabled = bool(self._path)
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("tracing: standard output is not written any more: %s", reason)

    def _open(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._inode = fd, os.fstat(fd).st_ino

    def _append(self, line: bytes) -> None:
        try:
            if self._is_rotated():
                self._open()
            os.write(self._fd, line)
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning("tracing: lines are lost: %s: %s", self._path, error.strerror)

    def _is_rotated(self) -> bool:
        try:
            return os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return True


TRACE = Tracer()
"""This process's."""


class Rotation:
    """Gives a trace file that has grown to ``max_size`` MB another name, with the time in it; of those
    ``max_count`` are kept (0: all), with ``compress`` by gzip."""

    def __init__(self, path: str, max_size: int, max_count: int, compress: bool) -> None:
        self._path = Path(path)
        self._max_bytes = max_size * MEGABYTE
        self._max_count = max_count
        self._compress = compress

    def look(self) -> None:
        """Rotate if that is due. Blocking, for seconds if it compresses. Raises OSError."""
        try:
            if self._path.stat().st_size < self._max_bytes:
                return
        except FileNotFoundError:
            return
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
        target = self._path.with_name(f"{self._path.stem}-{moment}{self._path.suffix}")
        self._path.rename(target)
        if self._compress:
            time.sleep(SETTLE_SECONDS)
            packed = target.with_name(target.name + ".gz")
            with target.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as file:
                shutil.copyfileobj(source, file)
            packed.chmod(_MODE)
            target.unlink()
        kept = self.rotated()
        for old in kept[: -self._max_count] if self._max_count else []:
            old.unlink()

    def rotated(self) -> list[Path]:
        """The files that were rotated, oldest first."""
        pattern = f"{self._path.stem}-????-??-??T??-??-??.??????{self._path.suffix}*"
        return sorted(self._path.parent.glob(pattern))
