"""Values that are made from files, and made anew when the files change: certificates and tokens are renewed
while a node runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from litefs.errors import LiteFSError

log = logging.getLogger(__name__)

T = TypeVar("T")
_State: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]


class FromFiles(Generic[T]):
    """``make()`` from ``paths``, remembered until one of the files is replaced or written.

    Each look costs one stat(2) per file. A change that cannot be used (a certificate is written before its
    key, say) leaves the value before it in force, and is tried again once the files change further.
    """

    def __init__(self, what: str, paths: Sequence[str], make: Callable[[], T]) -> None:
        """``what`` names the value in the log. Raises what ``make`` raises."""
        self._what = what
        self._paths = tuple(paths)
        self._make = make
        self._state = self._look()
        self._value = make()

    def get(self) -> T:
        """The value as of now; no error."""
        state = self._look()
        if state != self._state:
            # Noted before the files are read: what changes while they are read is seen at the next look.
            self._state = state
            try:
                self._value = self._make()
                log.info("%s: read again, the files have changed", self._what)
            except LiteFSError as error:
                log.error(
                    "%s: the files have changed and cannot be used, what was read before stays: %s",
                    self._what,
                    error,
                )
        return self._value

    def _look(self) -> _State:
        return tuple(map(_stat, self._paths))


def _stat(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
