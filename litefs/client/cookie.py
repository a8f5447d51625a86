"""The ``__txid`` cookie: up to which transaction a visitor has written, and so has to see. The same as the
proxy's and, for one database, as that of Go LiteFS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

NAME = "__txid"
SECONDS = 300
"""How long the cookie lasts: any replica has the transaction by then."""

_TXID = re.compile(r"[0-9a-fA-F]{16}")


def parse(headers: Iterable[str], databases: Sequence[str]) -> dict[str, int]:
    """The TXIDs to wait for, by database, of a request's ``Cookie`` headers.

    The cookie is a TXID of 16 hex digits, for the first of ``databases``, or ``NAME:TXID`` for each of
    several, joined by ``&``, the names percent-encoded. Anything else is passed over: visitors may send what
    they like.
    """
    for header in headers:
        for pair in header.split(";"):
            name, _, content = pair.strip().partition("=")
            if name == NAME and databases:
                return _parse(content.strip('"'), databases)
    return {}


def _parse(content: str, databases: Sequence[str]) -> dict[str, int]:
    if _TXID.fullmatch(content):
        return {databases[0]: int(content, 16)}
    found = {}
    for item in content.split("&"):
        name, _, txid = item.rpartition(":")
        if unquote(name) in databases and _TXID.fullmatch(txid):
            found[unquote(name)] = int(txid, 16)
    return found


def render(positions: Mapping[str, int], databases: Sequence[str]) -> str | None:
    """The value of ``Set-Cookie`` after a write that left ``databases`` at these TXIDs; None if there are
    none yet."""
    known = [(name, positions[name]) for name in databases if positions.get(name)]
    if not known:
        return None
    if len(databases) == 1:
        content = f"{known[0][1]:016x}"
    else:
        content = "&".join(f"{quote(name, safe='')}:{txid:016x}" for name, txid in known)
    return f"{NAME}={content}; Path=/; Max-Age={SECONDS}; HttpOnly"
