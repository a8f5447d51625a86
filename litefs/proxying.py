"""The proxy in its node: what it is told, when it listens, and what of a change of role waits for it."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Mapping

import trio
from hypercorn.typing import ASGIFramework

from litefs.answers import Answers
from litefs.config import Config, split_address
from litefs.proxy.entrance import Entrance
from litefs.proxy.forward import PATH, Forwarder, Leader
from litefs.proxy.listener import Listener
from litefs.proxy.service import Proxy
from litefs.proxy.target import Target
from litefs.replica import Replica
from litefs.security import Security
from litefs.server.positions import reached
from litefs.server.replication import check_replica
from litefs.server.serve import bind
from litefs.stream.protocols import Identity

log = logging.getLogger("litefs.proxy")

HOLD_SECONDS = 2.0
"""How long the writes that are at the application may take to end before the role is passed on; new ones wait
meanwhile. At most half of ``proxy.primary-redirect-timeout``: those must not be refused."""


class NodeOfProxy:
    """The node as its proxy sees it; implements :class:`litefs.proxy.view.ProxiedNode`."""

    def __init__(self, answers: Answers, replica: Replica) -> None:
        self._answers = answers
        self._replica = replica
        self._shown: dict[str, int] = {}
        """By database the last transaction that readers were found to see."""
        self._current = -math.inf
        """When this node was last known to have all that there was (time.monotonic)."""

    @property
    def identity(self) -> Identity:
        return self._answers.identity

    @property
    def is_primary(self) -> bool:
        return self._answers.is_primary

    @property
    def primary(self) -> Leader | None:
        found = self._replica.primary
        return None if found is None else Leader(found.hostname, found.advertise_url)

    @property
    def lag_seconds(self) -> float:
        lag, now = self._answers.lag_seconds, time.monotonic()
        if lag is not None:
            self._current = now - lag
        return now - self._current

    def was_primary(self) -> None:
        """Until now it had all that there was."""
        self._current = time.monotonic()

    def txid(self, name: str) -> int:
        try:
            return self._answers.catalog.position(name).txid
        except TimeoutError:  # the fs process died inside an update of it
            return 0

    def shows(self, name: str, txid: int) -> bool:
        # the position goes back when this node takes another history
        return txid <= min(self._shown.get(name, 0), self.txid(name))

    async def reached(self, name: str, txid: int, seconds: float) -> None:
        position = await reached(self._answers, name, txid, None, seconds)
        self._shown[name] = position.txid

    def check_forwarder(self, peer: Identity) -> None:
        own = self.identity
        if peer.cluster_id and peer.cluster_id == own.cluster_id:
            self._answers.saw_term(peer.term)
        check_replica(own, self.is_primary, peer)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._answers.catalog.listen(callback)


class Proxying:
    """The proxy of a node, if ``proxy.target`` is set; else all of this does nothing."""

    def __init__(self, config: Config, security: Security, answers: Answers, replica: Replica) -> None:
        self._config = config.proxy
        self._sockets: list[socket.socket] = []
        self._begun = trio.Event()
        self._standing: tuple[bool, Leader | None] = False, None
        self._proxy: Proxy | None = None
        self.routes: Mapping[str, ASGIFramework] = {}
        """For the API port: where other nodes forward requests to."""
        if not self._config.target:
            return
        self._node = NodeOfProxy(answers, replica)
        self._target = Target(*split_address(self._config.target, "proxy.target"))
        self._forwarder = Forwarder(security.peer.tokens, security.peer.tls, lambda: answers.identity)
        self._proxy = Proxy(self._config, self._node, self._target, self._forwarder)
        self._listener = Listener(self._proxy)
        self.routes = {PATH: Entrance(self._proxy, self._node)}

    def bind(self) -> None:
        """Take the port, so that a mistake is known before anything else begins. Raises LiteFSError."""
        if self._proxy is not None:
            self._sockets = bind(self._config.addr, "proxy.addr", listen=False)

    def begin(self) -> None:
        """Serve clients from now on."""
        self._begun.set()

    async def run(self) -> None:
        """Serve clients after :meth:`begin`; until cancelled."""
        if self._proxy is None:
            return
        unlisten = self._node.listen(self._look)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._forwarder.run)
                nursery.start_soon(self._target.sweep)
                await self._begun.wait()
                log.info("proxy: %s to %s", self._config.addr, self._config.target)
                await self._listener.serve(self._sockets)
                await trio.sleep_forever()
        finally:
            unlisten()
            for sock in self._sockets:
                sock.close()

    def _look(self) -> None:
        """Wake writes that wait for a primary, but not for each transaction that is noted meanwhile."""
        assert self._proxy is not None
        standing = self._node.is_primary, self._node.primary
        if standing != self._standing:
            if self._standing[0] and not standing[0]:
                self._node.was_primary()
            self._standing = standing
            self._proxy.gate.wake()

    async def finish(self) -> None:
        """Answer what is under way, take nothing new; bounded. Harmless if repeated."""
        if self._proxy is not None and self._begun.is_set():
            await self._listener.finish()

    async def hold(self) -> None:
        """The role is about to be passed on: let no write begin, and return when those that have are over."""
        if self._proxy is not None:
            await self._proxy.gate.hold(min(HOLD_SECONDS, self._proxy.redirect_timeout / 2))

    def resume(self) -> None:
        """The role was passed on, or stays here: let writes go their way."""
        if self._proxy is not None:
            self._proxy.gate.release()
            if not self._node.is_primary:
                self._proxy.gate.end_tunnels()
