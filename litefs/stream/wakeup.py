"""A wake-up without payload: waiters compare revisions, so one between look and wait is never lost."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Wakeup:
    """Coalescing wake-ups inside one trio run; every method but ``wait_change`` is a plain call."""

    __slots__ = ("_listeners", "_lot", "revision")

    def __init__(self) -> None:
        self.revision = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._listeners: list[Callable[[], None]] = []

    def notify(self) -> None:
        """Wake every waiter and call every listener."""
        self.revision += 1
        self._lot.unpark_all()
        for listener in tuple(self._listeners):
            listener()

    async def wait_change(self, seen: int) -> int:
        """Wait until the revision differs from ``seen`` and return it. A checkpoint only if it must wait."""
        while self.revision == seen:
            await self._lot.park()
        return self.revision

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback``, which must not raise, at each notification until the result is called."""
        self._listeners.append(callback)

        def unlisten() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return unlisten
