"""Many who wait for positions of databases, without each of them looking at each commit."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from litefs.stream.protocols import Catalog


@dataclass(slots=True)
class _Target:
    """A transaction that ``count`` tasks wait for."""

    event: trio.Event = field(default_factory=trio.Event)
    count: int = 0


@dataclass(slots=True)
class _Database:
    """Who waits for transactions of one database; ``least`` is the first of them."""

    targets: dict[int, _Target] = field(default_factory=dict)
    least: int = 0


@dataclass(slots=True)
class _Look:
    """A look at what readers see that is under way."""

    done: trio.Event = field(default_factory=trio.Event)
    result: bool = False


class Waiting:
    """Wakes who waits when the position is reached, at the catalog's notifications; looks once for all who
    ask whether readers see it."""

    def __init__(self, catalog: Catalog, sees: Callable[[str], Awaitable[bool]]) -> None:
        """``sees`` as of ``NodeView.readers_see``."""
        self._catalog = catalog
        self._sees = sees
        self._databases: dict[str, _Database] = {}
        self._looks: dict[str, _Look] = {}
        self._generation = catalog.generation
        catalog.listen(self._notified)

    @property
    def count(self) -> int:
        """How many wait for a position."""
        return sum(target.count for one in self._databases.values() for target in one.targets.values())

    async def advanced(self, name: str, txid: int) -> None:
        """Wait until ``name`` is at ``txid`` or beyond, or may be another database, or gone. The caller has
        just seen that it is not."""
        database = self._databases.setdefault(name, _Database())
        target = database.targets.setdefault(txid, _Target())
        target.count += 1
        database.least = min(database.targets)
        try:
            await target.event.wait()
        finally:
            target.count -= 1
            if not target.count and database.targets.get(txid) is target:
                del database.targets[txid]
                if database.targets:
                    database.least = min(database.targets)
                elif self._databases.get(name) is database:
                    del self._databases[name]

    def _notified(self) -> None:
        if self._generation != self._catalog.generation:
            self._generation = self._catalog.generation
            databases, self._databases = self._databases, {}
            for database in databases.values():
                for target in database.targets.values():
                    target.event.set()
            return
        if not self._databases:
            return
        sources = self._catalog.sources()
        for name, database in self._databases.items():
            with contextlib.suppress(
                TimeoutError
            ):  # the writer died; after recovery comes another notification
                txid = sources[name].position().txid if name in sources else 0
                if txid >= database.least:
                    for wanted, target in database.targets.items():
                        if wanted <= txid:
                            target.event.set()

    async def seen(self, name: str) -> bool:
        """What ``sees`` says, asked from now on. Raises as it does."""
        if (look := self._looks.get(name)) is not None:
            await look.done.wait()  # begun before; the next one is for all who wait here
        if (look := self._looks.get(name)) is not None:
            await look.done.wait()
            return look.result
        look = self._looks[name] = _Look()
        try:
            look.result = await self._sees(name)
        finally:
            del self._looks[name]
            look.done.set()
        return look.result
