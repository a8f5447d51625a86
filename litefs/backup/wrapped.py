"""A target over another one, which passes on what a subclass does not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from litefs.backup.target import Reader, Stored, Target


class WrappedTarget:
    """Implements :class:`litefs.backup.target.Target`; the methods are those of the protocol."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.name = target.name
        self.layout = target.layout

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """See the protocol."""
        return self.target.entries(directory, after)

    def directories(self, directory: str) -> list[str]:
        """See the protocol."""
        return self.target.directories(directory)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See the protocol."""
        return self.target.read(key, offset, length)

    def size(self, key: str) -> int:
        """See the protocol."""
        return self.target.size(key)

    def open(self, key: str) -> Reader:
        """See the protocol."""
        return self.target.open(key)

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """See the protocol."""
        return self.target.write(key, data, timestamp, create=create)

    def delete(self, keys: Iterable[str]) -> None:
        """See the protocol."""
        self.target.delete(keys)
