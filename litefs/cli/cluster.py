"""What commands learn of a cluster: the status of the node that they ask, and of its primary."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import msgspec

from litefs.cli.connection import Connection
from litefs.errors import LiteFSError, PeerError
from litefs.server.status_format import Status

STATUS_TIMEOUT = 10.0
"""Seconds without a byte of a status."""


@dataclass(frozen=True, slots=True)
class View:
    """``asked``: the node of ``-url``. ``primary``: the same if that is the primary, else what the primary
    says, which ``url`` leads to; None if there is none or it is out of reach, of which ``problem`` tells."""

    asked: Status
    primary: Status | None
    url: str
    problem: str = ""


def read_status(node: Connection) -> Status:
    """``GET /status`` of a node. Raises PeerError, NotTrusted, AccessDenied."""
    with node.client() as client:
        node.greet(client)
        with node.exchange(client, "GET", "/status", timeout=STATUS_TIMEOUT) as response:
            try:
                return msgspec.json.decode(response.read(), type=Status)
            except msgspec.MsgspecError as error:
                raise PeerError(f"{node.url}: its status is of another version: {error}") from None


def towards(node: Connection, url: str) -> Connection:
    """The connection to another node of the same cluster: the same token and certificates."""
    return dataclasses.replace(node, url=url.rstrip("/"))


def look(node: Connection) -> View:
    """The node and, from wherever, its primary. Raises PeerError as :func:`read_status` for the node only."""
    asked = read_status(node)
    if asked.node.role == "primary":
        return View(asked, asked, node.url)
    if asked.primary is None or not asked.primary.url:
        return View(asked, None, "", "no primary is known there")
    url = asked.primary.url
    try:
        found = read_status(towards(node, url))
    except LiteFSError as error:
        return View(asked, None, url, str(error))
    if found.node.role != "primary":
        return View(asked, None, url, f"{url} is not the primary any more")
    return View(asked, found, url)
