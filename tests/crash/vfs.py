"""SQLite's file operations on ``/app.db`` and its companions, through capture, as ``litefs.fs.operations``
does on a primary; in this process, without a mount.

Reads, locks and the wal-index go to the backing files by SQLite's own VFS.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import apsw

from litefs.capture.commit import BigCommit
from litefs.capture.database import DatabaseCapture
from litefs.errors import LiteFSError
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.paths import DatabaseDir

DATABASE = "/app.db"
KERNEL_PAGE = 4096
POWERSAFE_OVERWRITE = 0x1000
_SHM_HEADERS = 96


class Open:
    """A gate that lets everything through."""

    def writable(self) -> bool:
        return True

    def admits(self) -> bool:
        return True

    def check(self) -> None:
        """Nothing to check."""

    def confirm(self) -> None:
        """Nothing to confirm."""


class Watch:
    """Remembers whether a logged commit waits to be published."""

    def __init__(self) -> None:
        self.waiting = False
        self.broken = False
        """The chain of the WAL is broken: it is to be checkpointed."""

    def logged(self, name: str) -> None:
        """Nobody is to be woken."""

    def unpublished(self, name: str) -> None:
        self.waiting = True

    def loose(self, name: str) -> None:
        self.broken = True


class Primary:
    """An fs process as far as one database is concerned: its capture, and a VFS that leads to it."""

    def __init__(self, directory: DatabaseDir, rng: random.Random, *, split: bool, psow: bool) -> None:
        """``split``: writes arrive cut at the borders of kernel pages, as from FUSE; those to the database,
        which are aligned, do not. ``psow``: SQLite may count on power-safe overwrites. Raises LiteFSError,
        OSError.
        """
        self.dir = directory
        self.split = split
        self.psow = psow
        self.rng = rng
        self.watch = Watch()
        self.synced = 0
        """So many syncs were answered with success."""
        self.errors: list[str] = []
        """What was answered with an error."""
        fileops.make_dir(directory.path)
        self.fd = fileops.open_file(directory.database, os.O_RDWR | os.O_CREAT)
        try:
            self.db = Database.open(directory)
        except BaseException:
            os.close(self.fd)
            raise
        self.capture = DatabaseCapture("app.db", self.db, Open(), self.watch, lambda: self.fd)
        self.name = f"primary{id(self):x}"
        self._vfs = Vfs(self)

    def connect(self, flags: int = apsw.SQLITE_OPEN_READWRITE) -> apsw.Connection:
        """A client's connection."""
        return apsw.Connection(DATABASE, flags | apsw.SQLITE_OPEN_CREATE, vfs=self.name)

    def backing(self, name: str) -> Path:
        """The file behind a path of the mount."""
        return self.dir.path / ("database" + name.removeprefix(DATABASE))

    def publish(self) -> None:
        """What the node process does about a commit that nobody published in the wal-index. No client may be
        writing."""
        self.watch.waiting = False
        if self.dir.shm.exists() and self.dir.shm.stat().st_size >= _SHM_HEADERS:
            with self.dir.shm.open("r+b", buffering=0) as file:
                file.write(bytes(_SHM_HEADERS))

    def close(self) -> None:
        """As the process's end, without settling anything."""
        self._vfs.unregister()
        self.db.close()
        os.close(self.fd)

    def failure(self, error: Exception) -> Exception:
        """What SQLite is told of an error, as ``Namespace._fail`` decides."""
        self.errors.append(str(error))
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return apsw.FullError(str(error))
        return apsw.IOError(str(error))


class Vfs(apsw.VFS):
    """Names of the mount."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        super().__init__(primary.name, "", maxpathname=64)

    def xFullPathname(self, name: str) -> str:
        return name

    def xRandomness(self, size: int) -> bytes:
        return self._primary.rng.randbytes(size)

    def xAccess(self, name: str, flags: int) -> bool:
        return self._primary.backing(name).exists()

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None:
            return apsw.VFSFile("", None, flags)  # a temporary file, which is none of ours
        text = name if isinstance(name, str) else name.filename()
        return MountFile(self._primary, text, flags)

    def xDelete(self, name: str, syncdir: bool) -> None:
        primary, path = self._primary, self._primary.backing(name)
        if not path.exists():
            missing = apsw.IOError("no such file")
            missing.extendedresult = apsw.SQLITE_IOERR_DELETE_NOENT  # type: ignore[attr-defined]
            raise missing
        try:
            primary.capture.check_writable(name)
            if name.endswith("-wal"):
                primary.capture.wal.unlink()
                fileops.unlink(path)
            else:
                finish(primary.capture.journal.unlink(str(path), primary.fd))
        except (LiteFSError, OSError) as error:
            raise primary.failure(error) from error


class MountFile(apsw.VFSFile):
    """An open file of the mount."""

    def __init__(self, primary: Primary, name: str, flags: list[int]) -> None:
        self._primary = primary
        self._kind = name.removeprefix(DATABASE)
        path = primary.backing(name)
        try:
            create = os.O_CREAT if flags[0] & apsw.SQLITE_OPEN_CREATE else 0
            self._fd = fileops.open_file(path, os.O_RDWR | create)
        except OSError as error:
            raise apsw.CantOpenError(str(error)) from error
        if self._kind == "-wal":
            primary.capture.wal.opened(os.fstat(self._fd).st_size)
        super().__init__("", str(path), flags)

    def xClose(self) -> None:
        os.close(self._fd)
        super().xClose()

    def xWrite(self, data: bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            step = len(data) - done
            if self._primary.split and self._kind:
                step = min(step, KERNEL_PAGE - (offset + done) % KERNEL_PAGE)
            self._write(data[done : done + step], offset + done)
            done += step

    def _write(self, data: bytes, offset: int) -> None:
        capture = self._primary.capture
        try:
            if self._kind == "-wal":
                finish(capture.wal_write(self._fd, offset, data))
            elif self._kind == "-journal":
                finish(capture.journal_write(self._fd, offset, data, self._primary.fd))
            else:
                finish(capture.database_write(self._fd, offset, data))
        except (LiteFSError, OSError) as error:
            raise self._primary.failure(error) from error

    def xTruncate(self, size: int) -> None:
        capture = self._primary.capture
        try:
            if self._kind == "-wal":
                capture.check_writable(self._kind)
                capture.wal.truncate(self._fd, size)
            elif self._kind == "-journal":
                capture.check_writable(self._kind)
                finish(capture.journal.truncate(self._fd, size, self._primary.fd))
            else:
                capture.database_truncate(self._fd, size)
        except (LiteFSError, OSError) as error:
            raise self._primary.failure(error) from error

    def xSync(self, flags: int) -> None:
        capture = self._primary.capture
        try:
            if self._kind == "-wal":
                finish(capture.wal_sync())
            elif self._kind == "-journal":
                finish(capture.journal_sync(self._fd))
            else:
                finish(capture.database_sync(self._fd))
        except (LiteFSError, OSError) as error:
            raise self._primary.failure(error) from error
        if self._kind != "-journal":
            self._primary.synced += 1

    def xDeviceCharacteristics(self) -> int:
        return POWERSAFE_OVERWRITE if self._primary.psow else 0

    def xFileControl(self, op: int, pointer: int) -> bool:
        # File-size hints and mapping limits would let SQLite touch the backing file by itself.
        if op in (apsw.SQLITE_FCNTL_SIZE_HINT, apsw.SQLITE_FCNTL_MMAP_SIZE, apsw.SQLITE_FCNTL_CHUNK_SIZE):
            return False
        return bool(super().xFileControl(op, pointer))


def finish(job: BigCommit | None) -> Any:
    """Run a big commit at once."""
    if job is None:
        return
    error: Exception | None = None
    try:
        job.run()
    except (LiteFSError, OSError, ValueError) as exc:
        error = exc
    job.finish(error)
