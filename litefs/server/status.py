"""``GET /status``: the node, its databases and its replicas in one answer (:mod:`status_format`)."""

from __future__ import annotations

import msgspec
import trio
from quart import Response

from litefs.server.access import current
from litefs.server.app import LiteFSApp
from litefs.server.status_format import ReplicaStatus, Status
from litefs.server.view import NodeView
from litefs.tokens import Access


def limit(status: Status, access: Access) -> Status:
    """What of it is for a token: of databases those that it is good for, and who holds a demotion up, which
    names processes and databases, only if that is all."""
    if not access.limited:
        return status
    return msgspec.structs.replace(
        status,
        databases=[one for one in status.databases if access.allows(one.name)],
        replicas=[_limit_replica(one, access) for one in status.replicas],
        held_up=[],
    )


def _limit_replica(replica: ReplicaStatus, access: Access) -> ReplicaStatus:
    held = {name: txid for name, txid in replica.databases.items() if access.allows(name)}
    return msgspec.structs.replace(replica, databases=held)


async def read(node: NodeView) -> Status:
    """The status of this moment."""
    databases = await trio.to_thread.run_sync(node.databases)
    return node.status(databases)


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoint."""

    @app.get("/status", provide_automatic_options=False)
    async def status() -> Response:
        found = limit(await read(node), current())
        return Response(msgspec.json.encode(found) + b"\n", content_type="application/json")
