"""A node whose role a test decides: ``python -m tests.support.steered CONFIG SOCKET``.

It runs as a replica of nobody. Each connection to the unix socket brings one JSON line and takes one:
``["promote", TERM]``, ``["demote"]``, ``["follow", URL or null, TERM]``, ``["freeze"]``, ``["thaw"]``,
``["await", NODE ID]``,
``["status"]``. What the steps of an election would check is not checked here.
"""

from __future__ import annotations

import json
import math
import os
import sys

import trio

from litefs import logs
from litefs.cluster.lease import Grant, PrimaryInfo
from litefs.config import Config, load
from litefs.housekeeping import raise_file_limit
from litefs.leading import Leading
from litefs.link.messages import LogOptions
from litefs.node import Node
from litefs.store.paths import DataDir


class Unled(Leading):
    """Gives no role, and names no primary."""

    def grant(self) -> Grant | None:
        return None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()


class Steered(Node):
    """A node that begins as a replica and does what it is told; a candidate for all that."""

    def __init__(self, config: Config, data: DataDir, lock_fd: int) -> None:
        super().__init__(config, data, lock_fd)
        self._leading = Unled(config, self.roles, self.identity.node_id)

    async def steer(self, request: list[object]) -> object:
        """One step; returns what is answered."""
        match request:
            case ["promote", int(term)]:
                self._ensure_cluster_id()
                await self.roles.promote(Grant(term, math.inf))
            case ["demote"]:
                await self.roles.demote("the test says so")
            case ["follow", url, int(term)]:
                await self.roles.follow(PrimaryInfo("leader", str(url)) if url else None, term)
            case ["freeze"]:
                await self.roles.freeze()
            case ["await", int(node_id)]:
                await self.roles.await_target(node_id)
            case ["thaw"]:
                await self.roles.thaw()
            case ["status"]:
                return {
                    "leads": self.roles.leads,
                    "settled": self.roles.is_settled,
                    "held_up": self.roles.held_up,
                    "restarts": self._guard.restarts,
                    "node_id": self.identity.node_id,
                    "successor": self.roles.successor(),
                }
            case _:
                raise ValueError(f"no such step: {request}")
        return None


async def serve(node: Steered, path: str) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            line = b""
            while not line.endswith(b"\n"):
                line += await stream.receive_some()
            try:
                result = {"result": await node.steer(json.loads(line))}
            except Exception as error:
                result = {"error": repr(error)}
            await stream.send_all(json.dumps(result).encode() + b"\n")

    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener:
        await listener.bind(path)
        listener.listen()
        await trio.serve_listeners(answer, [trio.SocketListener(listener)])


async def main(config: Config, path: str) -> int:
    data = DataDir(config.data.dir)
    lock_fd = data.lock()
    raise_file_limit()
    try:
        node = Steered(config, data, lock_fd)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, node, path)
            code = await node.run(None)
            nursery.cancel_scope.cancel()
        return code
    finally:
        os.close(lock_fd)


if __name__ == "__main__":
    logs.setup(LogOptions())
    sys.exit(trio.run(main, load(sys.argv[1]).config, sys.argv[2]))
