"""POST /stream: a replica gives its positions and receives what it lacks, until either side leaves. POST
/stream/ack: it tells what it holds meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from quart import Response, request
from quart.wrappers.response import ResponseBody

from litefs.config_http import validate_patterns
from litefs.errors import (
    AccessDenied,
    ClusterMismatch,
    ConfigError,
    FormatError,
    NotPrimary,
    ProtocolMismatch,
)
from litefs.server.access import current
from litefs.server.app import LiteFSApp, text
from litefs.server.view import NodeView
from litefs.stream.acks import HEADER_STREAM_ID, decode_ack, encode
from litefs.stream.filtered import FilteredCatalog
from litefs.stream.handshake import (
    FILTER,
    HEADER_LIMITED,
    MAX_POSITION_MAP,
    decode_positions,
    format_node_id,
    parse_headers,
    parse_node_id,
    request_headers,
)
from litefs.stream.protocols import Catalog, Identity
from litefs.stream.sender import Sender
from litefs.tokens import Access, matches
from litefs.types import Point

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Subscribers:
    """Replicas connected now, and bytes sent to all that ever were."""

    count: int = 0
    bytes_sent: int = 0


class StreamBody(ResponseBody):
    """A response that pulls one replica's chunks from its sender."""

    def __init__(
        self,
        sender: Sender,
        replica: str,
        subscribers: Subscribers,
        joined: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        self._sender = sender
        self._replica = replica
        self._subscribers = subscribers
        self._joined = joined
        self._left = left

    async def __aenter__(self) -> StreamBody:
        await self._sender.__aenter__()
        self._subscribers.count += 1
        self._joined()
        logger.info("replica %s connected", self._replica)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._subscribers.count -= 1
        self._left()
        logger.info("replica %s disconnected", self._replica)
        await self._sender.__aexit__(kind, error, trace)

    def __aiter__(self) -> StreamBody:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._sender.__anext__()
        self._subscribers.bytes_sent += len(chunk)
        return chunk


def check_replica(own: Identity, is_primary: bool, replica: Identity) -> None:
    """May this replica be served? Raises FormatError, ClusterMismatch or NotPrimary as the answer."""
    if replica.node_id == own.node_id:
        raise FormatError("cannot connect to self")
    if replica.cluster_id and own.cluster_id and replica.cluster_id != own.cluster_id:
        raise ClusterMismatch(
            f"the replica belongs to cluster {replica.cluster_id}, this node to {own.cluster_id}"
        )
    if not is_primary:
        raise NotPrimary("lease expired: this node is not the primary")
    if replica.term > own.term:
        raise NotPrimary(f"this node leads term {own.term}, the replica has seen term {replica.term}")


def visible(catalog: Catalog, access: Access, patterns: Sequence[str]) -> Catalog:
    """What a replica is sent of ``catalog``: what its token allows, and of that what it asks for (no
    patterns: all). Raises FormatError."""
    try:
        validate_patterns(tuple(patterns), FILTER)
    except ConfigError as error:
        raise FormatError(str(error)) from None
    if not patterns and not access.limited:
        return catalog
    return FilteredCatalog(
        catalog, lambda name: access.allows(name) and (not patterns or matches(patterns, name))
    )


async def _read_body() -> bytes:
    body = bytearray()
    async for chunk in request.body:
        body += chunk
        if len(body) > MAX_POSITION_MAP:
            raise FormatError(f"positions of more than {MAX_POSITION_MAP} bytes")
    return bytes(body)


async def read_positions() -> dict[str, Point]:
    """The position map that a replica opens a stream with. Raises FormatError."""
    return decode_positions(await _read_body())


def _stream_id() -> int:
    """Of the stream that a request opens, or speaks of; 0 if it gave none. Raises FormatError."""
    return parse_node_id(request.headers.get(HEADER_STREAM_ID, "0"), HEADER_STREAM_ID)


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoints."""
    subscribers = app.extensions["subscribers"] = Subscribers()

    @app.post("/stream", provide_automatic_options=False)
    async def stream() -> Response:
        if request.http_version != "2":
            return text("the replication stream needs HTTP/2", 426)
        try:
            replica = parse_headers(request.headers.get)
        except ProtocolMismatch as error:
            return text(str(error), 400)
        if replica.cluster_id and replica.cluster_id == node.identity.cluster_id:
            node.saw_term(replica.term)
        check_replica(node.identity, node.is_primary, replica)
        positions, stream_id = await read_positions(), _stream_id()
        await node.before_stream()
        own, access = node.identity, current()
        catalog = visible(node.catalog, access, request.args.getlist(FILTER))
        sender = Sender(
            catalog,
            own,
            positions,
            active=lambda: node.is_primary and node.identity.term == own.term,
            snapshot_seconds=node.snapshot_seconds,
        )
        body = StreamBody(
            sender,
            f"{format_node_id(replica.node_id)} ({request.remote_addr})",
            subscribers,
            joined=lambda: node.replicas.joined(
                replica, stream_id, positions, sender.sources, whole=catalog is node.catalog
            ),
            left=lambda: node.replicas.left(replica, stream_id),
        )
        headers = request_headers(own)
        if access.limited:
            headers[HEADER_LIMITED] = access.name
        return Response(body, headers=headers, content_type="application/octet-stream")

    @app.post("/stream/ack", provide_automatic_options=False)
    async def acknowledge() -> Response:
        replica = parse_headers(request.headers.get)
        check_replica(node.identity, node.is_primary, replica)
        ack = decode_ack(await _read_body())
        if ack.candidate and current().limited:
            raise AccessDenied("a candidate needs a token for all databases")
        answer = node.replicas.acknowledged(replica, _stream_id(), ack)
        return Response(encode(answer), content_type="application/msgpack")
