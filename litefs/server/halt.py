"""The HALT lock over HTTP, in the shapes of Go LiteFS: POST and DELETE /halt, POST /tx.

A request of another node bears that node's headers; one without them is from a client of this node.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import trio
from quart import Response, request

from litefs.errors import FormatError, NotPrimary
from litefs.server.access import require
from litefs.server.app import LiteFSApp
from litefs.server.view import NodeView
from litefs.store.paths import validate_name
from litefs.stream.handshake import HEADER_ID, parse_headers
from litefs.stream.protocols import Entry, Identity

MAX_TRANSACTION = 1 << 34
"""Bytes of a record that may be shipped."""
PIECE = 256 << 10
"""Bytes of a record that are read at a time."""


def _name() -> str:
    name = request.args.get("name", "")
    if not name:
        raise FormatError("name required")
    require(validate_name(name))
    return name


def _number(parameter: str) -> int:
    """A lock's id: a signed 64-bit number other than 0. Raises FormatError."""
    value = request.args.get(parameter, "")
    if not re.fullmatch(r"-?[0-9]{1,19}", value) or not int(value) or not -(1 << 63) <= int(value) < 1 << 63:
        raise FormatError(f'invalid id: "{value[:40]}"')
    return int(value)


def _peer() -> Identity | None:
    return parse_headers(request.headers.get) if HEADER_ID in request.headers else None


async def _pieces(record: Entry) -> AsyncIterator[bytes]:
    """The LTX file of a record."""
    if record.body:
        yield record.body
        return
    file = await trio.to_thread.run_sync(record.open)
    try:
        while data := await trio.to_thread.run_sync(file.read, PIECE):
            yield data
    finally:
        file.close()


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoints."""

    def check_primary(peer: Identity | None) -> None:
        if peer is not None and not node.is_primary:
            raise NotPrimary("lease expired: this node is not the primary")

    @app.post("/halt", provide_automatic_options=False)
    async def halt() -> Response:
        name, lock_id, peer = _name(), _number("id"), _peer()
        check_primary(peer)
        grant = await node.halt(name, lock_id, peer, "renew" in request.args)
        return Response(grant.render(lock_id), content_type="application/json")

    @app.delete("/halt", provide_automatic_options=False)
    async def unhalt() -> Response:
        await node.unhalt(_name(), _number("id"), _peer())
        return Response(b"", content_type="text/plain; charset=utf-8")

    @app.post("/tx", provide_automatic_options=False)
    async def tx() -> Response:
        name, lock_id, peer = _name(), _number("lockID"), _peer()
        if peer is None:
            raise FormatError(f"{HEADER_ID}: only a replica may forward transactions")
        check_primary(peer)
        size = request.content_length
        if size is None or size > MAX_TRANSACTION:
            raise FormatError(f"Content-Length: needed, up to {MAX_TRANSACTION}")
        record = await node.forward(name, lock_id, peer, request.body, size)
        return Response(_pieces(record), content_type="application/octet-stream")
