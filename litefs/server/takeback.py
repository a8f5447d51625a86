"""What a primary answers while it takes back what it lost: POST /stream names the databases that a replica
has more of, POST /tail takes that. Anything else is refused, and clients of this host wait."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from typing import Protocol

from quart import Response, request

from litefs.errors import ClusterMismatch, FormatError, NotPrimary
from litefs.server.access import TokenWall, current
from litefs.server.app import LiteFSApp, bare_app, text
from litefs.server.positions import parse_target
from litefs.server.replication import check_replica, read_positions
from litefs.store.paths import validate_name
from litefs.stream.handshake import HEADER_TAILS, encode_positions, parse_headers
from litefs.stream.protocols import Identity
from litefs.tokens import Tokens
from litefs.types import Position

MAX_TAIL = 1 << 34
"""Bytes of a tail that are taken."""

STARTING = "this node is about to start: it takes back what it lost to a power failure"


class Tails(Protocol):
    """What takes the tails."""

    @property
    def identity(self) -> Identity:
        """Of this node."""

    def wanted(self, held: Mapping[str, Position]) -> Mapping[str, Position]:
        """Of the databases that a replica holds: where this node is in those that the replica may have more
        of."""

    async def take(self, name: str, after: Position, chunks: AsyncIterable[bytes]) -> Position:
        """Receive a tail (litefs.store.tails) of ``name``; the position to which it leads.

        Raises FormatError, PositionMismatch, NotPrimary if it comes too late, OSError."""


def create_app(tails: Tails, tokens: Tokens) -> LiteFSApp:
    """The HTTP API until this node's mount serves."""
    app = bare_app(lambda: tails.identity)

    @app.before_request
    async def only_tails() -> Response | None:
        known = request.method == "POST" and request.path in ("/stream", "/tail")
        return None if known else text(STARTING, NotPrimary.http_status)

    def replica() -> Identity:
        found = parse_headers(request.headers.get)
        check_replica(tails.identity, True, found)
        return found

    @app.post("/stream", provide_automatic_options=False)
    async def stream() -> Response:
        same_cluster = replica().cluster_id == tails.identity.cluster_id
        wanted = tails.wanted(await read_positions())
        if not wanted or not same_cluster or current().limited:
            return text(STARTING, NotPrimary.http_status)
        body = encode_positions(wanted)
        return Response(body, NotPrimary.http_status, {HEADER_TAILS: str(len(wanted))})

    @app.post("/tail", provide_automatic_options=False)
    async def tail() -> Response:
        if replica().cluster_id != tails.identity.cluster_id:
            raise ClusterMismatch("only a replica of this cluster may give transactions back")
        name = validate_name(request.args.get("name", ""))
        txid, checksum = parse_target(request.args.get("after", ""))
        if checksum is None:
            raise FormatError("after: not a position")
        size = request.content_length
        if size is None or size > MAX_TAIL:
            raise FormatError(f"Content-Length: needed, up to {MAX_TAIL}")
        return text(str(await tails.take(name, Position(txid, checksum), request.body)))

    app.asgi_app = TokenWall(app.asgi_app, tokens)  # type: ignore[method-assign]
    return app
