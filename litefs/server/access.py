"""Who may ask: a wall before the application, which without the right token answers 401 and nothing else.

It stands before Quart, so that endpoints that do not exist, and errors, tell strangers nothing either.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPScope,
    Scope,
    WebsocketScope,
)
from quart import request

from litefs.errors import AccessDenied
from litefs.tokens import EVERYTHING, Access, Tokens

logger = logging.getLogger(__name__)

_KEY = "litefs.access"
_CHALLENGE = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
"""RFC 9110 §15.5.2 asks for the first."""

FILTERED = (
    "/info",
    "/status",
    "/events",
    "/metrics",
    "/openapi.json",
    "/import",
    "/export",
    "/stream",
    "/db",
    "/halt",
    "/tx",
)
"""Paths whose handlers know of tokens that see only some databases, and what lies below them. Whatever is not
here is refused to such a token: a new endpoint is closed to it until somebody has thought of it."""


OPEN = ("/healthz", "/readyz")
"""Answered to strangers too, if the configuration allows it: supervisors have no tokens. Whose token is not
for everything is told no more than they are."""
STRANGER = Access("none", ())


class TokenWall:
    """ASGI middleware that lets a request through if its token is right, with what it may see."""

    def __init__(self, app: ASGIFramework, tokens: Tokens, open_health: bool = False) -> None:
        self._app = app
        self._tokens = tokens
        self._open_health = open_health

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer 401, 403 or what the application answers."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        asked: HTTPScope | WebsocketScope = scope
        access = self._access(asked)
        if access is None and self._open_health and asked["path"] in OPEN:
            access = STRANGER
        if access is None:
            logger.info("http: %s from %s: no token, or a wrong one", asked["path"], asked["client"])
            await _refuse(asked, send, 401, _CHALLENGE)
        elif access.limited and not _filtered(asked["path"]):
            logger.info(
                "http: %s: not for token %s, which has a list of databases", asked["path"], access.name
            )
            await _refuse(asked, send, AccessDenied.http_status, _CHALLENGE[1:])
        else:
            cast("dict[str, Any]", asked)[_KEY] = access
            await self._app(scope, receive, send)

    def _access(self, scope: HTTPScope | WebsocketScope) -> Access | None:
        if scope["server"] is None:
            return EVERYTHING  # a unix socket: who may connect is for the permissions of its file to say
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        return self._tokens.check(values[0] if len(values) == 1 else None)


def current() -> Access:
    """What the request that is being handled may see."""
    access = cast("dict[str, Any]", request.scope)[_KEY]
    assert isinstance(access, Access)
    return access


def require(database: str) -> None:
    """Raises AccessDenied unless the request that is being handled may see ``database``."""
    access = current()
    if not access.allows(database):
        raise AccessDenied(f"token {access.name} is not for database {database}")


def _filtered(path: str) -> bool:
    return path in (*FILTERED, *OPEN) or any(path.startswith(f"{known}/") for known in FILTERED)


async def _refuse(
    scope: HTTPScope | WebsocketScope, send: ASGISendCallable, status: int, headers: list[tuple[bytes, bytes]]
) -> None:
    """An answer without a body; to a websocket in the place of its handshake."""
    prefix = "http.response" if scope["type"] == "http" else "websocket.http.response"
    messages = (
        {"type": f"{prefix}.start", "status": status, "headers": headers},
        {"type": f"{prefix}.body", "body": b"", "more_body": False},
    )
    for message in messages:
        await send(cast("Any", message))
