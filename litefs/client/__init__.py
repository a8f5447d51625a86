"""For applications: where a database is, waiting for it, who is primary, and what happens. Needs nothing but
Python; :mod:`litefs.client.aio` is the same for trio and asyncio, :mod:`litefs.client.asgi` and
:mod:`litefs.client.wsgi` give read-your-writes to a web application.

Every function takes the path of a database on a LiteFS mount (``primary``, ``is_primary``, ``lag`` and
``events`` that of anything on it). Nothing here opens a database: the close of a second descriptor would drop
the locks that SQLite holds in this process. ``position``, ``primary`` and ``lag`` read the mount's control
files. The others ask the node, over the socket ``litefs.sock`` in its data directory, which the mount table
names as the device. Whoever may not write the databases has no access to that socket, nor has a container
that sees the mount alone; ``wait`` then looks at ``NAME-pos`` again and again, and ``events`` takes a URL.
"""

from __future__ import annotations

from litefs.client.asking import NoAnswer, NodeUnreachable
from litefs.client.feed import Event, Events, events
from litefs.client.halting import HaltLost, halt
from litefs.client.monitor import NotReady, PrimaryMonitor
from litefs.client.place import SOCKET, NotOnMount, Place, StrPath, locate
from litefs.client.reading import (
    LONGEST_WAIT,
    NEVER_SYNCED_MS,
    is_primary,
    lag,
    position,
    primary,
    wait,
)
from litefs.errors import DatabaseNotFound, LiteFSError, PeerError, PositionMismatch, WaitTimeout
from litefs.types import Position

__all__ = [
    "LONGEST_WAIT",
    "NEVER_SYNCED_MS",
    "SOCKET",
    "DatabaseNotFound",
    "Event",
    "Events",
    "HaltLost",
    "LiteFSError",
    "NoAnswer",
    "NodeUnreachable",
    "NotOnMount",
    "NotReady",
    "PeerError",
    "Place",
    "Position",
    "PositionMismatch",
    "PrimaryMonitor",
    "StrPath",
    "WaitTimeout",
    "events",
    "halt",
    "is_primary",
    "lag",
    "locate",
    "position",
    "primary",
    "wait",
]
