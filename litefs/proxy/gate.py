"""Before the application of a primary: writes go through it, and wait while the role is being passed on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Gate:
    """Counts the writes that the application is at. Used in one trio run."""

    def __init__(self) -> None:
        self._is_held = False
        self._inside: set[Pass] = set()
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def is_open(self) -> bool:
        """Whether a write may begin, as far as this gate is concerned."""
        return not self._is_held

    @contextmanager
    def entered(self, scope: trio.CancelScope) -> Iterator[Pass]:
        """While a write is at the application, within ``scope``."""
        one = Pass(self, scope)
        self._inside.add(one)
        try:
            yield one
        finally:
            self._inside.discard(one)
            self.wake()

    async def hold(self, seconds: float) -> None:
        """Let no write begin before :meth:`release`; returns when those that have begun are over, or after
        ``seconds``."""
        self._is_held = True
        with trio.move_on_after(seconds):
            await self.empty()

    async def empty(self) -> None:
        """Return when no write is at the application."""
        while any(one.counts for one in self._inside):
            await self._changed.park()

    def release(self) -> None:
        """Let writes begin again; harmless if they do."""
        self._is_held = False
        self.wake()

    def end_tunnels(self) -> None:
        """Cut connections that write beside HTTP: this node is no primary any more, and their clients find
        the one that is by connecting again."""
        for one in self._inside:
            if not one.counts:
                one.scope.cancel()

    def wake(self) -> None:
        """Something changed that writes wait for."""
        self._changed.unpark_all()

    async def changed(self) -> None:
        """Return at the next change."""
        await self._changed.park()


class Pass:
    """One write inside a gate. ``counts``: it will be over some day, which a tunnel may not."""

    __slots__ = ("_gate", "counts", "scope")

    def __init__(self, gate: Gate, scope: trio.CancelScope) -> None:
        self._gate = gate
        self.counts = True
        self.scope = scope

    def is_tunnel(self) -> None:
        """From now on it is not waited for, but cut when the role goes."""
        self.counts = False
        self._gate.wake()
