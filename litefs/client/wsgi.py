"""Read-your-writes for a WSGI application that stands behind no LiteFS proxy."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from litefs.client import cookie, reading
from litefs.client.place import StrPath
from litefs.client.visitors import LATE, READS, WAIT_SECONDS, Databases, looks, positions
from litefs.errors import LiteFSError, WaitTimeout

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class ReadYourWrites:
    """WSGI middleware, as that of :mod:`litefs.client.asgi`: ``app = ReadYourWrites(app, "/litefs/app.db")``.

    The positions in the cookie are those at the time when the application calls ``start_response``, which has
    to be after its last commit.
    """

    def __init__(self, app: WSGIApplication, *databases: StrPath, seconds: float = WAIT_SECONDS) -> None:
        self._app = app
        self._databases = Databases(databases)
        self._seconds = seconds

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """As of WSGI (PEP 3333)."""
        names = self._databases.names()
        if environ["REQUEST_METHOD"] in READS:
            until = time.monotonic() + self._seconds
            for name, txid in cookie.parse([environ.get("HTTP_COOKIE", "")], list(names)).items():
                if not self._reached(names[name], txid, until):
                    body = LATE.encode()
                    headers = [
                        ("Content-Type", "text/plain; charset=utf-8"),
                        ("Content-Length", str(len(body))),
                    ]
                    start_response("504 Gateway Timeout", headers)
                    return [body]
            return self._app(environ, start_response)

        def marked(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            value = cookie.render(positions(names), list(names))
            if value is not None:
                headers = [*headers, ("Set-Cookie", value)]
            return start_response(status, headers, *error)

        return self._app(environ, marked)

    def _reached(self, path: StrPath, txid: int, until: float) -> bool:
        """Wait; False if it takes too long."""
        try:
            for seconds in looks(until):
                try:
                    reading.wait(path, txid, seconds)
                    return True
                except WaitTimeout:
                    if reading.is_primary(path):
                        return True
        except (LiteFSError, OSError):
            return True
        return False
