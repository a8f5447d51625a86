"""The Quart application: what all endpoints share."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from quart import Request, Response, request
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestTimeout

from litefs.errors import LiteFSError
from litefs.server.view import NodeView
from litefs.stream.handshake import HEADER_CLUSTER_ID, HEADER_ID, format_node_id
from litefs.stream.protocols import Identity
from litefs.tokens import Tokens

logger = logging.getLogger(__name__)

BODY_BUFFER = 1 << 20
"""Bytes of a request body that wait for the handler; beyond it the connection is not read."""
BODY_IDLE_SECONDS = 300.0
"""How long the next piece of a request body may take; then the request is over (408)."""


class BoundedBody(TrioBody):
    """A request body that tells when the handler has taken what came so far."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._taken = trio.lowlevel.ParkingLot()
        self._unwanted = False

    async def __anext__(self) -> bytes:
        try:
            with trio.fail_after(BODY_IDLE_SECONDS):
                return await super().__anext__()
        except trio.TooSlowError:
            raise RequestTimeout from None
        finally:
            self._taken.unpark_all()

    async def room(self) -> None:
        """Wait until less than BODY_BUFFER bytes lie here, or no more are wanted."""
        while len(self._data) >= BODY_BUFFER and not self._unwanted:
            await self._taken.park()

    def give_up(self) -> None:
        """The handler has answered: what comes now is for nobody."""
        self._unwanted = True
        self._taken.unpark_all()


class BoundedRequest(TrioRequest):
    """A request with a bounded body."""

    body_class = BoundedBody


class BoundedConnection(TrioASGIHTTPConnection):
    """Quart reads request bodies as fast as they come; an import of 10 GB would be held in memory. And it
    takes the end of its own answer for the client's leaving: cancelled there, Hypercorn would never close a
    connection whose request had more to come.
    """

    _is_answered = False
    _body: BoundedBody | None = None

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """As of Quart."""

        async def noted(message: ASGISendEvent) -> None:
            self._is_answered = message["type"] == "http.response.body" and not message.get("more_body")
            if self._is_answered and self._body is not None:
                # Hypercorn tells this application of the end behind what it has of the body, and closes the
                # connection only then.
                self._body.give_up()
            await send(message)

        await super().__call__(receive, noted)

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Pass the body on at the handler's pace, and cancel the handler when the client goes away before it
        has answered."""
        body = request.body
        assert isinstance(body, BoundedBody)
        self._body = body
        while True:
            message = await receive()
            if message["type"] == "http.request":
                if not self._is_answered:
                    body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body.set_complete()
                await body.room()
            elif message["type"] == "http.disconnect":
                break
        if not self._is_answered:
            nursery.cancel_scope.cancel()


class LiteFSApp(QuartTrio):
    """Quart without limits that would cut a stream, and with bodies of bounded memory."""

    request_class = BoundedRequest
    asgi_http_class = BoundedConnection


def text(message: str, status: int = 200) -> Response:
    """A plain-text answer of one line."""
    response = Response(message + "\n", status, content_type="text/plain; charset=utf-8")
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def create_app(
    node: NodeView,
    tokens: Tokens | None = None,
    *,
    opened: Iterable[str] = (),
    routes: Mapping[str, ASGIFramework] | None = None,
) -> LiteFSApp:
    """The node's HTTP API, for those with a token if one is required; ``opened``: what needs none, as
    ``http.open`` names it. ``routes`` are paths that other applications answer."""
    from litefs.server import (
        admin,
        backup,
        debug,
        drop,
        events,
        halt,
        health,
        metrics,
        openapi,
        positions,
        replication,
        roles,
        status,
    )
    from litefs.server.access import TokenWall
    from litefs.server.page import StatusPage

    app = bare_app(lambda: node.identity)
    admin.register(app, node)
    backup.register(app, node)
    debug.register(app, node)
    drop.register(app, node)
    events.register(app, node)
    halt.register(app, node)
    health.register(app, node)
    metrics.register(app, node)
    openapi.register(app)
    positions.register(app, node)
    replication.register(app, node)
    roles.register(app, node)
    status.register(app, node)
    inner = Routes(app.asgi_app, routes) if routes else app.asgi_app
    page = StatusPage(cast("ASGIFramework", inner))
    app.asgi_app = TokenWall(page, tokens or Tokens(), opened)  # type: ignore[method-assign]
    return app


class Routes:
    """ASGI: some paths are answered by applications of their own, all others by ``app``."""

    def __init__(self, app: ASGIFramework, routes: Mapping[str, ASGIFramework]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """As the application of that path."""
        app = self._routes.get(scope["path"], self._app) if scope["type"] == "http" else self._app
        await app(scope, receive, send)


def bare_app(identity: Callable[[], Identity]) -> LiteFSApp:
    """An application without endpoints: its answers name this node, its errors are ours."""
    app = LiteFSApp("litefs", static_folder=None, template_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=None, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)

    @app.after_request
    async def introduce(response: Response) -> Response:
        if request.method == "HEAD" and not isinstance(response.response, DataBody):
            response.response = DataBody(b"")  # some streams have no end
        own = identity()
        response.headers.setdefault(HEADER_ID, format_node_id(own.node_id))
        if own.cluster_id:
            response.headers.setdefault(HEADER_CLUSTER_ID, own.cluster_id)
        return response

    _handle_errors(app)
    return app


def _handle_errors(app: LiteFSApp) -> None:
    def answer(error: Exception, message: str, status: int) -> Response:
        log = logger.error if status >= 500 and status != 503 else logger.info
        log("http: %s %s: error: %s", request.method, request.path, message)
        if status == 500 and not isinstance(error, LiteFSError):
            logger.error("unexpected error in a request", exc_info=error)
        return text(message, status)

    async def expected(error: LiteFSError) -> Response:
        return answer(error, str(error), error.http_status)

    async def http(error: HTTPException) -> Response:
        if isinstance(error, NotFound):
            return answer(error, "404 page not found", 404)
        if isinstance(error, MethodNotAllowed):
            return answer(error, "method not allowed", 405)
        return answer(error, error.description or error.name, error.code or 500)

    async def disk(error: OSError) -> Response:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return answer(LiteFSError(), error.strerror or str(error), 507 if full else 500)

    async def unexpected(error: Exception) -> Response:
        return answer(error, f"internal error: {error}", 500)

    handlers: tuple[tuple[type[Exception], Callable[[Any], Awaitable[Response]]], ...] = (
        (LiteFSError, expected),
        (HTTPException, http),
        (OSError, disk),
        (Exception, unexpected),
    )
    for kind, handler in handlers:
        app.register_error_handler(kind, handler)
