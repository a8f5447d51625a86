"""A target as the archiver of one database writes to it: only while its node is primary, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from litefs.backup.target import Reader, Stored, Target
from litefs.errors import NotPrimary


class FencedTarget:
    """Implements :class:`litefs.backup.target.Target`. ``may`` is asked right before each change: whoever is
    no longer primary changes nothing more, however long it was stopped in between. Raises NotPrimary then.
    """

    def __init__(self, target: Target, may: Callable[[], bool]) -> None:
        self._target = target
        self._may = may
        self.name = target.name
        self.layout = target.layout
        self.bytes = 0
        """Sent so far, also in vain."""
        self.objects = 0
        """Stored so far."""

    def entries(self, directory: str, after: str = "") -> Iterator[Stored]:
        """See the protocol."""
        return self._target.entries(directory, after)

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
        """See the protocol."""
        self._check()
        if isinstance(data, bytes):
            self.bytes += len(data)
            done = self._target.write(key, data, timestamp, create=create)
        else:
            done = self._target.write(key, self._counted(data), timestamp, create=create)
        self.objects += done
        return done

    def delete(self, keys: Iterable[str]) -> None:
        """See the protocol."""
        self._check()
        self._target.delete(keys)

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._check()
            self.bytes += len(piece)
            yield piece

    def _check(self) -> None:
        if not self._may():
            raise NotPrimary("this node does not write to the archive: it is not the primary any more")
