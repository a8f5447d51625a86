"""What waits between the network and one database of a replica: frames, bounded by bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import trio

from litefs.stream.frames import (
    Drop,
    RecordPiece,
    Records,
    SnapshotAbort,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotPages,
)
from litefs.stream.protocols import Buffer

QUEUE_BYTES = 4 << 20
"""A database's queue is full beyond this; reading from the network then waits."""
BATCH_BYTES = 8 << 20
"""At most about this much is handed to one ``Sink.records`` call."""
FRAME_COST = 256
"""What a small frame counts for, so that empty ones cannot pile up without limit."""


class Barrier:
    """Calls ``action`` once every queue that had work when it was made has done that work."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self.waiting = 1

    def arrive(self) -> None:
        self.waiting -= 1
        if self.waiting == 0:
            self._action()


DatabaseFrame: TypeAlias = (
    Records | RecordPiece | SnapshotBegin | SnapshotPages | SnapshotEnd | SnapshotAbort | Drop | Barrier
)


class Queue:
    """Frames of one database, bounded by bytes. One task puts, one takes."""

    def __init__(self) -> None:
        self._items: deque[tuple[DatabaseFrame, int]] = deque()
        self._bytes = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._busy = False
        self._discarding = False

    @property
    def idle(self) -> bool:
        return not self._items and not self._busy

    async def put(self, item: DatabaseFrame, size: int) -> None:
        while self._bytes >= QUEUE_BYTES:
            await self._lot.park()
        self.put_nowait(item, size)

    def put_nowait(self, item: DatabaseFrame, size: int = FRAME_COST) -> None:
        if self._discarding:
            _forget(item)
            return
        self._items.append((item, size))
        self._bytes += size
        self._lot.unpark_all()

    async def take(self) -> DatabaseFrame:
        """The next item; the queue counts as busy until the next call."""
        self._busy = False
        while not self._items:
            await self._lot.park()
        self._busy = True
        return self._pop()

    def discard(self) -> None:
        """Nobody takes from here any more: forget what waits and what will come, holding nobody up."""
        self._discarding, self._busy = True, False
        while self._items:
            _forget(self._pop())

    def take_more_records(self, bodies: list[Buffer]) -> None:
        """Append the records that already wait to ``bodies``, within one batch."""
        size = sum(map(len, bodies))
        while self._items and isinstance(self._items[0][0], Records) and size < BATCH_BYTES:
            frame = self._pop()
            assert isinstance(frame, Records)
            bodies += frame.bodies
            size += sum(map(len, frame.bodies))

    def _pop(self) -> DatabaseFrame:
        item, size = self._items.popleft()
        self._bytes -= size
        self._lot.unpark_all()
        return item


def _forget(item: DatabaseFrame) -> None:
    if isinstance(item, Barrier):
        item.arrive()
