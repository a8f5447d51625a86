"""A seeded history: transactions of a real SQLite client on a primary, and what each answer promised."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import apsw

from litefs.capture import journal, wal
from litefs.errors import LiteFSError
from litefs.store import fileops, log
from litefs.store.retention import reap
from tests.crash.recorder import Recorder
from tests.crash.vfs import Primary, finish

Statement = tuple[str, tuple[object, ...]]
MODES = ("delete", "truncate", "persist", "wal", "wal", "wal")
PAGE_SIZES = (512, 1024, 1024, 4096, 4096, 8192)
NEVER = 1 << 60
SCHEMA: tuple[Statement, ...] = (
    ("CREATE TABLE meta (n INTEGER)", ()),
    ("INSERT INTO meta VALUES (1)", ()),
    ("CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, v BLOB)", ()),
    ("CREATE INDEX by_k ON t (k)", ()),
)


@dataclass(frozen=True, slots=True)
class Config:
    """What stays the same during a run."""

    page_size: int
    mode: str
    synchronous: int
    exclusive: bool
    cache_size: int
    auto_vacuum: int
    autocheckpoint: int
    split: bool
    psow: bool
    segment_bytes: int
    big_commit: int
    one_write: int
    reaps: bool

    @classmethod
    def random(cls, rng: random.Random) -> Config:
        """One of many."""
        return cls(
            page_size=rng.choice(PAGE_SIZES),
            mode=rng.choice(MODES),
            synchronous=rng.choice((0, 1, 1, 2, 2, 3)),
            exclusive=rng.random() < 0.15,
            cache_size=rng.choice((2, 5, 100)),
            auto_vacuum=rng.choice((0, 0, 1, 2)),
            autocheckpoint=rng.choice((0, 4, 12, 1000)),
            split=rng.random() < 0.7,
            psow=rng.random() < 0.8,
            segment_bytes=rng.choice((8 << 10, 40 << 10, 16 << 20)),
            big_commit=rng.choice((4 << 10, 1 << 20)),
            one_write=rng.choice((3 << 10, 1 << 20)),
            reaps=rng.random() < 0.3,
        )

    @contextlib.contextmanager
    def limits(self) -> Iterator[None]:
        """Our own limits set low enough to matter for small databases."""
        wanted = (
            (log, "SEGMENT_BYTES", self.segment_bytes),
            (log, "ONE_WRITE_MAX", self.one_write),
            (wal, "BIG_COMMIT", self.big_commit),
            (journal, "BIG_COMMIT", self.big_commit),
            (wal, "PREALLOCATE", 16 << 10),
        )
        before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
        for module, name, value in wanted:
            setattr(module, name, value)
        try:
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)


@dataclass(slots=True)
class History:
    """What the client was told, by event number. State n is the database after n transactions; 0: none."""

    digests: dict[int, str] = field(default_factory=lambda: {0: ""})
    attempts: list[tuple[int, int, int]] = field(default_factory=list)
    """(state, first event, event at the answer) of each transaction that happened."""
    promises: list[tuple[int, int]] = field(default_factory=list)
    """(event, state): from that event on this state survives a power failure."""

    def between(self, event: int, *, power: bool) -> tuple[int, int]:
        """The oldest and the newest state that may be found after a crash behind so many events."""
        answered = max((state for state, _, end in self.attempts if end <= event), default=0)
        newest = max((state for state, begin, _ in self.attempts if begin < event), default=0)
        if not power:
            return answered, newest
        return max((state for at, state in self.promises if at <= event), default=0), newest


class Client:
    """The application: its connection, and a model of what the database must hold."""

    def __init__(self, primary: Primary, recorder: Recorder, config: Config, rng: random.Random) -> None:
        self.primary, self.recorder, self.config, self.rng = primary, recorder, config, rng
        self.history = History()
        self.state = 0
        self.mode = config.mode
        self.model = apsw.Connection(":memory:")
        self.connection: apsw.Connection | None = None
        self.stopped = ""
        self._synced = 0

    # -- one step ----------------------------------------------------------------------------------

    def step(self) -> None:
        """One transaction or one act of maintenance. Never raises what SQLite reports."""
        begin = len(self.recorder.events)
        statements: list[Statement] = []
        try:
            connection = self._open()
            if self.state == 0 or self.rng.random() < 0.75:
                statements = self._statements()
                self._run(connection, statements)
            else:
                self._maintain(connection)
        except apsw.Error:
            self._failed(begin, statements)
            return
        self._note_syncs()
        if statements:
            self._happened(begin, statements)
            durable = self.config.synchronous >= (2 if self._mode(connection) == "wal" else 1)
            if durable:
                self.history.promises.append((len(self.recorder.events), self.state))
        if self.primary.watch.broken:
            self._mend(connection)

    def _mend(self, connection: apsw.Connection) -> None:
        """Empty a WAL that SQLite could not recover, as the node process does when it is told."""
        with contextlib.suppress(apsw.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.primary.watch.broken = False

    def _open(self) -> apsw.Connection:
        if self.connection is None:
            self.connection = self.primary.connect()
            config = self.config
            for pragma in (
                f"page_size={config.page_size}",
                f"auto_vacuum={config.auto_vacuum}",
                f"synchronous={config.synchronous}",
                f"cache_size={config.cache_size}",
                "cache_spill=1",
                "temp_store=2",
                f"locking_mode={'exclusive' if config.exclusive else 'normal'}",
                f"wal_autocheckpoint={config.autocheckpoint}",
                f"journal_mode={self.mode}",
            ):
                self.connection.execute(f"PRAGMA {pragma}").fetchall()
        return self.connection

    def close(self) -> None:
        """Close the connection; SQLite checkpoints then, and reports no error."""
        if self.connection is not None:
            with contextlib.suppress(apsw.Error):
                self.connection.close(True)
            self.connection = None
            self._note_syncs()

    def _mode(self, connection: apsw.Connection) -> str:
        return str(connection.execute("PRAGMA journal_mode").get)

    def _note_syncs(self) -> None:
        """A sync that was answered with success promises what was answered before it."""
        if self.primary.synced != self._synced:
            self._synced = self.primary.synced
            self.history.promises.append((len(self.recorder.events), self.state))

    def _happened(self, begin: int, statements: list[Statement]) -> None:
        self.state += 1
        execute(self.model, statements)
        self.history.digests[self.state] = digest(self.model)
        self.history.attempts.append((self.state, begin, len(self.recorder.events)))

    def _unknown(self, begin: int, statements: list[Statement]) -> None:
        """The database was stopped by this transaction, which may be in the log: the next start will tell."""
        execute(self.model, statements)
        self.history.digests[self.state + 1] = digest(self.model)
        self.history.attempts.append((self.state + 1, begin, NEVER))

    # -- what may go wrong -------------------------------------------------------------------------

    def _failed(self, begin: int, statements: list[Statement]) -> None:
        """Find out what became of a step that was answered with an error, as applications must."""
        self._note_syncs()  # whether one of them came behind the commit is not known: it promises no more
        fault, self.recorder.fault = self.recorder.fault, None
        assert fault is not None or self.stopped, f"an error without a cause: {self.primary.errors}"
        if self.connection is not None:
            if self.connection.in_transaction:
                with contextlib.suppress(apsw.Error):
                    self.connection.execute("ROLLBACK")
            if self.config.exclusive or self.rng.random() < 0.5:
                self.close()
        self.primary.publish()
        self.stopped = self.primary.db.stopped or ""
        try:
            found = self.seen()
        except apsw.IOError:
            # The journal of a logged commit that could not be ended is left for recovery.
            assert self.stopped
            assert self.primary.dir.journal.exists()
            found = self.state
        else:
            assert found in (self.state, self.state + bool(statements)), f"{found} after {self.state}"
            if found > self.state:
                self._happened(begin, statements)
            assert self.check() == self.history.digests[self.state]
        if self.stopped and statements and found == self.state:
            self._unknown(begin, statements)
        if fault is not None and fault.count > 0 and self.rng.random() < 0.7:
            self.recorder.fault = fault

    def seen(self) -> int:
        """The state that a client sees."""
        if self.config.exclusive and self.connection is not None:
            return state_of(self.connection)
        with self._fresh() as fresh:
            return state_of(fresh)

    def check(self) -> str:
        """The digest of what a client sees, found intact."""
        if self.config.exclusive and self.connection is not None:
            return intact(self.connection)
        with self._fresh() as fresh:
            return intact(fresh)

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[apsw.Connection]:
        """Another client. If its checkpoint or unlink at the close fails SQLite says nothing; apsw does."""
        fresh = self.primary.connect()
        try:
            yield fresh
        finally:
            with contextlib.suppress(apsw.Error):
                fresh.close(True)

    # -- what clients and housekeeping do ----------------------------------------------------------

    def _statements(self) -> list[Statement]:
        rng = self.rng
        if self.state == 0:
            return list(SCHEMA)
        statements: list[Statement] = [("UPDATE meta SET n = n + 1", ())]
        for _ in range(rng.randint(1, 4)):
            statements += self._change()
        if rng.random() < 0.1:
            statements += [("SAVEPOINT s", ()), *self._change(), *self._change(), ("ROLLBACK TO s", ())]
            statements += [*self._change(), ("RELEASE s", ())]
        return statements

    def _change(self) -> list[Statement]:
        rng = self.rng
        size = rng.choice((10, 200, 3000, 20000)) if rng.random() < 0.9 else 90000
        value = rng.randbytes(size) if rng.random() < 0.7 else bytes(size)
        match rng.randrange(6):
            case 0 | 1 | 2:
                return [("INSERT INTO t (k, v) VALUES (?, ?)", (rng.randrange(100), value))]
            case 3:
                return [("UPDATE t SET k = ?, v = ? WHERE id % 7 = ?", (rng.randrange(100), value, 3))]
            case 4:
                return [("DELETE FROM t WHERE id % 5 = ?", (rng.randrange(5),))]
            case _:
                return [("UPDATE t SET k = k + 1 WHERE id % 3 = ?", (rng.randrange(3),))]

    def _run(self, connection: apsw.Connection, statements: list[Statement]) -> None:
        connection.execute("BEGIN")
        if self.rng.random() < 0.1:
            execute(connection, self._statements() if self.state else [])
            connection.execute("ROLLBACK")
            connection.execute("BEGIN")
        execute(connection, statements)
        connection.execute("COMMIT")

    def _maintain(self, connection: apsw.Connection) -> None:
        match self.rng.randrange(10):
            case 0 | 1:
                how = self.rng.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
                connection.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
            case 2:
                self.close()
            case 3:
                connection.execute("VACUUM")
            case 4:
                connection.execute("PRAGMA incremental_vacuum(3)").fetchall()
            case 5:
                self.mode = self.rng.choice(MODES)
                connection.execute(f"PRAGMA journal_mode={self.mode}").fetchall()
            case 6 | 7:
                connection.execute("PRAGMA journal_mode=delete").fetchall()
                connection.execute(f"PRAGMA page_size={self.rng.choice(PAGE_SIZES)}")
                connection.execute("VACUUM")
                connection.execute(f"PRAGMA journal_mode={self.mode}").fetchall()
            case _:
                self.housekeeping()

    def housekeeping(self) -> None:
        """What the fs process and the node process do now and then: note what is durable, reap the log."""
        try:
            finish(self.primary.capture.mend())
            if (txid := self.primary.capture.begin_sync()) is not None:
                fileops.fdatasync(self.primary.fd)
                self.primary.capture.end_sync(txid)
            if self.config.reaps:
                reap(self.primary.dir.log, self.primary.db.sums, -1, 0)
        except (OSError, LiteFSError) as error:
            raise apsw.IOError(str(error)) from error


def execute(connection: apsw.Connection, statements: list[Statement]) -> None:
    """Run them one by one."""
    for sql, values in statements:
        connection.execute(sql, values).fetchall()


def state_of(connection: apsw.Connection) -> int:
    """The number of transactions that a database says to have had."""
    tables = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").get
    return int(connection.execute("SELECT n FROM meta").get) if tables else 0


def digest(connection: apsw.Connection) -> str:
    """A hash of all that the database holds; empty for one without tables."""
    if not state_of(connection):
        return ""
    content = hashlib.sha256()
    for sql in ("SELECT n FROM meta", "SELECT id, k, v FROM t ORDER BY id", "SELECT sql FROM sqlite_schema"):
        for row in connection.execute(sql):
            content.update(repr(row).encode())
    return content.hexdigest()


def intact(connection: apsw.Connection) -> str:
    """``digest``, after an integrity check."""
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    return digest(connection)
