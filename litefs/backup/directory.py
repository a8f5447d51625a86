"""An archive in a directory, as Litestream's file replica lays it out."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from litefs.backup.layout import Layout
from litefs.backup.target import Stored, holds
from litefs.errors import ArchiveMissing, ArchiveUnavailable
from litefs.store import fileops

_TEMPORARY = ".tmp"


class DirectoryTarget:
    """Implements :class:`litefs.backup.target.Target`; ``root`` is made with the first write."""

    layout = Layout()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = f"file://{root}"
        self._made: set[Path] = set()
        """Directories whose names are durable."""
        self._root: tuple[int, int] | None = None
        """Device and inode of the root that was written to last."""

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """See the protocol."""
        path = self.root / directory
        with _translated(self.name):
            try:
                names = sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                return
        for name in names:
            if name <= after or name.endswith(_TEMPORARY):
                continue
            with contextlib.suppress(FileNotFoundError), _translated(self.name):
                stat = (path / name).stat()
                if (stat.st_mode & 0o170000) == 0o100000:
                    yield Stored(directory + name, stat.st_size, stat.st_mtime_ns // 1_000_000)

    def directories(self, directory: str) -> list[str]:
        """See the protocol."""
        with _translated(self.name):
            try:
                with os.scandir(self.root / directory) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                return []
            except NotADirectoryError:
                if not directory:
                    raise ArchiveUnavailable(f"{self.name}: is not a directory") from None
                return []

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See the protocol."""
        with self._opened(key) as file:
            wanted = max(0, os.fstat(file.fileno()).st_size - offset)
            return fileops.pread_all(file.fileno(), wanted if length is None else min(length, wanted), offset)

    def size(self, key: str) -> int:
        """See the protocol."""
        with self._opened(key) as file:
            return os.fstat(file.fileno()).st_size

    def open(self, key: str) -> BinaryIO:
        """See the protocol."""
        with self._named(key):
            return (self.root / key).open("rb", buffering=0)

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """See the protocol. Written beside its place, synced, and put there by one rename(2) or link(2)."""
        path = self.root / key
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        try:
            with _translated(self.name):
                self._make(path.parent)
                self._store(temporary, (data,) if isinstance(data, bytes) else data, timestamp)
                done = True
                if create:
                    done = self._link(temporary, key, data)
                else:
                    fileops.rename(temporary, path)
                fileops.sync_dir(path.parent)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._made.discard(path.parent)
            raise ArchiveUnavailable(f"{self.name}: {error.filename}: {error.strerror}") from None
        finally:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(temporary)
        return done

    def _link(self, temporary: Path, key: str, data: bytes | Iterable[bytes]) -> bool:
        try:
            fileops.link(temporary, self.root / key)
        except FileExistsError:
            assert isinstance(data, bytes)
            with contextlib.suppress(ArchiveMissing):
                return holds(self, key, data)
            return False
        return True

    def _make(self, directory: Path) -> None:
        if self._root is not None and self._root != self._identity():
            self._root = None
            self._made.clear()
            raise ArchiveUnavailable(f"{self.name}: the directory was replaced, or is no longer mounted")
        if directory not in self._made or not directory.is_dir():
            fileops.make_dir(directory)
            self._made.add(directory)
            self._root = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        try:
            stat = self.root.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_dev, stat.st_ino

    def _store(self, path: Path, pieces: Iterable[bytes], timestamp: int | None) -> None:
        """A new file of these pieces, durable but for its name."""
        fd = fileops.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            offset = 0
            for piece in pieces:
                fileops.pwrite_all(fd, piece, offset)
                offset += len(piece)
            if timestamp is not None:
                os.utime(fd, ns=(timestamp * 1_000_000, timestamp * 1_000_000))
            fileops.fsync(fd)
        finally:
            os.close(fd)

    def delete(self, keys: Iterable[str]) -> None:
        """See the protocol."""
        with _translated(self.name):
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.root / key)

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        with self._named(key), (self.root / key).open("rb", buffering=0) as file:
            yield file

    @contextmanager
    def _named(self, key: str) -> Iterator[None]:
        try:
            with _translated(self.name):
                yield
        except FileNotFoundError:
            raise ArchiveMissing(f"{self.name}/{key}: not there") from None


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """OSError as ArchiveUnavailable, but for a file that is not there."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        what = os.strerror(error.errno or errno.EIO)
        raise ArchiveUnavailable(f"{name}: {error.filename or ''}: {what}") from error
