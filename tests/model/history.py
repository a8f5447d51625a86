"""The seeded generator of histories: one step at a time, from what the steps before it gave.

The same seed and the same outcomes give the same steps. Everything that is refused on a mount by design is
generated behind a constant below, and nowhere else.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.model.client import Outcome
from tests.model.statements import SCHEMA, Statements
from tests.model.steps import ROOT, Step, files

PAGE_SIZE_CHANGES = True
"""VACUUM, backups and copies that give a database another page size."""
SUPER_JOURNALS = True
"""Transactions over several databases with rollback journals."""

BUSY_DATABASES = ("a.db", "b.db", "c.db")
DATABASES = (*BUSY_DATABASES, "dir/d.db", "e.db", "f.db")
SHARED_CACHE = "sqlite3-1"
"""The process whose connections share their cache."""
CLIENTS = ("sqlite3-0", SHARED_CACHE, "apsw-0", "apsw-1", "shell-0")
JOURNAL_MODES = ("DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL", "WAL", "WAL")
PAGE_SIZES = (512, 1024, 4096, 4096, 4096, 16384, 65536)
MAX_CONNECTIONS = 5
EXCLUSIVE_STEPS = 12
"""After so many steps a connection leaves ``locking_mode=EXCLUSIVE``, which keeps everybody else out."""


@dataclass(slots=True)
class _Connection:
    number: int
    client: str
    databases: list[str]
    """The main database, then those that are attached."""
    open: bool = False
    """Inside a transaction."""
    selecting: bool = False
    shared: bool = False
    journal: str = ""
    exclusive_until: int | None = None

    @property
    def unsafe(self) -> bool:
        """What it wrote cannot be taken back (journal_mode=OFF)."""
        return self.journal == "off"


class History:
    """Steps in an endless row: ``next``, and ``observe`` with its outcome, in turn."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._sql = Statements(self._rng)
        self._connections: dict[int, _Connection] = {}
        self._page_sizes: dict[str, int] = {}
        """Of the databases that have a transaction."""
        self._planned: deque[Step] = deque([Step("attempt", "", 0, (), files("mkdir", "dir"))])
        self._count = self._made = 0

    def next(self) -> Step:
        """The next step."""
        self._count += 1
        while True:
            step = self._planned.popleft() if self._planned else self._choose()
            if step is not None:
                return step

    def closing(self) -> list[Step]:
        """The steps that close all connections."""
        return [Step("close", c.client, c.number, tuple(c.databases)) for c in self._connections.values()]

    # -- choosing ----------------------------------------------------------------------------------

    def _choose(self) -> Step | None:
        for connection in self._connections.values():
            if connection.exclusive_until is not None and connection.exclusive_until < self._count:
                return self._leave_exclusive(connection)
        if not self._connections or (len(self._connections) < MAX_CONNECTIONS and self._rng.random() < 0.15):
            return self._open()
        ways: list[tuple[Callable[[], Step | None], float]] = [
            (self._statement, 60),
            (self._close, 2.5),
            (self._kill, 1.2),
            (self._copy, 1),
            (self._move, 0.7),
            (self._remove, 0.7),
            (self._load, 0.5),
        ]
        return self._rng.choices([way for way, _ in ways], [weight for _, weight in ways])[0]()

    def _open(self) -> Step:
        rng = self._rng
        name = rng.choice(BUSY_DATABASES if rng.random() < 0.8 else DATABASES)
        client = rng.choice(CLIENTS)
        parameters = []
        if name in self._page_sizes and rng.random() < 0.1:
            parameters.append("mode=ro")
        if rng.random() < 0.2:
            parameters.append("psow=0")
        if client == SHARED_CACHE:
            parameters.append("cache=shared")
        self._made += 1
        number = self._made
        if name not in self._page_sizes:
            size = rng.choice(PAGE_SIZES)
            setup = [
                f"PRAGMA page_size={size}",
                f"PRAGMA auto_vacuum={rng.choice(('NONE', 'NONE', 'FULL', 'INCREMENTAL'))}",
                f"PRAGMA journal_mode={rng.choice(('DELETE', 'TRUNCATE', 'PERSIST', 'WAL', 'WAL'))}",
                *("BEGIN IMMEDIATE", *SCHEMA, "INSERT INTO t(a,b) VALUES(1,x'00')", "COMMIT"),
            ]
            self._planned += [
                Step("sql", client, number, (name,), {"statement": statement}) for statement in setup
            ]
        if rng.random() < 0.4:  # nothing but the end of its lock tells of a commit without a journal then
            statement = {"statement": "PRAGMA synchronous=OFF"}
            self._planned.append(Step("sql", client, number, (), statement))
        uri = f"file:{ROOT}/{name}" + ("?" + "&".join(parameters) if parameters else "")
        return Step("open", client, number, (name,), {"uri": uri})

    def _close(self) -> Step:
        connection = self._rng.choice(list(self._connections.values()))
        return Step("close", connection.client, connection.number, tuple(connection.databases))

    def _kill(self) -> Step | None:
        client = self._rng.choice(list(self._connections.values())).client
        lost = [c for c in self._connections.values() if c.client == client]
        return Step("kill", client, 0, tuple(sorted({name for c in lost for name in c.databases})))

    # -- statements --------------------------------------------------------------------------------

    def _statement(self) -> Step | None:
        connection = self._rng.choice(list(self._connections.values()))
        if connection.selecting and self._rng.random() < 0.3:
            return Step("end_select", connection.client, connection.number, ())
        if connection.open:
            return self._inside(connection)
        ways = [
            (self._plain, 40),
            (self._begin, 12 if self._may_begin(connection) else 0),
            (self._journal_mode, 7),
            (self._setting, 8),
            (self._checkpoint, 4),
            (self._vacuum, 3),
            (self._exclusive, 0.7),
            (self._attach, 2),
            (self._definition, 4),
            (self._select, 2),
            (self._backup, 3),
            (self._burst, 4),
        ]
        way = self._rng.choices([way for way, _ in ways], [weight for _, weight in ways])[0]
        return way(connection)

    def _run(self, connection: _Connection, statement: str, databases: tuple[str, ...] | None = None) -> Step:
        touched = tuple(connection.databases) if databases is None else databases
        return Step("sql", connection.client, connection.number, touched, {"statement": statement})

    def _schema(self, connection: _Connection) -> str:
        return "other" if len(connection.databases) > 1 and self._rng.random() < 0.5 else "main"

    def _inside(self, connection: _Connection) -> Step:
        rng, draw = self._rng, self._rng.random()
        if draw < 0.25:
            return self._run(connection, "COMMIT")
        if draw < 0.30:
            return self._run(connection, "ROLLBACK")
        if draw < 0.42 and not connection.unsafe:
            return self._run(connection, rng.choice(_SAVEPOINTS))
        if draw < 0.50:
            return self._definition(connection)
        if draw < 0.54:
            return self._setting(connection)
        return self._plain(connection)

    def _plain(self, connection: _Connection) -> Step:
        draw, schema = self._rng.random(), self._schema(connection)
        if draw < 0.2:
            return self._run(connection, self._sql.query(schema), ())
        if draw < 0.3:
            return self._run(connection, self._sql.big_change(schema))
        if draw < 0.34 and len(connection.databases) > 1:
            return self._run(connection, "INSERT INTO other.t(a,b) SELECT a,b FROM main.t WHERE id%5=0")
        return self._run(connection, self._sql.change(schema, may_fail=not connection.unsafe))

    def _may_begin(self, connection: _Connection) -> bool:
        return SUPER_JOURNALS or len(connection.databases) == 1

    def _begin(self, connection: _Connection) -> Step:
        how = self._rng.choice(["BEGIN", "BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "SAVEPOINT s"])
        if connection.client.startswith("shell") and how == "SAVEPOINT s":
            how = "BEGIN"
        return self._run(connection, how, ())

    def _journal_mode(self, connection: _Connection) -> Step:
        mode = self._rng.choice(JOURNAL_MODES[-1:] if connection.shared else JOURNAL_MODES)
        one = "" if SUPER_JOURNALS or len(connection.databases) == 1 else "main."
        statement = f"PRAGMA {one}journal_mode={mode}"
        if mode in ("MEMORY", "OFF"):
            # Nothing is in the file before the commit, so that neither a death nor a rollback damages it.
            keep = Step(
                "sql", connection.client, connection.number, (), {"statement": "PRAGMA cache_spill=OFF"}
            )
            self._planned.append(self._run(connection, statement))
            return keep
        return self._run(connection, statement)

    def _burst(self, connection: _Connection) -> Step | None:
        """Several commits, with nothing in between that would give a sweep time to see one."""
        rng = self._rng
        if connection.unsafe or connection.shared or len(connection.databases) > 1:
            return None
        change = self._sql.change
        first, last = (rng.choice(JOURNAL_MODES) for _ in range(2))
        statements = [
            f"PRAGMA synchronous={rng.choice(('OFF', 'FULL'))}",
            "PRAGMA cache_spill=OFF",
            f"PRAGMA journal_mode={first}",
            change(may_fail=False),
            change(may_fail=False),
            f"PRAGMA journal_mode={last}",
            change(may_fail=False),
            "PRAGMA journal_mode",
        ]
        arguments = {"statements": statements}
        return Step("burst", connection.client, connection.number, tuple(connection.databases), arguments)

    def _setting(self, connection: _Connection) -> Step:
        if PAGE_SIZE_CHANGES and self._rng.random() < 0.1:
            return self._run(connection, f"PRAGMA page_size={self._rng.choice(PAGE_SIZES)}")
        return self._run(connection, self._sql.setting())

    def _checkpoint(self, connection: _Connection) -> Step:
        how = self._rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE", "TRUNCATE"])
        return self._run(connection, f"PRAGMA wal_checkpoint({how})")

    def _vacuum(self, connection: _Connection) -> Step:
        if self._rng.random() < 0.6:
            return self._run(connection, "VACUUM")
        targets = [name for name in DATABASES if name not in self._page_sizes] or DATABASES
        target = self._rng.choice(targets)
        return self._run(connection, f"VACUUM INTO '{ROOT}/{target}'", (target,))

    def _exclusive(self, connection: _Connection) -> Step:
        connection.exclusive_until = self._count + EXCLUSIVE_STEPS
        return self._run(connection, "PRAGMA locking_mode=EXCLUSIVE")

    def _leave_exclusive(self, connection: _Connection) -> Step:
        connection.exclusive_until = None
        if connection.open:
            self._planned.append(self._run(connection, "COMMIT"))
        self._planned.append(self._run(connection, "PRAGMA locking_mode=NORMAL"))
        self._planned.append(self._run(connection, "SELECT count(*) FROM sqlite_schema"))
        return self._planned.popleft()

    def _attach(self, connection: _Connection) -> Step | None:
        if len(connection.databases) > 1:
            return self._run(connection, "DETACH other")
        others = [name for name in self._page_sizes if name != connection.databases[0]]
        if not others or connection.unsafe:
            return None
        return self._run(connection, f"ATTACH '{ROOT}/{self._rng.choice(others)}' AS other", ())

    def _definition(self, connection: _Connection) -> Step:
        if connection.unsafe:
            return self._plain(connection)
        return self._run(connection, self._sql.definition())

    def _select(self, connection: _Connection) -> Step | None:
        if connection.client.startswith("shell"):
            return None
        statement = "SELECT id, length(b) FROM t ORDER BY id"
        return Step("begin_select", connection.client, connection.number, (), {"statement": statement})

    def _fits(self, target: str, source: str) -> bool:
        """Whether a database may be put over another one."""
        sizes = self._page_sizes
        return PAGE_SIZE_CHANGES or target not in sizes or sizes[target] == sizes.get(source)

    def _backup(self, connection: _Connection) -> Step | None:
        source, target = connection.databases[0], self._rng.choice(DATABASES)
        if source == target or not self._fits(target, source) or source not in self._page_sizes:
            return None
        path = f"{ROOT}/{target}"
        if connection.client.startswith("apsw"):
            arguments = {"target": path, "pages": self._rng.choice((-1, 1, 7))}
            return Step("backup", connection.client, connection.number, (target,), arguments)
        if connection.client.startswith("shell"):
            if self._rng.random() < 0.5:
                return self._run(connection, f".backup {path}", (target,))
            if target in self._page_sizes and self._fits(source, target):
                return self._run(connection, f".restore {path}")
        return None

    # -- files -------------------------------------------------------------------------------------

    def _resting(self) -> list[str]:
        used = {name for connection in self._connections.values() for name in connection.databases}
        return [name for name in DATABASES if name not in used]

    def _put(self, command: str) -> Step | None:
        resting = self._resting()
        sources = [name for name in resting if name in self._page_sizes]
        pairs = [
            (source, target)
            for source in sources
            for target in resting
            if source != target and (command == "move" or self._fits(target, source))
        ]
        if not pairs:
            return None
        source, target = self._rng.choice(pairs)
        at_rest = [Step("rest", "", 0, (name,), {"path": f"{ROOT}/{name}"}) for name in (source, target)]
        if target not in self._page_sizes:
            del at_rest[1]
        self._planned += [
            *at_rest,
            Step("attempt", "", 0, (source, target), files(command, source, target)),
        ]
        return self._planned.popleft()

    def _copy(self) -> Step | None:
        return self._put("copy")

    def _move(self) -> Step | None:
        return self._put("move")

    def _remove(self) -> Step | None:
        names = [name for name in self._resting() if name in self._page_sizes]
        if not names:
            return None
        name = self._rng.choice(names)
        return Step("attempt", "", 0, (name,), files("remove", name))

    def _load(self) -> Step | None:
        targets = [name for name in self._resting() if name not in self._page_sizes]
        if not targets or not self._page_sizes:
            return None
        source, target = self._rng.choice(sorted(self._page_sizes)), self._rng.choice(targets)
        arguments = {"source": f"{ROOT}/{source}", "target": f"{ROOT}/{target}"}
        return Step("load", "", 0, (target,), arguments)

    # -- what came of it ---------------------------------------------------------------------------

    def observe(self, step: Step, outcome: Outcome, page_sizes: dict[str, int]) -> None:
        """``page_sizes``: what the databases of the step have now; one that is missing has no transaction."""
        for name in step.databases:
            if name in page_sizes:
                self._page_sizes[name] = page_sizes[name]
            else:
                self._page_sizes.pop(name, None)
        if step.action == "kill":
            for number in [c.number for c in self._connections.values() if c.client == step.client]:
                del self._connections[number]
            return
        if step.action == "open" and not outcome["error"]:
            made = _Connection(step.connection, step.client, [step.databases[0]])
            made.shared = "cache=shared" in step.arguments["uri"]
            self._connections[step.connection] = made
        connection = self._connections.get(step.connection)
        if connection is None:
            return
        if step.action == "close":
            del self._connections[step.connection]
            return
        connection.open = outcome["open"]
        if step.action.endswith("_select"):
            connection.selecting = step.action == "begin_select" and not outcome["error"]
        statement = step.arguments.get("statement", "")
        if outcome["error"]:
            return
        if statement.startswith(("PRAGMA journal_mode", "PRAGMA main.journal_mode")):
            connection.journal = outcome["rows"][0].strip("'\"")
        elif step.action == "burst":
            connection.journal = outcome["rows"][-2].strip("'\"")
        elif statement.startswith("ATTACH"):
            connection.databases.append(statement.split("'")[1].removeprefix(f"{ROOT}/"))
        elif statement.startswith("DETACH"):
            del connection.databases[1:]


_SAVEPOINTS = ("SAVEPOINT s", "SAVEPOINT s", "ROLLBACK TO s", "ROLLBACK TO s", "RELEASE s")
