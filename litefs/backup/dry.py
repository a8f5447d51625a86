"""A target that keeps what is to be deleted, and notes it: what a pruning would do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from litefs.backup.target import Reader, Stored, Target


class DryTarget:
    """Implements :class:`litefs.backup.target.Target` over another one; nothing may be written."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.name = target.name
        self.layout = target.layout
        self.deleted: list[str] = []

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """See the protocol; without what was deleted."""
        gone = set(self.deleted)
        return (one for one in self._target.entries(directory, after) if one.key not in gone)

    def directories(self, directory: str) -> list[str]:
        """See the protocol."""
        return self._target.directories(directory)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See the protocol."""
        return self._target.read(key, offset, length)

    def size(self, key: str) -> int:
        """See the protocol."""
        return self._target.size(key)

    def open(self, key: str) -> Reader:
        """See the protocol."""
        return self._target.open(key)

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """Refused."""
        raise NotImplementedError(f"{key}: nothing is written in a dry run")

    def delete(self, keys: Iterable[str]) -> None:
        """Noted in ``deleted``."""
        self.deleted.extend(keys)
