"""Directories of the mount:

those that database names imply, and those made with mkdir (markers in the data directory).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from litefs.store.paths import DataDir, decode_name, encode_name, validate_name


class Directories:
    """Which directories exist, and what is in them.

    Directories are local to a node until a database is in them.
    """

    def __init__(self, data: DataDir) -> None:
        self._root = Path(data.path) / "dirs"
        self._root.mkdir(exist_ok=True)
        self._made = {decode_name(entry.name) for entry in os.scandir(self._root)}

    def exists(self, path: str, names: Iterable[str]) -> bool:
        prefix = path + "/"
        return path in self._made or any(name.startswith(prefix) for name in names)

    def children(self, path: str, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """(subdirectories, databases) directly inside *path* ("" is the root), as base names."""
        prefix = path + "/" if path else ""
        directories: set[str] = set()
        databases: set[str] = set()
        for name in names:
            if name.startswith(prefix):
                head, slash, _ = name[len(prefix) :].partition("/")
                (directories if slash else databases).add(head)
        for made in self._made:
            if made.startswith(prefix) and made != path:
                directories.add(made[len(prefix) :].partition("/")[0])
        return directories, databases

    def make(self, path: str) -> None:
        """Raises InvalidName, OSError."""
        validate_name(path)
        (self._root / encode_name(path)).touch(exist_ok=True)
        self._made.add(path)

    def remove(self, path: str, names: Iterable[str]) -> None:
        """Raises OSError (ENOTEMPTY, ENOENT)."""
        directories, databases = self.children(path, names)
        if directories or databases:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        if path not in self._made:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        (self._root / encode_name(path)).unlink()
        self._made.discard(path)
