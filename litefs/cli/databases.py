"""``litefs databases`` and ``litefs drop``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from litefs.cli.cluster import look, read_status, towards
from litefs.cli.connection import FLAGS, Connection, RefusedByNode
from litefs.cli.flags import Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.table import render, size
from litefs.errors import PeerError

_LIST_FLAGS = (Flag("json", "print JSON, with all that the node knows of each"), *FLAGS)
_DROP_FLAGS = (Flag("yes", "do not ask"), *FLAGS)

USAGE = {
    "databases": "Usage:\n\n  litefs databases [ARGUMENTS]\n\n"
    f"Lists the databases that a node has, with their positions.\n\nArguments:\n\n{describe(_LIST_FLAGS)}",
    "drop": "Usage:\n\n  litefs drop [ARGUMENTS] NAME\n\n"
    "Removes the database NAME from all nodes; on a terminal it asks first. Any node may be given: its\n"
    "primary does it. Connections that have it open fail from then on; replicas keep the log under lost/ as\n"
    f"long as data.retention says.\n\nArguments:\n\n{describe(_DROP_FLAGS)}",
}
SPECS = {"databases": Spec(_LIST_FLAGS), "drop": Spec(_DROP_FLAGS)}


def databases(argv: Sequence[str]) -> int:
    """``litefs databases``. Raises UsageError, LiteFSError."""
    arguments = parse_flags(_LIST_FLAGS, argv)
    if arguments.rest:
        raise UsageError("too many arguments")
    found = read_status(Connection.of(arguments)).databases
    if "json" in arguments.switches:
        print(msgspec.json.encode(found).decode())
    elif found:
        rows = [(one.name, one.txid, one.checksum, size(one.pages * one.page_size)) for one in found]
        print(render(("NAME", "TXID", "CHECKSUM", "SIZE"), rows, right=("SIZE",)))
    return 0


def drop(argv: Sequence[str]) -> int:
    """``litefs drop``. Raises UsageError, DatabaseNotFound, AccessDenied, PeerError."""
    arguments = parse_flags(_DROP_FLAGS, argv)
    if len(arguments.rest) != 1 or not arguments.rest[0]:
        raise UsageError("required: the name of the database, and nothing else")
    name, node = arguments.rest[0], Connection.of(arguments)
    view = look(node)
    if view.primary is None:
        raise PeerError(
            f"{node.url} is not the primary, and {view.problem}: only the primary can drop a database; "
            "start it, or ask it by -url"
        )
    if "yes" not in arguments.switches and not _agreed(name, view.url):
        print("nothing was changed")
        return 1
    primary = towards(node, view.url)
    with primary.client() as client:
        primary.greet(client)
        try:
            with primary.exchange(client, "DELETE", f"/db/{quote(name)}", about=name):
                pass
        except RefusedByNode as error:
            raise PeerError(f"{primary.url} did not drop {name}: {error.reason or error}") from None
    print(f'database "{name}" was dropped')
    return 0


def _agreed(name: str, url: str) -> bool:
    """On a terminal, ask."""
    if not sys.stdin.isatty():
        return True
    answer = input(f'remove database "{name}" of {url} from all nodes? [y/N] ')
    return answer.strip().lower() in ("y", "yes")
