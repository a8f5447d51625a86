"""Made-up answers of ``GET /status``, in the shape that the node gives them."""

from __future__ import annotations

from typing import Any

import msgspec

from litefs.server.status_format import DatabaseStatus, NodeStatus, PrimaryStatus, ReplicaStatus, Status

_NODE = NodeStatus("00000000000000A1", "busy", "1.0", "primary", True, "/litefs", 3, "consul", 93784.0, True)


def _built(status: Status) -> dict[str, Any]:
    return dict(msgspec.to_builtins(status))


def _database(name: str, txid: int, *, damaged: bool = False) -> DatabaseStatus:
    return DatabaseStatus(name, f"{txid:016x}", "8" * 16, 4096, 250, 65536, 2, txid, damaged, "any")


def many_databases(count: int) -> dict[str, Any]:
    """A primary with that many databases and two replicas, one of them a transaction behind in each."""
    databases = [_database(f"tenant-{number:03}.db", number + 10) for number in range(count)]
    replicas = [
        ReplicaStatus(
            f"00000000000000B{late}",
            f"replica-{late}",
            True,
            not late,
            {one.name: f"{int(one.txid, 16) - late:016x}" for one in databases},
        )
        for late in (0, 1)
    ]
    return _built(Status(_NODE, PrimaryStatus("busy", "http://busy", True), 0.0, databases, replicas, []))


def troubled() -> dict[str, Any]:
    """A node that gives its role up, is held up, and has a damaged database with a tricky name."""
    node = msgspec.structs.replace(_NODE, role="demoting", ready=False)
    databases = [_database("app.db", 7), _database("<b>broken</b>.db", 9, damaged=True)]
    held = ["app.db: process 4711 (worker)"]
    return _built(Status(node, None, None, databases, [], held))
