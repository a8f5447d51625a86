"""A primary by configuration takes back what it lost to a power failure, before its mount serves.

Nobody else can become primary of a static lease, so only its replicas may still have the commits that it
answered and that its disk had not yet (docs/failover.md). For a bounded time they are asked; of each database
the longest tail that follows on the log is appended to it, and recovery does the rest.
"""

from __future__ import annotations

import itertools
import logging
import socket
from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from litefs.errors import LiteFSError, NotPrimary, PositionMismatch
from litefs.security import Security
from litefs.server.serve import serve
from litefs.server.takeback import STARTING, create_app
from litefs.store import fileops
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.segments import list_segments, segment_path
from litefs.store.streamed import Streamed
from litefs.store.sums import SumsFile
from litefs.store.tails import append_tail, check_tail
from litefs.stream.protocols import Identity
from litefs.types import Position

log = logging.getLogger("litefs.node")

RECEIVE_SECONDS = 60.0
"""How long tails that are on their way when the time is over may take to arrive."""


@dataclass(frozen=True, slots=True)
class _Tail:
    path: Path
    tip: Position


class TakeBack:
    """Implements :class:`litefs.server.takeback.Tails` while ``run`` is under way."""

    def __init__(
        self, data: DataDir, security: Security, identity: Callable[[], Identity], seconds: float
    ) -> None:
        """``seconds``: how long replicas are waited for; 0: not at all."""
        self._data = data
        self._security = security
        self._identity = identity
        self._seconds = seconds
        self._streamed = Streamed(data)
        self._spool = data.path / "tails"
        self._numbers = itertools.count()
        self._logs: dict[str, Log] = {}
        """Databases that may lack their end, which nobody else has open."""
        self._best: dict[str, _Tail] = {}
        self._receiving = 0
        self._received = trio.Event()
        self._open = False

    @property
    def identity(self) -> Identity:
        return self._identity()

    async def before_stream(self) -> None:
        """A replica is about to be sent commits that this node's disk may not have yet. Raises OSError."""
        await trio.to_thread.run_sync(self._streamed.note)

    async def run(self, sockets: list[socket.socket], stop: trio.Event) -> None:
        """Return when the logs hold what can be had of them, or ``stop`` is set. Nothing may serve the
        databases meanwhile; replicas are heard on ``sockets``, which stay open."""
        if not self._streamed.before_this_boot():
            return
        try:
            if self._seconds:
                await trio.to_thread.run_sync(self._open_logs)
            if self._logs:
                await self._collect(sockets, stop)
            if stop.is_set():
                return
            await trio.to_thread.run_sync(self._append)
        finally:
            for opened in self._logs.values():
                opened.close()
            self._logs.clear()
            fileops.remove_tree(self._spool)
        self._streamed.clear()

    # -- the logs -----------------------------------------------------------------------------------

    def _open_logs(self) -> None:
        fileops.remove_tree(self._spool)
        for name in self._data.names():
            try:
                opened = _open_if_unclean(self._data.database_dir(name))
            except (LiteFSError, OSError) as error:
                log.debug("%s: cannot be completed: %s", name, error)  # recovery will say more
                continue
            if opened is not None:
                self._logs[name] = opened
                if opened.cut is not None:
                    log.warning("recovery: %s: torn log tail: %s", name, opened.cut)

    def _append(self) -> None:
        for name, tail in self._best.items():
            lost = tail.tip.txid - self._logs[name].tip.txid
            try:
                append_tail(self._logs[name], tail.path, tail.tip)
            except (LiteFSError, OSError) as error:
                log.error("%s: what a replica gave back could not be logged: %s", name, error)
            else:
                log.warning("%s: took back %d lost transactions, now at %s", name, lost, tail.tip)

    # -- replicas -----------------------------------------------------------------------------------

    async def _collect(self, sockets: list[socket.socket], stop: trio.Event) -> None:
        log.warning(
            "the machine went down without a clean stop: waiting %g s for replicas that may have more",
            self._seconds,
        )
        app, done = create_app(self, self._security.tokens), trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, [one.dup() for one in sockets], done, self._security.tls)
            self._open = True
            with trio.move_on_after(self._seconds):
                await stop.wait()
            self._open = False
            with trio.move_on_after(RECEIVE_SECONDS):
                while self._receiving and not stop.is_set():
                    await self._received.wait()
            done.set()

    def wanted(self, held: Mapping[str, Position]) -> Mapping[str, Position]:
        """As :class:`litefs.server.takeback.Tails` says."""
        if not self._open:
            return {}
        return {
            name: opened.tip
            for name, opened in self._logs.items()
            if name in held and held[name].txid > self._reached(name).txid
        }

    def _reached(self, name: str) -> Position:
        return self._best[name].tip if name in self._best else self._logs[name].tip

    async def take(self, name: str, after: Position, chunks: AsyncIterable[bytes]) -> Position:
        """As :class:`litefs.server.takeback.Tails` says."""
        if not self._open:
            raise NotPrimary(STARTING)
        if name not in self._logs or self._logs[name].tip != after:
            raise PositionMismatch(f"{name}: this node is not at {after}")
        path = segment_path(self._spool / str(next(self._numbers)), after.txid + 1)
        self._receiving += 1
        try:
            await trio.to_thread.run_sync(_make_parents, path)
            async with await trio.open_file(path, "wb") as file:
                async for chunk in chunks:
                    await file.write(chunk)
            tip = await trio.to_thread.run_sync(check_tail, path, after)
            if tip.txid > self._reached(name).txid:
                self._best[name] = _Tail(path, tip)
        finally:
            self._receiving -= 1
            self._received.set()
            self._received = trio.Event()
        return tip


def _open_if_unclean(directory: DatabaseDir) -> Log | None:
    """The log of a database, unless that was stopped cleanly, has no log, or waits for a snapshot to be put
    in place. Raises LiteFSError, OSError."""
    if not list_segments(directory.log) or directory.install.exists():
        return None
    sums = SumsFile(directory.sums, create=True)
    try:
        return None if sums.sums.clean else Log.open(directory.log, synced_txid=sums.sums.synced_txid)
    finally:
        sums.close()


def _make_parents(path: Path) -> None:
    path.parent.mkdir(parents=True)
