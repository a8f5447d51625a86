"""A node without store and mount behind the real server, on a loopback socket."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from tempfile import TemporaryFile
from typing import IO

import httpx
import trio

from litefs.cluster.replicas import Replicas
from litefs.config_http import TLSConfig
from litefs.errors import DatabaseNotFound, NotPrimary
from litefs.link.rules import SyncRules
from litefs.meters import Meters
from litefs.server.app import create_app
from litefs.server.event_hub import Begin, EventHub
from litefs.server.serve import bind, serve
from litefs.server.status_format import DatabaseStatus, NodeStatus, PrimaryStatus, ReplicaStatus, Status
from litefs.server.view import ArchiveFigures, DatabaseInfo, DrillFigures, Export, HaltGrant, NodeFigures
from litefs.server.waiting import Waiting
from litefs.stream.memory import MemoryCatalog
from litefs.stream.protocols import Entry, Identity
from litefs.tls import ServerTLS
from litefs.tokens import Tokens
from litefs.types import Position

CLUSTER = "LFSC0123456789ABCDEF"
STOP_SECONDS = 2.0
OTHER_CLUSTER = "LFSCFEDCBA9876543210"


class FakeNode:
    """NodeView with plain attributes; imported bytes are kept in ``imported``."""

    def __init__(self, catalog: MemoryCatalog | None = None, *, node_id: int = 0xA1) -> None:
        self.identity = Identity(node_id, CLUSTER, 1, "primary-host")
        self.is_primary = True
        self.candidate = True
        self.mountpoint = "/litefs"
        self.primary_hostname: str | None = None
        self.catalog = catalog or MemoryCatalog()
        self.snapshot_seconds = math.inf
        self.measured = Meters()
        self.lag_seconds: float | None = 0.25
        self.seen_term = 0
        self.unpublished = False
        self.looks = 0
        self.reasons: list[str] = []
        self.complaint = ""
        self.drilled: list[DrillFigures] = []
        self.archive_figures: list[ArchiveFigures] = []
        self.damaged: set[str] = set()
        self.unknown: set[Position] = set()
        self.imported: dict[str, bytes] = {}
        self.import_gate = trio.Event()
        self.import_gate.set()
        self.exports: list[IO[bytes]] = []
        self.waiting = Waiting(self.catalog, self.readers_see)
        self.events = EventHub(self._begin)
        self.replicas = Replicas(self.catalog, SyncRules(), lambda: self.identity, lambda message: None)

    def databases(self) -> Sequence[DatabaseInfo]:
        return [
            DatabaseInfo(
                name,
                source.position(),
                commits=7,
                log_segments=2,
                log_bytes=4096,
                first_txid=1,
                damaged=name in self.damaged,
            )
            for name, source in self.catalog.sources().items()
        ]

    held_up: Sequence[str] = ()

    def _begin(self) -> Begin:
        positions = {name: str(source.position()) for name, source in self.catalog.sources().items()}
        return Begin(self.is_primary, self.primary_hostname, positions)

    def locks(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        return {name: {"pending": "unlocked"} for name in names}

    def meters(self) -> Meters:
        return self.measured

    def figures(self) -> NodeFigures:
        return NodeFigures(term=3, role_changes=2, ready=True, lost=1)

    def status(self, databases: Sequence[DatabaseInfo]) -> Status:
        found = [
            DatabaseStatus(
                one.name,
                f"{one.position.txid:016x}",
                f"{one.position.checksum:016x}",
                512,
                1,
                0,
                1,
                7,
                False,
                "off",
            )
            for one in databases
        ]
        own = NodeStatus("A1", "host", "1", "primary", True, "/litefs", 1, "static", 1.5, True, CLUSTER)
        held = {one.name: "0000000000000001" for one in databases}
        replica = ReplicaStatus("B2", "replica", True, False, held)
        return Status(own, PrimaryStatus("host", "http://host:1", True), 0.0, found, [replica], ["who"])

    def lacks(self) -> Sequence[str]:
        return []

    async def drop_database(self, name: str) -> None:
        if self.imported.pop(name, None) is None:
            raise DatabaseNotFound(f"{name}: database not found")

    async def archive_snapshot(self, name: str) -> dict[str, int]:
        sources = self.catalog.sources()
        if name and name not in sources:
            raise DatabaseNotFound(f"{name}: database not found")
        return {one: source.position().txid for one, source in sources.items() if name in ("", one)}

    def archived(self) -> Sequence[ArchiveFigures]:
        return self.archive_figures

    def drills(self) -> Sequence[DrillFigures]:
        return self.drilled

    async def before_stream(self) -> None:
        pass

    def saw_term(self, term: int) -> None:
        self.seen_term = max(self.seen_term, term)

    async def handoff(self, node_id: int | None) -> None:
        raise NotImplementedError

    async def promote(self, *, force: bool) -> str:
        raise NotImplementedError

    async def halt(self, name: str, lock_id: int, peer: Identity | None, renew: bool) -> HaltGrant:
        raise NotImplementedError

    async def unhalt(self, name: str, lock_id: int, peer: Identity | None) -> None:
        raise NotImplementedError

    async def forward(
        self, name: str, lock_id: int, peer: Identity, chunks: AsyncIterable[bytes], size: int
    ) -> Entry:
        raise NotImplementedError

    async def readers_see(self, name: str) -> bool:
        self.looks += 1
        await trio.sleep(0.001)
        return not self.unpublished

    async def holds(self, name: str, position: Position) -> bool:
        return position not in self.unknown

    def unready(self) -> Sequence[str]:
        return self.reasons

    async def unhealthy(self) -> str:
        return self.complaint

    async def import_database(
        self, name: str, chunks: AsyncIterable[bytes], *, check: bool, peer: bool
    ) -> Position:
        if not self.is_primary:
            raise NotPrimary("lease expired")
        await self.import_gate.wait()
        content = bytearray()
        async for chunk in chunks:
            content += chunk
        self.imported[name] = bytes(content)
        self.checked = check
        return Position(1, 1 << 63)

    async def export_database(self, name: str, *, check: bool) -> Export:
        if name not in self.imported:
            raise DatabaseNotFound("database not found")
        file = TemporaryFile()  # noqa: SIM115 - the answer closes it
        file.write(self.imported[name])
        file.seek(0)
        self.exports.append(file)
        return Export(file, len(self.imported[name]))


@asynccontextmanager
async def serving(
    node: FakeNode,
    tls: TLSConfig | None = None,
    tokens: Tokens | None = None,
    *,
    opened: Iterable[str] = (),
) -> AsyncIterator[str]:
    """The node's base URL while it is served; stopping must take less than 2 s."""
    sockets = bind("127.0.0.1:0")
    port = sockets[0].getsockname()[1]
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            serve,
            create_app(node, tokens, opened=opened),
            sockets,
            stop,
            None if tls is None else ServerTLS(tls),
        )
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
        finally:
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + STOP_SECONDS
    assert not nursery.cancel_scope.cancelled_caught, "the server did not stop in time"


def client(**options: object) -> httpx.AsyncClient:
    """An HTTP/2 client by prior knowledge."""
    settings: dict[str, object] = {"http1": False, "http2": True, "timeout": 5, "trust_env": False}
    return httpx.AsyncClient(**(settings | options))  # type: ignore[arg-type]


def load(text: str) -> dict[str, object]:
    """JSON object from text."""
    value = json.loads(text)
    assert isinstance(value, dict)
    return value
