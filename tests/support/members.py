"""A small member of an election: one "database" that is a file of tokens, replicated by reading the file.

Each node writes ``NAME.log`` (8 bytes for each commit), ``NAME.state`` (whom it follows) and ``NAME.acks``
(a line for each acknowledged commit) into one directory, where the others and the test read them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import trio

from litefs.clock import boottime_ns
from litefs.cluster.lease import Beat, Grant, PrimaryInfo
from litefs.errors import LiteFSError, PeerError
from litefs.types import START, Point

NAME = "db"
POLL_SECONDS = 0.005
TOKEN = 8


class Ack(NamedTuple):
    """An acknowledged commit: ``at`` CLOCK_BOOTTIME ns, when the gate let it pass."""

    at: int
    term: int
    token: str


class SmallMember:
    """Implements :class:`litefs.cluster.member.Member`. What ``fail`` names raises LiteFSError."""

    def __init__(self, directory: Path, name: str, node_id: int) -> None:
        self._directory = directory
        self.name = name
        self.node_id = node_id
        self.fail: set[str] = set()
        self.slow: dict[str, float] = {}
        """Seconds that a step takes, by its name."""
        self.calls: list[str] = []
        self.tokens: list[bytes] = []
        self._sums: list[int] = []
        self.serving = self.frozen = self.stuck = False
        self.deadline: float = 0
        self.term = 0
        self.cluster = ""
        self.sync: tuple[int, ...] | None = None
        self.beats: list[Beat] = []
        self.following: str | None = None
        if self._path("state").exists():
            self.cluster = json.loads(self._path("state").read_text())["cluster"]
        path = self._path("log")
        self._extend(path.read_bytes() if path.exists() else b"")
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._log = os.open(path, flags)
        self._acks = os.open(self._path("acks"), flags)
        self._tell()

    def _path(self, kind: str, name: str = "") -> Path:
        return self._directory / f"{name or self.name}.{kind}"

    def _extend(self, data: bytes) -> None:
        for offset in range(0, len(data) - len(data) % TOKEN, TOKEN):
            token = data[offset : offset + TOKEN]
            self.tokens.append(token)
            self._sums.append(zlib.crc32(token, self._sums[-1] if self._sums else 0))

    def _point(self, length: int) -> Point:
        return Point(length, 1 << 63 | self._sums[length - 1]) if length else START

    def _tell(self) -> None:
        """Publish whom this node follows."""
        state = {"node_id": self.node_id, "following": self.following, "cluster": self.cluster}
        temporary = self._path("state.tmp")
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self._path("state"))

    def _replicas(self) -> list[tuple[int, int]]:
        """(node id, length) of the nodes that follow this one and hold a part of its history."""
        found = []
        for path in self._directory.glob("*.state"):
            state = json.loads(path.read_text())
            log = self._path("log", path.stem)
            if state["following"] != self.name or path.stem == self.name or not log.exists():
                continue
            data = log.read_bytes()
            length = len(data) // TOKEN
            if not length or self.tokens[length - 1 : length] == [
                data[(length - 1) * TOKEN : length * TOKEN]
            ]:
                found.append((state["node_id"], length))
        return sorted(found, key=lambda item: item[1])

    # -- Member -----------------------------------------------------------------------------------------

    def positions(self) -> Mapping[str, Point]:
        return {NAME: self._point(len(self.tokens))} if self.tokens else {}

    def holds(self, name: str, point: Point) -> bool:
        return self._point(point.txid) == point

    def was_removed(self, name: str, position: Point) -> bool:
        return False

    def published(self) -> Mapping[str, Point]:
        replicas = self._replicas()
        length = replicas[-1][1] if replicas else len(self.tokens)
        return {NAME: self._point(length)} if length else {}

    def in_sync(self) -> tuple[int, ...] | None:
        return self.sync

    def recorded(self, beat: Beat) -> None:
        self.beats.append(beat)

    def successor(self) -> int | None:
        replicas = self._replicas()
        return replicas[-1][0] if replicas else None

    def cluster_id(self) -> str:
        return self.cluster

    def join(self, cluster_id: str) -> None:
        self.cluster = cluster_id
        self._tell()

    def extend(self, deadline_ns: float) -> None:
        self.deadline = deadline_ns

    async def _step(self, name: str) -> None:
        self.calls.append(name)
        await trio.sleep(self.slow.get(name, 0))
        if name in self.fail:
            raise LiteFSError(f"{name} fails")

    def is_stuck(self) -> bool:
        return self.stuck

    async def promote(self, grant: Grant) -> None:
        self.following = None
        self._tell()
        await self._step("promote")
        self.serving, self.frozen, self.term = True, False, grant.term
        self.deadline = grant.deadline_ns

    async def demote(self, reason: str) -> None:
        self.serving = False
        await self._step("demote")

    async def follow(self, primary: PrimaryInfo | None, term: int) -> None:
        await self._step("follow")
        self.following = primary.hostname if primary is not None else None
        self._tell()

    async def hold_requests(self) -> None:
        await self._step("hold_requests")

    async def freeze(self) -> None:
        await self._step("freeze")
        self.frozen = True

    async def await_target(self, node_id: int) -> None:
        await self._step("await_target")
        while (node_id, len(self.tokens)) not in self._replicas():
            await trio.sleep(POLL_SECONDS)

    async def thaw(self) -> None:
        await self._step("thaw")
        self.frozen = False

    async def request_handoff(self, primary: PrimaryInfo) -> None:
        await self._step("request_handoff")
        raise PeerError("this member reaches nobody")

    # -- what a node does beside ------------------------------------------------------------------------

    async def replicate(self) -> None:
        """Follow whom :attr:`following` names, until cancelled."""
        while True:
            if self.following is not None and not self.serving:
                self._copy(self.following)
            await trio.sleep(POLL_SECONDS)

    def _copy(self, primary: str) -> None:
        if not self.cluster:
            self.join(json.loads(self._path("state", primary).read_text())["cluster"])
        data = self._path("log", primary).read_bytes()
        length = len(self.tokens)
        if length and data[(length - 1) * TOKEN : length * TOKEN] != self.tokens[-1]:
            self.tokens, self._sums, length = [], [], 0
            os.ftruncate(self._log, 0)
        new = data[length * TOKEN : len(data) - len(data) % TOKEN]
        os.write(self._log, new)
        self._extend(new)

    async def write(self, pause: float) -> None:
        """Commit every ``pause`` seconds whenever the gate is open, until cancelled."""
        while True:
            self.commit()
            await trio.sleep(pause)

    def commit(self) -> bool:
        """One commit: refused, or logged and then acknowledged, each after a look at the clock."""
        if not self._passes():
            return False
        token = os.urandom(TOKEN)
        os.write(self._log, token)
        self._extend(token)
        if not (at := self._passes()):
            return False
        os.write(self._acks, f"{at} {self.term} {token.hex()}\n".encode())
        return True

    def _passes(self) -> int:
        """The time if a commit may be acknowledged now, else 0."""
        now = boottime_ns()
        return now if self.serving and not self.frozen and now < self.deadline else 0

    def close(self) -> None:
        os.close(self._log)
        os.close(self._acks)


def read_acks(directory: Path) -> list[Ack]:
    """What was acknowledged by anybody, in the order of the clock."""
    found = []
    for path in directory.glob("*.acks"):
        for line in path.read_text().splitlines():
            at, term, token = line.split()
            found.append(Ack(int(at), int(term), token))
    return sorted(found)
