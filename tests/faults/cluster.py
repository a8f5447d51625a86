"""Three nodes and Consul, each in a network namespace of its own, applications on them, and the faults."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.history import Pause, Progress
from tests.faults.schedule import Fault, Strike
from tests.faults.terms import Reign, reigns
from tests.support.consul import Consul
from tests.support.netns import Host, Network
from tests.support.node import Node, pages_equal, wait_equal
from tests.support.processes import Client, pause, wait_until

NAMES = ("a", "b", "c")
_ROWS = "CREATE TABLE t(id INTEGER PRIMARY KEY, value TEXT, data BLOB)"
DATABASES = {
    "wal": ["PRAGMA journal_mode=WAL", _ROWS],
    "delete": ["PRAGMA journal_mode=DELETE", _ROWS],
    "register": [
        "PRAGMA journal_mode=WAL",
        "CREATE TABLE register(value TEXT)",
        "INSERT INTO register VALUES('')",
    ],
    "session": [
        "PRAGMA journal_mode=WAL",
        "CREATE TABLE session(node TEXT PRIMARY KEY, number INTEGER, value TEXT)",
        *(f"INSERT INTO session VALUES('{name}',0,'')" for name in NAMES),
    ],
}
"""By workload what makes its database (tests/faults/application.py)."""
RESUME_SECONDS = 60.0
"""Bound of the wait for acknowledged writes of every kind after a fault was healed. What is promised is less;
this machine is shared, and what was killed has to recover and catch up."""
STATEMENT_SECONDS = 30.0

Heal = Callable[[], None]


class Cluster:
    """``replication``: the section of litefs.yml."""

    def __init__(
        self,
        root: Path,
        network: Network,
        make_node: Callable[..., Node],
        make_client: Callable[..., Client],
        replication: dict[str, Any],
        seed: int,
    ) -> None:
        self._network = network
        self._make_client = make_client
        self._seed = seed
        self._synchronous = replication.get("sync", "off") != "off"
        self.history = root / "history"
        self.history.mkdir()
        self._consul_host = network.host("consul")
        self.consul = Consul(root / "consul", host=self._consul_host)
        self.nodes: dict[str, Node] = {}
        for name in NAMES:
            log = {"format": "text", "timestamp": True}
            node = make_node(name, host=network.host(name), replication=replication, log=log)
            consul = {"url": self.consul.url, "key": "litefs/test"}
            lease = {"type": "consul", "consul": consul, "hostname": name, "advertise-url": node.url}
            node.configure("lease", {**lease, "candidate": True})
            self.nodes[name] = node
        self.progress = Progress(self.history)
        self.counts: Counter[str] = Counter()
        self.pauses: list[Pause] = []
        self._applications: list[Client] = []
        self._offset = time.time() - time.monotonic()

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything, make the databases, and wait until the applications write."""
        self.consul.start()
        for node in self.nodes.values():
            node.launch()
        for node in self.nodes.values():
            node.wait_ready()
        primary = self.await_following()
        sql = self._make_client("sql", "sqlite3")
        for name, statements in DATABASES.items():
            sql.call("open", path=primary.path(f"{name}.db"))
            sql.call("script", STATEMENT_SECONDS, statements=statements)
        sql.close()
        self.await_recovered()
        mounts = [f"{name}={node.mount}" for name, node in self.nodes.items()]
        for name in NAMES:
            arguments = (name, self.history, self._seed, *mounts)
            self._applications.append(self._make_client("tests.faults.application", *arguments))
        self.await_writes()

    def end_writes(self) -> None:
        """Have the applications end what they do."""
        for application in self._applications:
            application.send("stop")
        for application in self._applications:
            application.answer(90)

    def converge(self) -> dict[str, list[str]]:
        """Wait until all nodes are alike, byte for byte; returns every row of every database."""
        primary = self.await_following()
        contents: dict[str, list[str]] = {}
        sql = self._make_client("sql", "sqlite3")
        for name in DATABASES:
            file = f"{name}.db"
            for node in self.nodes.values():
                if node is not primary:
                    wait_equal(primary, node, file, 60)
                    pages_equal(primary, node, file)
                sql.call("open", path=node.path(file), readonly=True)
                assert sql.call("execute", STATEMENT_SECONDS, statement="PRAGMA integrity_check") == [["ok"]]
                table = "t" if name in ("wal", "delete") else name
                rows = sql.call("execute", STATEMENT_SECONDS, statement=f"SELECT value FROM {table}")
                values = [row[0] for row in rows]
                assert contents.setdefault(name, values) == values
                sql.call("close")
        return contents

    def reigns(self) -> list[Reign]:
        """Of all nodes."""
        drift = abs(time.time() - time.monotonic() - self._offset)
        assert drift < 0.02, f"the clock of the day was set during the test, by {drift:.3f} s"
        return [
            reign
            for name, node in self.nodes.items()
            for reign in reigns(name, node.log.read_text(errors="replace"), self._offset)
        ]

    # -- who is what -------------------------------------------------------------------------------

    def primary(self) -> str | None:
        """A node that says that it is primary."""
        for name, node in self.nodes.items():
            if node.process is not None and (info := node.info()) and info["isPrimary"]:
                return name
        return None

    def await_following(self) -> Node:
        """Until both replicas follow, and are in sync if replication is synchronous; the primary."""
        key = "inSync" if self._synchronous else "replicas"
        found: list[str] = []

        def look() -> bool:
            found[:] = [name for name in (self.primary(),) if name is not None]
            return bool(found) and len((self.nodes[found[0]].info() or {}).get(key, ())) == len(NAMES) - 1

        wait_until(look, RESUME_SECONDS, f"both replicas follow\n{self.logs()}", 0.1)
        return self.nodes[found[0]]

    def await_recovered(self) -> None:
        """Until both replicas also have what is there now."""
        tips: list[int] = []

        def look() -> bool:
            if not tips or not all(tips):
                tips[:] = self._txids(self.await_following())
            found = [self._txids(node) for node in self.nodes.values()]
            return all(have >= tip > 0 for one in found for have, tip in zip(one, tips, strict=True))

        wait_until(look, RESUME_SECONDS, f"all nodes reach {tips}\n{self.logs()}", 0.1)

    def _txids(self, node: Node) -> list[int]:
        """The last transaction of each database; 0 if there is no answer."""
        found = [node.position(f"{name}.db") for name in DATABASES]
        return [position.txid if position is not None else 0 for position in found]

    def await_writes(self) -> None:
        """Until every workload had an acknowledged write from now on."""
        before = self.progress.counts()

        def look() -> bool:
            counts = self.progress.counts()
            return all(counts.get(name, 0) > before.get(name, 0) for name in DATABASES)

        wait_until(look, RESUME_SECONDS, f"acknowledged writes of every kind\n{self.logs()}", 0.05)

    def logs(self) -> str:
        return "\n".join(node.log_tail() for node in self.nodes.values())

    # -- faults ------------------------------------------------------------------------------------

    def strike(self, strike: Strike) -> None:
        """Let it happen, heal it, and wait until writes go on."""
        if not strike.hasty:
            self.await_recovered()
        primary = self.primary() or self.progress.last[1]
        replicas = [name for name in NAMES if name != primary]
        begin = time.monotonic()
        heals: list[tuple[float, Heal]] = []
        try:
            heals.append((begin + strike.first.seconds, self._begin(strike.first, primary, replicas[0])))
            if strike.second is not None:
                _sleep_until(begin + strike.after)
                # Another replica than the first fault's; and the primary of before, whoever is now.
                heal = self._begin(strike.second, primary, replicas[1])
                heals.append((begin + strike.after + strike.second.seconds, heal))
        finally:
            for at, heal in sorted(heals, key=lambda pair: pair[0]):
                _sleep_until(at)
                heal()
        self._network.heal()
        for node in self.nodes.values():
            node.wait_ready(40)
        self.await_writes()

    def _begin(self, fault: Fault, primary: str, replica: str) -> Heal:
        self.counts[fault.label] += 1
        name = primary if fault.target == "primary" else replica
        node = self.nodes[name]
        match fault.kind:
            case "kill":
                return self._kill(node, fault)
            case "stop":
                return self._stop(node, fault)
            case "cut":
                return self._cut(fault.detail, primary, replica)
            case "terminate":
                node.stop()

                def restart() -> None:
                    node.launch()

                return restart
            case _:
                self._plan(fault.kind, primary, replica)
                return lambda: None

    def _kill(self, node: Node, fault: Fault) -> Heal:
        if node.process is None:
            return lambda: None
        node.kill(fault.processes)

        def heal() -> None:
            if node.process is None:
                node.launch()

        return heal

    def _stop(self, node: Node, fault: Fault) -> Heal:
        pids = []
        if fault.processes in ("node", "both") and node.process is not None:
            pids.append(node.process.pid)
        fs_pid = node.fs_pid() if fault.processes in ("fs", "both") else None
        if fs_pid is not None:
            pids.append(fs_pid)
        pause(*pids)
        begin = time.monotonic()

        def heal() -> None:
            if fs_pid is not None:
                self.pauses.append(Pause(node.name, begin, time.monotonic()))
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        return heal

    def _cut(self, detail: str, primary: str, replica: str) -> Heal:
        hosts = {name: node.host for name, node in self.nodes.items() if node.host is not None}
        groups: dict[str, list[Host]] = {
            "primary": [hosts[primary]],
            "replica": [hosts[replica]],
            "replicas": [host for name, host in hosts.items() if name != primary],
            "consul": [self._consul_host],
        }
        one, how, other = detail.split()
        senders = groups[one]
        everybody = [*hosts.values(), self._consul_host]
        others = [h for h in everybody if h not in senders] if other == "all" else groups[other]
        for sender in senders:
            for receiver in others:
                self._network.cut(sender, receiver)
                if how == "from":
                    self._network.cut(receiver, sender)
        return self._network.heal

    def _plan(self, kind: str, primary: str, replica: str) -> None:
        node = self.nodes[replica if kind == "promote" else primary]
        assert node.host is not None
        with contextlib.suppress(OSError):  # it may be refused: then the primary stays
            node.host.call(node.post, "/promote" if kind == "promote" else "/handoff", 15)


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))
