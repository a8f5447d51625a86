"""GET /healthz and /readyz, for those who supervise nodes and send them requests.

Both are answered without a token, unless ``http.open-health`` is false: with the status and one word. Why it
is so is told to those whose token is for everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import trio
from quart import Response, request

from litefs.errors import FormatError, NotPrimary
from litefs.server import access
from litefs.server.app import LiteFSApp, text
from litefs.server.view import NodeView

_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?")
_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_lag(value: str) -> float:
    """Seconds of a number, which may have a unit as durations in litefs.yml. Raises FormatError."""
    match = _SECONDS.fullmatch(value)
    if match is None:
        raise FormatError(f"max-lag: not a number of seconds, nor one with ms, s, m or h: {value[:40]!r}")
    return float(match[1]) * _UNITS[match[2]]


async def unready(node: NodeView, max_lag: float | None) -> list[str]:
    """Why a node should get no requests; ``max_lag`` in seconds, None: any lag will do."""
    reasons = list(node.unready())
    lag = node.lag_seconds
    if max_lag is not None and (lag is None or lag > max_lag):
        behind = "an unknown time" if lag is None else f"{lag:.3f} s"
        reasons.append(f"it is {behind} behind the primary, more than {max_lag:g} s")
    databases = await trio.to_thread.run_sync(node.databases)
    reasons += [f"{one.name} is damaged, served for reading only" for one in databases if one.damaged]
    return reasons


def answer(good: str, bad: str, reasons: Sequence[str]) -> Response:
    """200 with ``good``, or 503 with ``bad`` and the reasons in lines; as JSON for those who accept it."""
    told = [] if access.current().limited else list(reasons)
    status = NotPrimary.http_status if reasons else 200
    if request.accept_mimetypes.best_match(["text/plain", "application/json"]) == "application/json":
        body = json.dumps({"ok": not reasons, "reasons": told}) + "\n"
        response = Response(body, status, content_type="application/json")
    else:
        response = text("\n".join([bad if reasons else good, *told]), status)
    response.headers["Cache-Control"] = "no-store"
    return response


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoints."""

    @app.get("/healthz", provide_automatic_options=False)
    async def healthz() -> Response:
        complaint = await node.unhealthy()
        return answer("ok", "unhealthy", [complaint] if complaint else [])

    @app.get("/readyz", provide_automatic_options=False)
    async def readyz() -> Response:
        value = request.args.get("max-lag")
        return answer("ready", "not ready", await unready(node, None if value is None else parse_lag(value)))
