"""``DELETE /db/NAME``: a database is removed from the cluster. Ours; Go LiteFS has ``rm`` on the mount."""

from __future__ import annotations

from quart import Response

from litefs.errors import NotPrimary
from litefs.server.access import require
from litefs.server.app import LiteFSApp
from litefs.server.view import NodeView
from litefs.store.paths import validate_name


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoint; whoever may import a database may drop it."""

    @app.delete("/db/<path:name>", provide_automatic_options=False)
    async def drop(name: str) -> Response:
        require(validate_name(name))
        if not node.is_primary:
            raise NotPrimary(f"{name}: only the primary can drop a database")
        await node.drop_database(name)
        return Response(b"", content_type="text/plain; charset=utf-8")
