"""Positions for whoever reads on one node what was written on another: /db/NAME/pos and /db/NAME/wait."""

from __future__ import annotations

import re

import trio
from quart import Response, request

from litefs.client import LONGEST_WAIT
from litefs.errors import DatabaseNotFound, FormatError, PositionMismatch, WaitTimeout
from litefs.server.access import require
from litefs.server.app import LiteFSApp, text
from litefs.server.view import NodeView
from litefs.store.paths import validate_name
from litefs.types import Position

DEFAULT_WAIT = 5.0
"""Seconds that a request waits which names no ``timeout``."""

PUBLISH_SECONDS = 0.002
LONGEST_PUBLISH_SECONDS = 0.05
"""Between two looks whether the client that committed has published its commit, which nothing tells of: at
first, and at last."""

_TARGET = re.compile(r"([0-9a-fA-F]{1,16})(?:/([0-9a-fA-F]{16}))?")


def parse_target(value: str) -> tuple[int, int | None]:
    """TXID and, if it is given, checksum of ``txid`` or ``txid/checksum``, in hexadecimal as in ``NAME-pos``.

    Raises FormatError.
    """
    match = _TARGET.fullmatch(value)
    if match is None:
        raise FormatError(f"txid: not a TXID in hexadecimal, nor a position: {value[:40]!r}")
    return int(match[1], 16), int(match[2], 16) if match[2] else None


def parse_timeout(value: str) -> float:
    """Seconds, as a decimal number. Raises FormatError."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", value) or float(value) > LONGEST_WAIT:
        raise FormatError(f"timeout: not a number of seconds up to {LONGEST_WAIT:g}: {value[:40]!r}")
    return float(value)


async def reached(node: NodeView, name: str, txid: int, checksum: int | None, seconds: float) -> Position:
    """Wait until readers of the mount see ``name`` at ``txid`` or beyond; returns the position then.

    Looks once at least, also if ``seconds`` is 0. Raises DatabaseNotFound, WaitTimeout, PositionMismatch if
    the transaction ``txid`` left another ``checksum`` here, as far as the log tells.
    """
    deadline, pause = trio.current_time() + seconds, PUBLISH_SECONDS
    while True:
        position = position_of(node, name)
        reached = position.txid >= txid
        if (
            reached
            and checksum is not None
            and not await _holds(node, name, position, Position(txid, checksum))
        ):
            raise PositionMismatch(f"{name}: at {position}, which is another history")
        if reached and await node.waiting.seen(name):
            return position
        with trio.move_on_at(deadline) as scope:
            if reached:
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PUBLISH_SECONDS)
            else:
                await node.waiting.advanced(name, txid)
        if scope.cancelled_caught:
            raise WaitTimeout(f"{name}: at {position} after {seconds:g} s, not at {txid:016x}")


async def _holds(node: NodeView, name: str, position: Position, target: Position) -> bool:
    return position == target if position.txid == target.txid else await node.holds(name, target)


def position_of(node: NodeView, name: str) -> Position:
    """The last transaction of ``name`` on this node. Raises DatabaseNotFound."""
    source = node.catalog.sources().get(name)
    if source is None:
        raise DatabaseNotFound(f"{name}: database not found")
    return source.position()


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoints."""

    @app.get("/db/<path:name>/pos", provide_automatic_options=False)
    async def pos(name: str) -> Response:
        require(validate_name(name))
        return text(str(position_of(node, name)))

    @app.get("/db/<path:name>/wait", provide_automatic_options=False)
    async def wait(name: str) -> Response:
        require(validate_name(name))
        txid, checksum = parse_target(request.args.get("txid", ""))
        seconds = parse_timeout(request.args.get("timeout", f"{DEFAULT_WAIT:g}"))
        return text(str(await reached(node, name, txid, checksum, seconds)))
