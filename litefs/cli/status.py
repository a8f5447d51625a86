"""``litefs status``: nodes, databases, positions, lag, as the primary and the asked node see them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

import msgspec

from litefs.cli.cluster import View, look
from litefs.cli.connection import FLAGS, Connection
from litefs.cli.flags import Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.table import render, seconds, size
from litefs.errors import LiteFSError
from litefs.server.status_format import ArchiveStatus, DatabaseStatus, ReplicaStatus, Status

WATCH_SECONDS = 1.0
"""Between two looks with ``-watch``."""

_CLEAR = "\x1b[H\x1b[2J"
"""Cursor to the corner, screen empty (ECMA-48: CUP, ED)."""

_FLAGS = (
    Flag(
        "json",
        "print JSON: the asked node in `asked`, the primary in `primary`, null where there is no answer",
    ),
    Flag("watch", "look again each second until Ctrl-C"),
    *FLAGS,
)

USAGE = {
    "status": "Usage:\n\n  litefs status [ARGUMENTS]\n\n"
    "Shows the nodes of a cluster and its databases. Any node may be asked: it names the primary, which\n"
    "knows the others. Ends with 1 if the node does not answer.\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}",
}
SPECS = {"status": Spec(_FLAGS)}


def status(argv: Sequence[str]) -> int:
    """``litefs status``. Raises UsageError, LiteFSError."""
    arguments = parse_flags(_FLAGS, argv)
    if arguments.rest:
        raise UsageError("too many arguments")
    node, as_json = Connection.of(arguments), "json" in arguments.switches
    if "watch" not in arguments.switches:
        print(_text(look(node), as_json))
        return 0
    while True:
        try:
            shown = _text(look(node), as_json)
        except LiteFSError as error:
            shown = _json(None, None, str(error)) if as_json else f"ERROR: {error}"
        print(f"{_CLEAR}{shown}" if sys.stdout.isatty() else shown, flush=True)
        time.sleep(WATCH_SECONDS)


def _text(view: View, as_json: bool) -> str:
    if as_json:
        return _json(view.asked, view.primary, view.problem)
    return "\n".join(report(view))


def _json(asked: Status | None, primary: Status | None, problem: str) -> str:
    """Of one shape always, for those who read it with ``-watch``."""
    return msgspec.json.encode({"asked": asked, "primary": primary, "problem": problem}).decode()


def report(view: View) -> Iterator[str]:
    """The lines that people read."""
    node = view.asked.node
    state = "" if node.ready else ", not ready"
    yield f"{node.role} at {node.path}, term {node.term}, lease {node.lease}{state}"
    if view.problem:
        yield f"The primary cannot be asked: {view.problem}. What follows is what this node knows."
    for line in view.asked.held_up:
        yield f"held up: {line}"
    yield ""
    yield render(("NODE", "ROLE", "STATE", "LAG", "UPTIME", "ID"), _nodes(view), right=("LAG", "UPTIME"))
    yield ""
    databases = (view.primary or view.asked).databases
    if not databases:
        yield "No databases."
        return
    header = ("DATABASE", "TXID", "CHECKSUM", "SIZE", "LOG", "SYNC", "BEHIND")
    yield render(header, (_database(one, view) for one in databases), right=("SIZE", "LOG"))
    archive = (view.primary or view.asked).archive
    if archive:
        yield ""
        columns = ("ARCHIVE OF", "TIMELINE", "TXID", "BEHIND", "LAG", "STATE")
        yield render(columns, (_archive(one) for one in archive), right=("TIMELINE", "BEHIND", "LAG"))


def _archive(one: ArchiveStatus) -> tuple[str, ...]:
    return (one.name, str(one.timeline), one.txid, str(one.behind), seconds(one.lag), one.error or "ok")


def _nodes(view: View) -> Iterator[tuple[str, ...]]:
    """The primary, its replicas, and the asked node if it is none of them; ``*`` marks the asked one."""
    asked, known = view.asked, set[str]()
    if view.primary is not None:
        known.add(view.primary.node.id)
        yield _node_row(view.primary, view, "")
        for one in view.primary.replicas:
            known.add(one.id)
            state = _state(one, view.primary.databases)
            if one.id == asked.node.id:
                yield _node_row(asked, view, state)
            else:
                yield (f"  {_replica_name(one.hostname, view)}", "replica", state, "", "", one.id)
    if asked.node.id not in known:
        yield _node_row(asked, view, "not connected" if asked.primary is None else "")


def _replica_name(hostname: str, view: View) -> str:
    """With a static lease the ``hostname`` of replicas is the primary's."""
    return "-" if view.asked.node.lease == "static" else hostname or "-"


def _node_row(status: Status, view: View, state: str) -> tuple[str, ...]:
    mark = "*" if status.node.id == view.asked.node.id else " "
    lag = "" if status.lag is None else seconds(status.lag)
    node, uptime = status.node, seconds(status.node.uptime)
    name = node.hostname if node.role == "primary" else _replica_name(node.hostname, view)
    return (f"{mark} {name}", node.role, state, lag, uptime, node.id)


def _database(database: DatabaseStatus, view: View) -> tuple[str, ...]:
    pages = size(database.pages * database.page_size)
    behind = "damaged" if database.damaged else ", ".join(_behind(database, view))
    return (
        database.name,
        database.txid,
        database.checksum,
        pages,
        size(database.log_bytes),
        str(database.sync),
        behind or "-",
    )


def _behind(database: DatabaseStatus, view: View) -> Iterator[str]:
    """Which replicas lack how many of its transactions, as the primary knows; empty is well."""
    if view.primary is None:
        return
    for replica in view.primary.replicas:
        if missing := _missing(database, replica):
            name = _replica_name(replica.hostname, view)
            yield f"{replica.id if name == '-' else name} by {missing}"


def _missing(database: DatabaseStatus, replica: ReplicaStatus) -> int:
    # What it is not sent (``lease.databases``, its token) it does not lack.
    return int(database.txid, 16) - int(replica.databases.get(database.name, database.txid), 16)


def _state(replica: ReplicaStatus, databases: Sequence[DatabaseStatus]) -> str:
    """In sync: commits that were answered are all there, whatever happens next, which only candidates can
    be; up to date: it is so now."""
    if replica.in_sync:
        return "in sync"
    return "behind" if any(_missing(one, replica) for one in databases) else "up to date"
