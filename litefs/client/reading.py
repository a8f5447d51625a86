"""Positions, the primary and the lag: from the mount's control files, and from the node."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from urllib.parse import quote

from litefs.client.asking import NoAnswer, NodeUnreachable, request
from litefs.client.place import NotOnMount, Place, StrPath, locate
from litefs.errors import DatabaseNotFound, PositionMismatch, WaitTimeout
from litefs.types import Position

NEVER_SYNCED_MS = (1 << 31) - 1
"""What ``.lag`` shows on a replica that has not heard of a primary since it started."""

LONGEST_WAIT = 60.0
"""Seconds that a node waits at most."""

_FIRST_POLL, _LONGEST_POLL = 0.001, 0.02
"""Seconds between two looks at ``NAME-pos``."""


def position(path: StrPath) -> Position:
    """The last transaction that this node has of a database. Raises DatabaseNotFound, OSError."""
    try:
        text = Path(f"{os.fspath(path)}-pos").read_text("ascii")
    except FileNotFoundError:
        raise DatabaseNotFound(f"{os.fspath(path)}: database not found") from None
    return Position.parse(text)


def wait(path: StrPath, target: Position | int, timeout: float = 5.0) -> Position:
    """Wait until a transaction that begins now on this node sees ``target`` (a position, or a TXID alone) or
    what came after it; returns the position then.

    ``timeout``: seconds, at most 60 where the node is asked. Raises WaitTimeout, NoAnswer, DatabaseNotFound,
    PositionMismatch if the node's history is another one: it has that TXID with another checksum, as far as
    the node's log tells.
    """
    deadline = time.monotonic() + timeout
    txid = target.txid if isinstance(target, Position) else target
    try:
        place, seconds = locate(path), wait_seconds(timeout)
        return Position.parse(request(place, "GET", wait_url(place, target, seconds), seconds).decode())
    except NoAnswer:
        raise  # what ``NAME-pos`` shows may not be announced to readers, if nobody is there to do so
    except (NodeUnreachable, NotOnMount):
        return _watch(path, target, txid, deadline)


def wait_seconds(timeout: float) -> float:
    """What a node may be asked to wait."""
    return min(max(0.0, timeout), LONGEST_WAIT)


def wait_url(place: Place, target: Position | int, seconds: float) -> str:
    """The path of the request that :func:`wait` makes."""
    wanted = str(target) if isinstance(target, Position) else f"{target:016x}"
    return f"/db/{quote(place.name)}/wait?txid={wanted}&timeout={seconds:.3f}"


def _watch(path: StrPath, target: Position | int, txid: int, deadline: float) -> Position:
    pause = _FIRST_POLL
    while (at := position(path)).txid < txid:
        if time.monotonic() + pause > deadline:
            raise WaitTimeout(f"{os.fspath(path)}: at {at}, not at {txid:016x}")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL)
    if isinstance(target, Position) and at.txid == txid and at != target:
        raise PositionMismatch(f"{os.fspath(path)}: at {at}, which is another history")
    return at


def primary(path: StrPath) -> str | None:
    """The primary's hostname while this node is a replica that is connected to it, else None.

    Raises NotOnMount, OSError.
    """
    try:
        return (locate(path).mount / ".primary").read_text().rstrip("\n")
    except FileNotFoundError:
        return None


def is_primary(path: StrPath) -> bool:
    """Whether this node is the primary. Raises NotOnMount, NodeUnreachable, LiteFSError, OSError."""
    return bool(json.loads(request(locate(path), "GET", "/info"))["isPrimary"])


def lag(path: StrPath) -> float | None:
    """Seconds that this node is behind the primary, 0 on the primary; None: it has not heard of one yet.

    Raises NotOnMount, OSError.
    """
    milliseconds = int((locate(path).mount / ".lag").read_text())
    return None if milliseconds == NEVER_SYNCED_MS else milliseconds / 1000
