"""GET /openapi.json: this HTTP API for tools (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from quart import Response

from litefs.server.app import LiteFSApp
from litefs.server.status_format import Status
from litefs.version import version

_TEXT = "text/plain"
_JSON = "application/json"
_BYTES = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``path`` with ``{name}`` for a database; ``query``: parameters, and what they mean, ``*`` behind those
    that are needed; ``sends``: the media type of the body; ``errors``: statuses beside 400, 401 and 403."""

    method: str
    path: str
    summary: str
    gives: str = _TEXT
    query: Mapping[str, str] = field(default_factory=dict)
    sends: str = ""
    errors: Sequence[int] = ()
    schema: Mapping[str, Any] = field(default_factory=dict)


_NAME = {"name*": "of the database"}
_HALT = {**_NAME, "id*": "of the lock: a signed number of 64 bits, not 0"}
_CHECK = "1 or 0: SQLite's integrity check"

ENDPOINTS = (
    Endpoint("get", "/", "The status page.", "text/html"),
    Endpoint("get", "/openapi.json", "This document.", _JSON),
    Endpoint("get", "/info", "The node in short, as of Go LiteFS.", _JSON),
    Endpoint(
        *("get", "/status", "The node, its primary, databases and replicas.", _JSON),
        schema={"$ref": "#/components/schemas/Status"},
    ),
    Endpoint(
        *("get", "/events", "What happens, a JSON object a line, without end.", "application/x-ndjson"),
        query={"db": "patterns of databases, may be repeated", "pages": "1: the pages of transactions too"},
    ),
    Endpoint("get", "/metrics", "For Prometheus."),
    Endpoint("get", "/healthz", "Whether the node works.", errors=(503,)),
    Endpoint(
        *("get", "/readyz", "Whether the node should get requests."),
        query={"max-lag": "a duration, or seconds"},
        errors=(503,),
    ),
    *(
        Endpoint(
            *(method, "/import", "Replace or create a database, on the primary or through it."),
            query={**_NAME, "check": _CHECK},
            sends=_BYTES,
            errors=(502, 503, 504, 507),
        )
        for method in ("post", "put")
    ),
    Endpoint(
        *("get", "/export", "A copy of a database.", _BYTES),
        query={**_NAME, "check": _CHECK},
        errors=(404, 500),
    ),
    Endpoint("delete", "/db/{name}", "Remove a database, from all nodes.", errors=(404, 503)),
    Endpoint("get", "/db/{name}/pos", "The position of a database.", errors=(404,)),
    Endpoint(
        *("get", "/db/{name}/wait", "Wait until readers here see a transaction; the position then."),
        query={"txid*": "TXID, or a position", "timeout": "seconds"},
        errors=(404, 409, 504),
    ),
    Endpoint("delete", "/db/{name}", "Remove a database, on the primary.", errors=(404, 503)),
    Endpoint("get", "/promote", "What a promotion of this node would cost.", _JSON),
    Endpoint(
        *("post", "/promote", "Make this node the primary."),
        query={"force": "1: whatever is missing here"},
        errors=(409, 500, 502),
    ),
    Endpoint(
        *("post", "/handoff", "Pass the role of the primary on."),
        query={"nodeID": "16 hex digits", "hostname": "of a connected candidate"},
        errors=(500, 503),
    ),
    Endpoint(
        *("post", "/backup/snapshot", "Write whole copies into the archive now; TXIDs by database.", _JSON),
        query={"name": "of the database; without it all"},
        errors=(404, 500, 503),
    ),
    Endpoint(
        *("post", "/halt", "Get the HALT lock of a database.", _JSON),
        query={**_HALT, "renew": "it is held already"},
        errors=(404, 409, 503),
    ),
    Endpoint("delete", "/halt", "Give it up.", query=_HALT),
    Endpoint(
        *("post", "/tx", "Between nodes: a transaction under HALT.", _BYTES),
        query={**_NAME, "lockID*": "of the lock"},
        sends=_BYTES,
        errors=(404, 409, 503),
    ),
    Endpoint(
        *("post", "/stream", "Between nodes: what a replica lacks, without end.", _BYTES),
        query={"filter": "patterns of databases, may be repeated"},
        sends=_BYTES,
        errors=(409, 426, 503),
    ),
    Endpoint(
        *("post", "/stream/ack", "Between nodes: what a replica holds.", "application/msgpack"),
        sends="application/msgpack",
        errors=(409, 503),
    ),
    Endpoint("get", "/debug/vars", "Variables, as of Go LiteFS; SQLite's locks among them.", _JSON),
    Endpoint("get", "/debug/rand", "Random bytes for 60 s, to measure a network.", _BYTES, errors=(503,)),
    Endpoint("get", "/debug/stacks", "Where each task and thread is."),
    Endpoint(
        *("get", "/debug/profile", "What the event loop does for some seconds."),
        query={"seconds": "up to 30"},
        errors=(503,),
    ),
)
"""Of the API; what is not here (pages for people) is no part of it."""

_ERRORS = {
    400: "the request is wrong",
    401: "no token, or a wrong one",
    403: "the token is not for this",
    404: "no such database",
    409: "it does not fit what is here",
    426: "needs HTTP/2",
    500: "it failed",
    502: "the primary failed",
    503: "not now",
    504: "not in time",
    507: "the disk is full",
}


def document() -> dict[str, Any]:
    """The whole document."""
    _, schemas = msgspec.json.schema_components([Status], ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LiteFS",
            "description": "Errors are one line of text. With http.auth-token requests need a token.",
            "version": version() or "0",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    words = endpoint.path.replace("{name}", "").replace(".", "/").split("/")
    schema = endpoint.schema or ({} if endpoint.gives == _JSON else {"type": "string"})
    operation: dict[str, Any] = {
        "operationId": "-".join([endpoint.method, *filter(None, words)]),
        "summary": endpoint.summary,
        "parameters": list(_parameters(endpoint)),
        "responses": {
            "200": {"description": "done", "content": {endpoint.gives: {"schema": schema}}},
            **{str(status): {"description": _ERRORS[status]} for status in (400, 401, 403, *endpoint.errors)},
        },
    }
    if endpoint.sends:
        operation["requestBody"] = {"content": {endpoint.sends: {}}, "required": True}
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    found = []
    if "{name}" in endpoint.path:
        found.append(_parameter("name", "path", "of the database", needed=True))
    for name, meaning in endpoint.query.items():
        found.append(_parameter(name.rstrip("*"), "query", meaning, needed=name.endswith("*")))
    return found


def _parameter(name: str, place: str, meaning: str, *, needed: bool) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": needed,
        "description": meaning,
        "schema": {"type": "string"},
    }


def register(app: LiteFSApp) -> None:
    """Add the endpoint."""
    text = msgspec.json.encode(document())

    @app.get("/openapi.json", provide_automatic_options=False)
    async def openapi() -> Response:
        return Response(text, content_type="application/json")
