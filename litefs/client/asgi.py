"""Read-your-writes for an ASGI application that stands behind no LiteFS proxy."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from litefs.client import aio, cookie
from litefs.client.loops import in_thread
from litefs.client.place import StrPath
from litefs.client.visitors import LATE, READS, WAIT_SECONDS, Databases, looks, positions
from litefs.errors import LiteFSError, WaitTimeout

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]


class ReadYourWrites:
    """ASGI middleware, on trio and on asyncio: ``app = ReadYourWrites(app, "/litefs/app.db")``.

    The answer to a request that may write (all but GET and HEAD) carries a cookie with the positions of the
    databases as they are when its head is sent. A GET or HEAD with that cookie is handed on once readers of
    this node see as much; after ``seconds`` it gets status 504. A primary is never waited for, nor is a node
    that cannot be asked.
    """

    def __init__(self, app: Application, *databases: StrPath, seconds: float = WAIT_SECONDS) -> None:
        self._app = app
        self._databases = Databases(databases)
        self._seconds = seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        databases = self._databases
        names = databases.names() if databases.all_known else await in_thread(databases.names)
        if scope["method"] in READS:
            headers = [
                value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"cookie"
            ]
            until = time.monotonic() + self._seconds
            for name, txid in cookie.parse(headers, list(names)).items():
                if not await self._reached(names[name], txid, until):
                    await _answer_late(send)
                    return
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                value = cookie.render(await in_thread(lambda: positions(names)), list(names))
                if value is not None:
                    header = (b"set-cookie", value.encode("latin-1"))
                    message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, marked)

    async def _reached(self, path: StrPath, txid: int, until: float) -> bool:
        """Wait; False if it takes too long."""
        try:
            for seconds in looks(until):
                try:
                    await aio.wait(path, txid, seconds)
                    return True
                except WaitTimeout:
                    if await aio.is_primary(path):
                        return True
        except (LiteFSError, OSError):
            return True
        return False


async def _answer_late(send: Send) -> None:
    body = LATE.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 504, "headers": headers})
    await send({"type": "http.response.body", "body": body})
