"""What the proxy asks of the node that it stands before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from litefs.proxy.forward import Leader
from litefs.stream.protocols import Identity


class ProxiedNode(Protocol):
    """Properties are cheap and read at each request."""

    @property
    def identity(self) -> Identity: ...

    @property
    def is_primary(self) -> bool: ...

    @property
    def primary(self) -> Leader | None:
        """Another node that is primary, as far as this one knows."""

    @property
    def lag_seconds(self) -> float:
        """How far this replica may be behind; 0 on the primary, infinite on one that never heard of any.
        While it is not told, counted from when it last had all that there was."""

    def txid(self, name: str) -> int:
        """The last transaction of a database here; 0 if there is none."""

    def shows(self, name: str, txid: int) -> bool:
        """Whether readers are known to see ``name`` at ``txid`` or beyond; no, may be wrong."""

    async def reached(self, name: str, txid: int, seconds: float) -> None:
        """Return when readers see ``name`` at ``txid`` or beyond. Raises WaitTimeout, DatabaseNotFound,
        OSError."""

    def check_forwarder(self, peer: Identity) -> None:
        """May that node forward requests to this one? Raises NotPrimary, ClusterMismatch."""

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` whenever the role or a position may have changed, until the result is called."""
