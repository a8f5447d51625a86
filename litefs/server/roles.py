"""POST /promote, POST /handoff as Go LiteFS has them; GET /promote says what a promotion would cost."""

from __future__ import annotations

import json

from quart import Response, request

from litefs.errors import HandoffFailed
from litefs.server.app import LiteFSApp, text
from litefs.server.view import NodeView
from litefs.stream.handshake import format_node_id, parse_node_id

_EMPTY = "text/plain; charset=utf-8"


def prospect_text(node: NodeView) -> str:
    """The body of GET /promote: whether this node is primary or may be, and what it lacks, in lines: that is
    lost if it is made primary by force."""
    prospect = {"isPrimary": node.is_primary, "candidate": node.candidate, "lacks": list(node.lacks())}
    return json.dumps(prospect, indent=2) + "\n"


def find_replica(node: NodeView, hostname: str) -> int:
    """Node id of the connected candidate of that name. Raises HandoffFailed, with those that there are."""
    candidates = [one for one in node.replicas.connected() if one.candidate]
    found = [one.node_id for one in candidates if one.hostname == hostname]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{one.hostname or '(no name)'} ({format_node_id(one.node_id)})" for one in candidates)
    there = f"connected: {names}" if names else "none is connected"
    if found:
        raise HandoffFailed(f"several candidates are called {hostname!r}, give a node id; {there}")
    raise HandoffFailed(f"no connected candidate is called {hostname!r}; {there}")


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoints."""

    @app.get("/promote", provide_automatic_options=False)
    async def prospect() -> Response:
        return Response(prospect_text(node), content_type="application/json")

    @app.post("/promote", provide_automatic_options=False)
    async def promote() -> Response:
        lost = await node.promote(force=request.args.get("force", "") in ("1", "true"))
        return text(lost) if lost else Response(b"", content_type=_EMPTY)

    @app.post("/handoff", provide_automatic_options=False)
    async def handoff() -> Response:
        target, hostname = request.args.get("nodeID"), request.args.get("hostname")
        node_id = parse_node_id(target, "nodeID") if target else None
        if node_id is None and hostname and node.is_primary:
            node_id = find_replica(node, hostname)
        await node.handoff(node_id)
        return Response(b"", content_type=_EMPTY)
