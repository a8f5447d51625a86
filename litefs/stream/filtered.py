"""A catalog that shows some of another one's databases."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from litefs.stream.protocols import Catalog, Source


class FilteredCatalog:
    """Of ``catalog`` the databases that ``allows`` by name; the others do not exist, and never did."""

    def __init__(self, catalog: Catalog, allows: Callable[[str], bool]) -> None:
        self._catalog = catalog
        self._allows = allows

    @property
    def revision(self) -> int:
        return self._catalog.revision

    @property
    def generation(self) -> int:
        return self._catalog.generation

    def sources(self) -> Mapping[str, Source]:
        return {name: source for name, source in self._catalog.sources().items() if self._allows(name)}

    def dropped(self, name: str) -> int:
        """As of the whole catalog, 0 for what is not shown: nobody removed that."""
        return self._catalog.dropped(name) if self._allows(name) else 0

    def notify(self) -> None:
        self._catalog.notify()

    async def wait_change(self, seen: int) -> int:
        return await self._catalog.wait_change(seen)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._catalog.listen(callback)
