"""A target that keeps what is to be deleted, and notes it: what a pruning would do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from litefs.backup.target import Stored, Target
from litefs.backup.wrapped import WrappedTarget


class DryTarget(WrappedTarget):
    """Nothing may be written to it."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.deleted: list[str] = []

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """See the protocol; without what was deleted."""
        gone = set(self.deleted)
        return (one for one in self.target.entries(directory, after) if one.key not in gone)

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """Refused."""
        raise NotImplementedError(f"{key}: nothing is written in a dry run")

    def delete(self, keys: Iterable[str]) -> None:
        """Noted in ``deleted``."""
        self.deleted.extend(keys)
