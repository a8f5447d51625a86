"""Nodes that elect their primary, a client that writes wherever it is, and how long changes of it take.

For tests and for ``benchmarks/failover.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.consul import running
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError, wait_until

DATABASE = "app.db"
NAMES = ("a", "b", "c")
LEASES = ("directory", "consul")
CHANGE_SECONDS = 30.0
"""Bound of waiting for any change; the promises are much shorter, and checked by who asks."""
INTERVAL_MS = 5
"""Between two inserts of the writer."""


@contextmanager
def lease_settings(kind: str, root: Path) -> Iterator[dict[str, Any]]:
    """The ``lease`` section but for who the node is: with a Consul of its own, or in a directory."""
    if kind == "directory":
        yield {"type": "object", "object": {"url": f"file://{root}/lease"}}
        return
    with running(root / "consul") as consul:
        yield {"type": "consul", "consul": {"url": consul.url, "key": "litefs/test"}}


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One row that was acknowledged; see tests/support/clients/roaming.py."""

    number: int
    node: str
    began: float
    ended: float
    failures: int
    longest: float


@dataclass(frozen=True, slots=True)
class Change:
    """A change of primary: seconds from ``before`` it was caused to the first row that another node
    acknowledged, and the longest time that any row took meanwhile, attempts that failed included."""

    seconds: float
    longest_row: float
    failures: int


class Elected:
    """Candidates with mounts, all running, and ``t`` in a database that all of them have."""

    def __init__(
        self,
        make_node: Callable[..., Node],
        lease: Mapping[str, Any],
        names: Sequence[str] = NAMES,
        own: Callable[[str], Mapping[str, Any]] = lambda name: {},
        **sections: Any,
    ) -> None:
        """``sections``: of litefs.yml, for all nodes; ``own``: those of a node."""
        self.nodes: dict[str, Node] = {}
        self._writer: Client | None = None
        self._rows: list[Acknowledged] = []
        for name in names:
            node = self.nodes[name] = make_node(name, **sections, **own(name))
            settings = {"hostname": name, "advertise-url": node.url, "candidate": True, **lease}
            node.configure("lease", settings)
            node.launch()
        for node in self.nodes.values():
            node.wait_ready()
        first = self.nodes[self.await_primary()]
        with Client("sql", "sqlite3") as sql:
            sql.call("open", path=first.path(DATABASE))
            sql.call("execute", statement="PRAGMA journal_mode=WAL")
            wait_until(lambda: _works(sql, "CREATE TABLE IF NOT EXISTS t(a)"), CHANGE_SECONDS, "a table")
        for node in self.nodes.values():
            wait_present(node, DATABASE)

    # -- who is primary --------------------------------------------------------------------------------

    def primary(self) -> str | None:
        """The name of the node that says so."""
        for name, node in self.nodes.items():
            if node.process is not None and (info := node.info()) and info["isPrimary"]:
                return name
        return None

    def await_primary(self, but: str = "", seconds: float = CHANGE_SECONDS) -> str:
        """The primary, once there is one other than ``but``."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [name for name in (self.primary(),) if name not in (None, but)]
            return bool(found)

        wait_until(look, seconds, f"a primary\n{self.logs()}", 0.02)
        return found[0]

    def replicas(self) -> list[str]:
        """The names of the others that run, in the order of NAMES."""
        primary = self.await_primary()
        return [name for name, node in self.nodes.items() if name != primary and node.process is not None]

    def await_following(self, count: int | None = None) -> str:
        """Until that many replicas (all others) are connected to the primary; its name."""
        wanted = len(self.nodes) - 1 if count is None else count

        def look() -> bool:
            name = self.primary()
            info = self.nodes[name].info() if name is not None else None
            return info is not None and len(info.get("replicas", ())) >= wanted

        wait_until(look, CHANGE_SECONDS, f"{wanted} replicas follow\n{self.logs()}", 0.02)
        return self.await_primary()

    def logs(self) -> str:
        return "\n".join(node.log_tail() for node in self.nodes.values())

    # -- the writer ------------------------------------------------------------------------------------

    def write(self) -> None:
        """Have the writer go on."""
        if self._writer is None:
            paths = [node.path(DATABASE) for node in self.nodes.values()]
            self._writer = Client("roaming", INTERVAL_MS, *paths)
        self._writer.call("resume")

    def rest(self) -> None:
        """Have it rest."""
        if self._writer is not None:
            self._writer.call("pause", CHANGE_SECONDS)

    def rows(self) -> list[Acknowledged]:
        """All rows that were acknowledged, in their order."""
        if self._writer is not None:
            names = list(self.nodes)
            self._rows += (
                Acknowledged(int(number), names[int(place)], began, ended, int(failures), longest)
                for number, place, began, ended, failures, longest in self._writer.call(
                    "acknowledged", start=len(self._rows)
                )
            )
        return self._rows

    def await_rows(self, count: int = 20, seconds: float = CHANGE_SECONDS) -> None:
        """Until that many more are acknowledged."""
        wanted = len(self.rows()) + count
        message = f"{count} rows are acknowledged\n{self.logs()}"
        wait_until(lambda: len(self.rows()) >= wanted, seconds, message, 0.02)

    # -- changes ---------------------------------------------------------------------------------------

    def change(self, cause: Callable[[], object]) -> Change:
        """Have ``cause`` end the role of the primary, and see how long rows take."""
        old, known = self.await_primary(), len(self.rows())
        before = time.monotonic()
        cause()
        self.write()
        found: list[Acknowledged] = []

        def look() -> bool:
            found[:] = [row for row in self.rows()[known:] if row.node != old and row.ended > before]
            return bool(found)

        wait_until(look, CHANGE_SECONDS, f"a row is acknowledged by another node\n{self.logs()}", 0.02)
        first = found[0]
        meanwhile = [row for row in self.rows()[known:] if before < row.ended <= first.ended]
        longest = max(row.ended - row.began for row in meanwhile)
        return Change(first.ended - before, longest, sum(row.failures for row in meanwhile))

    def kill(self) -> Change:
        """kill -9 of both processes of the primary, which then is started again. What it had acknowledged is
        on every node by then: with asynchronous replication the rest may be lost."""
        self.rest()
        name = self.await_following()
        node = self.nodes[name]
        for other in self.nodes.values():
            if other is not node:
                wait_equal(node, other, DATABASE)
        change = self.change(lambda: node.kill("both"))
        node.start()
        self.await_following()
        return change

    def hand_off(self) -> Change:
        """A planned change, while rows are written all the time."""
        self.write()
        node = self.nodes[self.await_following()]
        self.await_rows()
        change = self.change(lambda: node.post("/handoff"))
        self.await_following()
        return change

    def check(self) -> None:
        """At rest: all nodes hold the same, and every row that was acknowledged."""
        self.rest()
        primary = self.nodes[self.await_primary()]
        for node in self.nodes.values():
            if node is not primary:
                wait_equal(primary, node, DATABASE, CHANGE_SECONDS)
                pages_equal(primary, node, DATABASE)
        with Client("sql", "sqlite3") as reader:
            reader.call("open", path=primary.path(DATABASE), readonly=True)
            held = {row[0] for row in reader.call("execute", 30, statement="SELECT a FROM t")}
        missing = sorted({row.number for row in self.rows()} - held)
        assert not missing, f"acknowledged and lost: {missing[:20]} of {len(self.rows())}\n{self.logs()}"

    def close(self) -> None:
        """End the writer; the nodes are their maker's."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _works(sql: Client, statement: str) -> bool:
    try:
        sql.call("execute", statement=statement)
    except ClientError:
        return False
    return True
