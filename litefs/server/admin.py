"""Endpoints for scripts, in the shapes of Go LiteFS: /info, /import, /export, /promote, /handoff."""

from __future__ import annotations

import json
from types import TracebackType

import trio
from quart import Response, request
from quart.wrappers.response import ResponseBody

from litefs.errors import FormatError
from litefs.server import access
from litefs.server.app import LiteFSApp, text
from litefs.server.view import Export, NodeView
from litefs.store.paths import validate_name
from litefs.stream.handshake import HEADER_ID, format_node_id

EXPORT_CHUNK = 256 << 10


class ExportBody(ResponseBody):
    """Streams an exported copy and discards it, also when the client goes away."""

    def __init__(self, export: Export) -> None:
        self._file = export.file

    async def __aenter__(self) -> ExportBody:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __aiter__(self) -> ExportBody:
        return self

    async def __anext__(self) -> bytes:
        data = await trio.to_thread.run_sync(self._file.read, EXPORT_CHUNK)
        if not data:
            raise StopAsyncIteration
        return data


def info_text(node: NodeView) -> str:
    """The body of /info: JSON with two spaces, ``clusterID`` and ``primary`` only while known. A primary with
    replicas lists their node ids in ``replicas``, and in ``inSync`` of those that have all that was answered.
    ``heldUp`` names, to whom may see every database, who keeps a demotion from being complete.
    """
    info: dict[str, object] = {}
    if node.identity.cluster_id:
        info["clusterID"] = node.identity.cluster_id
    info |= {"isPrimary": node.is_primary, "candidate": node.candidate, "path": node.mountpoint}
    if node.primary_hostname is not None:
        info["primary"] = {"hostname": node.primary_hostname}
    if node.is_primary and (replicas := node.replicas.connected()):
        info["replicas"] = [format_node_id(one.node_id) for one in replicas]
        info["inSync"] = [format_node_id(one.node_id) for one in replicas if one.in_sync]
    if node.held_up and not access.current().limited:
        info["heldUp"] = list(node.held_up)
    return json.dumps(info, indent=2) + "\n"


def _name() -> str:
    name = request.args.get("name", "")
    if not name:
        raise FormatError("name required")
    access.require(validate_name(name))
    return name


def _flag(parameter: str, default: bool) -> bool:
    """Raises FormatError."""
    value = request.args.get(parameter)
    found = default if value is None else {"1": True, "true": True, "0": False, "false": False}.get(value)
    if found is None:
        raise FormatError(f"{parameter}: neither 1 nor 0: {value!r}")
    return found


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoints."""

    @app.get("/info", provide_automatic_options=False)
    async def info() -> Response:
        return Response(info_text(node), content_type="application/json")

    @app.route("/import", methods=["POST", "PUT"], provide_automatic_options=False)
    async def import_() -> Response:
        peer = HEADER_ID in request.headers
        position = await node.import_database(_name(), request.body, check=_flag("check", True), peer=peer)
        return text(str(position)) if peer else Response(b"", content_type="text/plain; charset=utf-8")

    @app.get("/export", provide_automatic_options=False)
    async def export() -> Response:
        copy = await node.export_database(_name(), check=_flag("check", False))
        response = Response(ExportBody(copy), content_type="application/octet-stream")
        response.content_length = copy.size
        return response
