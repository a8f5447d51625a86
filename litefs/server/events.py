"""GET /events: what happens on this node, line by line as it happens (docs/http-api.md)."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import trio
from quart import Response, request
from quart.wrappers.response import ResponseBody

from litefs.config_http import validate_patterns
from litefs.errors import ConfigError, FormatError
from litefs.server.access import current
from litefs.server.app import LiteFSApp
from litefs.server.event_hub import EventHub, Listener
from litefs.server.view import NodeView
from litefs.tokens import matches

HEARTBEAT_SECONDS = 5.0
"""An empty line follows so long after the last one, by which a reader knows that the connection lives;
parsers of JSON pass over it, that of Go too."""

DATABASE = "db"
"""The parameter that names databases, as patterns of the shell; may be repeated."""


class EventBody(ResponseBody):
    """A listener's lines as a response without end."""

    def __init__(self, hub: EventHub, wants: Callable[[str], bool], pages: bool) -> None:
        self._hub = hub
        self._wants = wants
        self._pages = pages
        self._listener: Listener | None = None

    async def __aenter__(self) -> EventBody:
        self._listener = self._hub.listen(self._wants, pages=self._pages)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._hub.leave(self._listener)

    def __aiter__(self) -> EventBody:
        return self

    async def __anext__(self) -> bytes:
        assert self._listener is not None
        with trio.move_on_after(HEARTBEAT_SECONDS):
            taken = await self._listener.take()
            if not taken:
                raise StopAsyncIteration
            return taken
        return b"\n"


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoint."""

    @app.get("/events", provide_automatic_options=False)
    async def events() -> Response:
        access, patterns = current(), request.args.getlist(DATABASE)
        try:
            validate_patterns(tuple(patterns), DATABASE)
        except ConfigError as error:
            raise FormatError(str(error)) from None
        body = EventBody(
            node.events,
            lambda name: access.allows(name) and (not patterns or matches(patterns, name)),
            request.args.get("pages", "") in ("1", "true"),
        )
        return Response(body, content_type="application/x-ndjson")
