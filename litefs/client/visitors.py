"""What the ASGI and the WSGI middleware have in common: read-your-writes by a cookie."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from litefs.client import reading
from litefs.client.place import StrPath, locate
from litefs.errors import LiteFSError

READS = frozenset(("GET", "HEAD"))
"""Methods that are taken not to write."""

WAIT_SECONDS = 5.0
LOOK_SECONDS = 1.0
"""How long a node is asked to wait before it is asked again whether it has become the primary."""

LATE = "this node does not have what you wrote yet; try again\n"


class Databases:
    """The databases whose positions visitors carry, by the names that they have on their mount."""

    def __init__(self, paths: Sequence[StrPath]) -> None:
        if not paths:
            raise ValueError("which databases?")
        self._paths = tuple(dict.fromkeys(paths))
        self._names: dict[StrPath, str] = {}

    @property
    def all_known(self) -> bool:
        """Whether ``names`` looks at nothing any more."""
        return len(self._names) == len(self._paths)

    def names(self) -> dict[str, StrPath]:
        """Their paths by name; without those whose mount is not there now."""
        for path in self._paths:
            if path not in self._names:
                try:
                    self._names[path] = locate(path).name
                except (LiteFSError, OSError):
                    continue
        return {self._names[path]: path for path in self._paths if path in self._names}


def positions(names: Mapping[str, StrPath]) -> dict[str, int]:
    """The last TXIDs of databases on this node; without those that it does not have."""
    found = {}
    for name, path in names.items():
        try:
            found[name] = reading.position(path).txid
        except (LiteFSError, OSError, ValueError):
            continue
    return found


def looks(until: float) -> Iterator[float]:
    """How long the node is asked to wait each time: at first not at all, then ``until`` then
    (time.monotonic)."""
    yield 0.0
    while (left := until - time.monotonic()) > 0:
        yield min(left, LOOK_SECONDS)
