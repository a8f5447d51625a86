"""A target as the archiver of one database writes to it: only while its node is primary, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from litefs.backup.target import Target
from litefs.backup.wrapped import WrappedTarget
from litefs.errors import NotPrimary


class FencedTarget(WrappedTarget):
    """``may`` is asked right before each change: whoever is no longer primary changes nothing more, however
    long it was stopped in between. Raises NotPrimary then.
    """

    def __init__(self, target: Target, may: Callable[[], bool]) -> None:
        super().__init__(target)
        self._may = may
        self.bytes = 0
        """Sent so far, also in vain."""
        self.objects = 0
        """Stored so far."""

    def write(
        self, key: str, data: bytes | Iterable[bytes], timestamp: int | None = None, *, create: bool = False
    ) -> bool:
        """See the protocol."""
        self._check()
        if isinstance(data, bytes):
            self.bytes += len(data)
            done = self.target.write(key, data, timestamp, create=create)
        else:
            done = self.target.write(key, self._counted(data), timestamp, create=create)
        self.objects += done
        return done

    def delete(self, keys: Iterable[str]) -> None:
        """See the protocol."""
        self._check()
        self.target.delete(keys)

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._check()
            self.bytes += len(piece)
            yield piece

    def _check(self) -> None:
        if not self._may():
            raise NotPrimary("this node does not write to the archive: it is not the primary any more")
