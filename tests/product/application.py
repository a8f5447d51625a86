"""What a node of the tests serves: a Django project as ``startproject`` makes it, and beside it what Django's
admin has not: an echo over WebSockets, and ``POST /digest``, which tells who took how many bytes."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from django.core.asgi import get_asgi_application

_django = get_asgi_application()


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """ASGI, without lifespan."""
    if scope["type"] == "websocket":
        await _echo(receive, send)
    elif scope["path"] == "/digest":
        await _digest(receive, send)
    else:
        await _django(scope, receive, send)


async def _echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


async def _digest(receive: Any, send: Any) -> None:
    size, digest, more = 0, hashlib.sha256(), True
    while more:
        message = await receive()
        body, more = message.get("body", b""), message.get("more_body", False)
        size += len(body)
        digest.update(body)
    answer = {"node": os.environ["PRODUCT_NODE"], "size": size, "digest": digest.hexdigest()}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
