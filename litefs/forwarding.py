"""Imports that a replica passes on to its primary."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from urllib.parse import urlencode

import trio

from litefs.cluster.peer import Peer, PeerSettings, Refused
from litefs.errors import LiteFSError, NotPrimary, PeerError
from litefs.replica import Replica
from litefs.stream.protocols import Identity
from litefs.tokens import matches
from litefs.types import Position

IMPORT_SECONDS = 3600.0
"""How long the primary may take for all of it."""


class RefusedThere(LiteFSError):
    """The primary refused; its words and its status."""

    def __init__(self, error: Refused) -> None:
        super().__init__(str(error))
        self.http_status = error.status


class Forwarding:
    """Speaks to the primary that this node is connected to."""

    def __init__(self, replica: Replica, identity: Callable[[], Identity], settings: PeerSettings) -> None:
        self._replica = replica
        self._identity = identity
        self._settings = settings
        self._under_way: set[trio.CancelScope] = set()

    def disconnected(self) -> None:
        """The stream of the primary has ended: who waits for its answer may wait in vain."""
        for scope in self._under_way:
            scope.cancel()

    def receives(self, name: str) -> bool:
        """Whether this replica asks its primary for that database."""
        patterns = self._settings.databases
        return not patterns or matches(patterns, name)

    async def import_database(self, name: str, chunks: AsyncIterable[bytes], *, check: bool) -> Position:
        """Have the primary import ``name``, piece by piece as it comes; the position afterwards.

        Raises NotPrimary if there is no primary, RefusedThere, PeerError: it may have been imported.
        """
        primary = self._replica.primary
        if primary is None:
            raise NotPrimary("no primary is known to this replica: try again when there is one (/status)")
        query = urlencode({"name": name} if check else {"name": name, "check": "0"})
        with trio.CancelScope() as scope:
            self._under_way.add(scope)
            try:
                async with Peer(primary.advertise_url, self._settings) as peer:
                    answer = await peer.ask(
                        "POST", f"/import?{query}", self._identity(), body=chunks, seconds=IMPORT_SECONDS
                    )
                return Position.parse(answer.decode("ascii", errors="replace"))
            except Refused as error:
                raise RefusedThere(error) from error
            except ValueError as error:
                raise PeerError(f"{primary.advertise_url}: not the answer to an import: {error}") from error
            finally:
                self._under_way.discard(scope)
        raise PeerError(
            f"{name}: the connection to the primary was lost: whether it was imported, its position tells"
        )
