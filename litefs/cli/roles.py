"""``litefs promote`` and ``litefs handoff``: who is primary, by hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from urllib.parse import urlencode

import httpx
import msgspec

from litefs.cli.connection import FLAGS, Connection, RefusedByNode
from litefs.cli.flags import Flag, Spec, UsageError, describe, parse_flags
from litefs.errors import NotEligible, PeerError

_PROMOTE_FLAGS = (
    Flag("force", "become primary whatever this node lacks; says what is lost, and asks"),
    Flag("yes", "with -force: do not ask"),
    *FLAGS,
)

USAGE = {
    "promote": "Usage:\n\n  litefs promote [ARGUMENTS]\n\n"
    "Makes a node the primary. The present one hands its role over, and nothing is lost; without one\n"
    "the node must have all that the last one published.\n\n"
    f"Arguments:\n\n{describe(_PROMOTE_FLAGS)}",
    "handoff": "Usage:\n\n  litefs handoff [ARGUMENTS] NODE\n\n"
    "Has the primary pass its role to NODE, a candidate that is connected to it: a hostname or a node id.\n\n"
    f"Arguments:\n\n{describe(FLAGS)}",
}

SPECS = {"promote": Spec(_PROMOTE_FLAGS), "handoff": Spec(FLAGS)}

_NODE_ID = re.compile(r"[0-9A-Fa-f]{16}")
CONFLICT = 409


class _Prospect(msgspec.Struct, rename="camel"):
    """The answer of ``GET /promote``."""

    is_primary: bool
    candidate: bool
    lacks: list[str] = msgspec.field(default_factory=list)


def promote(argv: Sequence[str]) -> int:
    """``litefs promote``. Raises UsageError, LiteFSError."""
    arguments = parse_flags(_PROMOTE_FLAGS, argv)
    if arguments.rest:
        raise UsageError("too many arguments")
    node, force = Connection.of(arguments), "force" in arguments.switches
    with node.client() as client:
        node.greet(client)
        prospect = _prospect(node, client)
        if prospect.is_primary:
            print(f"{node.url} is the primary already")
            return 0
        if force and prospect.lacks and not _agreed(prospect.lacks, "yes" in arguments.switches):
            print("nothing was changed")
            return 1
        lost = promote_node(node, client, force=force)
    print(f"{node.url} is the primary now; {'lost:' if lost else 'nothing was lost'}")
    _list(lost)
    return 0


def _prospect(node: Connection, client: httpx.Client) -> _Prospect:
    with node.exchange(client, "GET", "/promote") as response:
        try:
            return msgspec.json.decode(response.read(), type=_Prospect)
        except msgspec.MsgspecError as error:
            raise PeerError(f"{node.url} does not say what a promotion would cost: {error}") from None


def _agreed(lacks: Sequence[str], yes: bool) -> bool:
    """Say what will be lost; on a terminal, ask."""
    print("this node lacks what the last primary had, which will be lost:")
    _list(lacks)
    if yes or not sys.stdin.isatty():
        return True
    sys.stdout.flush()
    return input("go on? [y/N] ").strip().lower() in ("y", "yes")


def promote_node(node: Connection, client: httpx.Client, *, force: bool = False) -> list[str]:
    """Make ``node`` the primary, and wait until it is; returns what was lost, in lines.

    Raises NotEligible with what to do, PeerError.
    """
    try:
        with node.exchange(client, "POST", "/promote?force=1" if force else "/promote") as response:
            lost = response.read().decode("utf-8", "replace").strip()
            return lost.split("; ") if lost else []
    except RefusedByNode as error:
        if error.status != CONFLICT:
            raise PeerError(f"{node.url} is not the primary: {error.reason or error}") from None
        reason = f"{node.url} must not become the primary: {error.reason}"
        if lacks := _prospect(node, client).lacks:
            reason += (
                "; promote a node that has it, or start the one that was primary; "
                f"`litefs promote -force` gives up what is lacking here ({'; '.join(lacks)})"
            )
        raise NotEligible(reason) from None


def handoff(argv: Sequence[str]) -> int:
    """``litefs handoff``. Raises UsageError, LiteFSError."""
    arguments = parse_flags(FLAGS, argv)
    if len(arguments.rest) != 1 or not arguments.rest[0]:
        raise UsageError("required: the node that is to become primary, and nothing else")
    node, target = Connection.of(arguments), arguments.rest[0]
    query = urlencode({"nodeID" if _NODE_ID.fullmatch(target) else "hostname": target})
    with node.client() as client:
        info = node.greet(client)
        if not info.is_primary:
            primary = info.primary.hostname or "not known there"
            raise PeerError(
                f"{node.url} is not the primary, which is {primary}: ask that one by -url, or run "
                "`litefs promote` on the node that is to become primary"
            )
        try:
            with node.exchange(client, "POST", f"/handoff?{query}"):
                pass
        except RefusedByNode as error:
            raise PeerError(f"{node.url} remains the primary: {error.reason or error}") from None
    print(f"the role was passed to {target}")
    return 0


def _list(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"  {line}")
