"""What a proxy has to do to the fields of messages that it passes on (RFC 9110 §7.6, RFC 9112 §6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from litefs.proxy.rules import split_absolute

if TYPE_CHECKING:
    from h11._headers import Headers

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields of one connection only."""

_NEVER_LISTED = frozenset({b"host", b"content-length", b"cookie", b"authorization"})
"""Taken off because ``Connection`` names them, these would make another request of it."""

_NOT_TUNNELLED = (b"h2c", b"http", b"tls")
"""Protocols that carry requests: to upgrade to them would take requests past the proxy's rules."""

VIA = b"1.1 litefs"


@dataclass(frozen=True, slots=True)
class Client:
    """Who sent a request to the proxy: ``address`` for ``X-Forwarded-For``. None: another node's proxy, which
    has said so already."""

    address: str


def refusal(request: h11.Request) -> tuple[int, str] | None:
    """Why a request is not passed on: status and text; None if it may be.

    h11 has checked syntax. What two parsers could understand in two ways is refused (RFC 9112 §6.1, §11.2).
    """
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names:
        if b"content-length" in names:
            return 400, "both Content-Length and Transfer-Encoding"
        if request.http_version < b"1.1":
            return 400, "Transfer-Encoding in HTTP/1.0"
    if request.method == b"CONNECT":
        return 501, "CONNECT is not supported"
    if request.target.startswith(b"/"):
        return None
    authority, target = split_absolute(request.target)
    if not target.startswith(b"/") and not (target == b"*" and request.method == b"OPTIONS"):
        return 400, "not a request target"
    if b"@" in authority or (target != b"*" and not authority):
        return 400, "not a request target"
    return None


def end_to_end(headers: Headers) -> Fields:
    """The fields of a message that are not only for this connection, spelled and ordered as they came."""
    raw = headers.raw_items()
    if HOP_BY_HOP.isdisjoint([name for name, _ in headers]):
        return raw
    gone = HOP_BY_HOP | (options(headers, b"connection") - _NEVER_LISTED)
    return [(name, value) for name, value in raw if name.lower() not in gone]


def options(headers: Headers, field: bytes) -> set[bytes]:
    """The members of a field that is a list of tokens, in lower case."""
    values = [value for name, value in headers if name == field]
    return {token.strip().lower() for value in values for token in value.split(b",")} - {b""}


def upgrades(headers: Headers) -> bytes | None:
    """The protocols to which a message asks, or agrees, to switch, as far as they may be tunnelled."""
    if b"upgrade" not in options(headers, b"connection"):
        return None
    wanted = [
        protocol.strip()
        for name, value in headers
        if name == b"upgrade"
        for protocol in value.split(b",")
        if not protocol.strip().lower().startswith(_NOT_TUNNELLED)
    ]
    return b", ".join(wanted) or None


def inbound(request: h11.Request, client: Client | None, host: bytes) -> h11.Request:
    """The request as the application gets it; ``host`` is for one of HTTP/1.0 that names none."""
    headers, target = request.headers, request.target
    fields, names = end_to_end(headers), {name for name, _ in headers}
    authority = b""
    if not target.startswith(b"/"):
        authority, target = split_absolute(target)
    if authority:  # it counts, not Host (RFC 9112 §3.2.2)
        fields = [(b"Host", authority), *((n, v) for n, v in fields if n.lower() != b"host")]
    elif b"host" not in names:
        fields.insert(0, (b"Host", host))
    if b"transfer-encoding" in names:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if b"connection" in names:
        if (protocols := upgrades(headers)) is not None:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", protocols)]
        elif b"te" in names and b"trailers" in options(headers, b"te"):
            fields += [(b"Connection", b"TE"), (b"TE", b"trailers")]
    if client is not None:
        fields = _introduced(fields, names, client)
    return h11.Request(method=request.method, target=target, headers=fields)


def _introduced(fields: Fields, names: set[bytes], client: Client) -> Fields:
    """With who the client is, behind what proxies before us said of it."""
    address = client.address.encode()
    if b"x-forwarded-for" in names:
        before = [value for name, value in fields if name.lower() == b"x-forwarded-for"]
        fields = [(name, value) for name, value in fields if name.lower() != b"x-forwarded-for"]
        address = b", ".join([*before, address])
    fields.append((b"X-Forwarded-For", address))
    if b"x-forwarded-proto" not in names:
        fields.append((b"X-Forwarded-Proto", b"http"))
    fields.append((b"Via", VIA))
    return fields


def outbound(response: h11.Response, added: Iterable[tuple[bytes, bytes]]) -> h11.Response:
    """The response as the client gets it, with fields ``added``. How its body is framed is for h11 to say,
    by what the client understands: a length beside chunks counted for nothing (RFC 9112 §6.3)."""
    fields = end_to_end(response.headers)
    if any(name == b"transfer-encoding" for name, _ in response.headers):
        fields = [(name, value) for name, value in fields if name.lower() != b"content-length"]
    fields += added
    return h11.Response(status_code=response.status_code, headers=fields, reason=response.reason)
