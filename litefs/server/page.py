"""The status page at ``/``: files that are the same on every node and carry nothing of this one.

``http.open`` may let strangers have them: a browser can show a token only once it has a page that asks for
one. What the page shows comes from ``/status`` and ``/events``, which stay behind the wall.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Content Security Policy, level 3: nothing but our own files, no inline code, no frame around the page."""

_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)


def page_files() -> dict[str, tuple[str, bytes]]:
    """Content type and content of all files of the page, by the path of their URL."""
    found = {
        f"/static/{file.name}": (_TYPES[file.suffix], file.read_bytes())
        for file in Path(__file__).with_name("static").iterdir()
    }
    found["/"] = found.pop("/static/index.html")
    return found


class StatusPage:
    """ASGI middleware that answers GET and HEAD of the page's files, and passes on whatever else is asked."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app
        self._files = page_files()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer a file of the page, or what the application answers."""
        file = None
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            file = self._files.get(scope["path"])
        if file is None:
            await self._app(scope, receive, send)
            return
        kind, content = file
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(content)).encode()),
            *_HEADERS,
        ]
        await send(cast("Any", {"type": "http.response.start", "status": 200, "headers": headers}))
        await send(cast("Any", {"type": "http.response.body", "body": content, "more_body": False}))
