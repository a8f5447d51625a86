"""The proxy: answers its clients' requests by the rules, from the application here or beside the primary."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import h11
import trio

from litefs.client import cookie
from litefs.config_proxy import FLY_REPLAY, ProxyConfig
from litefs.errors import DatabaseNotFound, WaitTimeout
from litefs.proxy.exchange import Incoming, exchange, respond, serialized, tunnel
from litefs.proxy.fields import Client, Fields, inbound, refusal, upgrades
from litefs.proxy.forward import Forwarder, Leader, Unprocessed
from litefs.proxy.gate import Gate, Pass
from litefs.proxy.link import ClientFault, Duplex, Link, TargetFault, client_end
from litefs.proxy.requests import Times
from litefs.proxy.rules import Kind, Rules
from litefs.proxy.target import Target
from litefs.proxy.view import ProxiedNode

log = logging.getLogger("litefs.proxy")

READ_WAIT_SECONDS = 5.0
"""How long a read waits for what its client wrote; Go LiteFS's."""
LOOK_SECONDS = 0.25
"""After which a read looks whether this node has become the primary meanwhile."""
DOUBT_SECONDS = 3.0
"""By how much the lag may be wrong: it is told once a second, by the clocks of two nodes."""
RETRY_SECONDS = 0.1
"""Before a write that waits for a primary is tried again, if nothing tells of a change."""


@dataclass(slots=True, eq=False)
class Visit:
    """A request, from its reading to its answer. One that another node forwarded has no ``client``, and was
    ``admitted`` by the gate."""

    front: Link
    incoming: Incoming
    client: Client | None = None
    admitted: Pass | None = None
    way: list[str] = field(default_factory=list)
    """What became of it, for ``proxy.debug``."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_tunnel: bool = False
    """It is no request any more, and may never end."""

    @property
    def request(self) -> h11.Request:
        return self.incoming.request

    def __str__(self) -> str:
        method, target = self.request.method, self.request.target
        return f"{method.decode('ascii', 'replace')} {target.decode('latin-1')[:200]}"


def _still_there(visit: Visit, since: float) -> None:
    """What waited ``since`` then is for nobody, and may have been asked again elsewhere, if its client has
    left: then raises ClientFault. One that ended only its own side, but had not to wait, gets its answer."""
    if trio.current_time() - since >= RETRY_SECONDS and visit.front.has_left():
        raise ClientFault("the client left before its request was passed on")


class Proxy:
    """Answers requests, whoever accepted their connections."""

    def __init__(self, config: ProxyConfig, node: ProxiedNode, target: Target, forwarder: Forwarder) -> None:
        self._config = config
        self._rules = Rules(config)
        self._databases = config.databases
        self._node = node
        self._target = target
        self._forwarder = forwarder
        self.times = Times.of(config)
        self.redirect_timeout = float(config.primary_redirect_timeout)
        """Seconds that a write waits for a primary."""
        self.gate = Gate()
        self.closing = False
        """Connections end with the request that they are at."""

    async def answer(self, visit: Visit) -> bool:
        """Answer one request; whether its connection may carry another one. Raises ClientFault."""
        begin = trio.current_time()
        visit.scope.deadline = begin + self.times.write
        try:
            with visit.scope:
                if (reason := refusal(visit.request)) is not None:
                    await respond(visit.front, *reason, [(b"Connection", b"close")])
                elif visit.admitted is not None:
                    await self._admitted(visit, visit.admitted)
                else:
                    await self._by_rule(visit)
            if visit.scope.cancelled_caught:
                raise ClientFault("Proxy timeout: no response within proxy.write-timeout", 504)
        except TargetFault as fault:
            log.warning("proxy: %s: %s", visit, fault)
            if visit.front.conn.our_state is not h11.SEND_RESPONSE:
                raise ClientFault("the response ended early") from fault
            await self._respond(visit, fault.http_status, str(fault))
        finally:
            if self._config.debug:
                seconds = trio.current_time() - begin
                log.info("proxy: %s: %s, %.1f ms", visit, ", ".join(visit.way), 1000 * seconds)
        return visit.front.is_reusable and not self.closing

    async def _by_rule(self, visit: Visit) -> None:
        kind = self._rules.kind(visit.request.method, visit.request.target)
        visit.way.append(kind.value)
        match kind:
            case Kind.HEALTH:
                await self._health(visit)
            case Kind.PASS:
                await self._to_target(visit, self._last)
            case Kind.READ:
                added = await self._caught_up(visit)
                if added is not None:
                    await self._to_target(visit, added)
            case Kind.WRITE:
                await self._write(visit)

    async def _health(self, visit: Visit) -> None:
        if 0 < self._config.max_lag < self._node.lag_seconds:
            await self._respond(visit, 503, "Replication lag exceeded")
        else:
            await self._respond(visit, 200, "OK")

    async def _respond(self, visit: Visit, status: int, text: str, fields: Fields | None = None) -> None:
        visit.way.append(str(status))
        await respond(visit.front, status, text, [*(fields or ()), *self._last()])

    def _last(self) -> Fields:
        return [(b"Connection", b"close")] if self.closing else []

    # -- reads ------------------------------------------------------------------------------------------

    async def _caught_up(self, visit: Visit) -> Callable[[], Fields] | None:
        """Wait until this node has what the client wrote last; the fields to add to the response, None if
        the client was told that that takes too long.

        The primary has all that there is, whatever an old cookie says; so has a replica whose lag is less
        than what the request has waited. Then the cookie is of another cluster, from before a restore, or of
        what was lost with a primary, and is replaced: else each read would end like that for its five
        minutes.
        """
        cookies = [value.decode("latin-1") for name, value in visit.request.headers if name == b"cookie"]
        begin, added = trio.current_time(), self._last
        deadline = begin + READ_WAIT_SECONDS
        for name, txid in cookie.parse(cookies, self._databases).items():
            while not self._node.is_primary and not self._node.shows(name, txid):
                left = deadline - trio.current_time()
                try:
                    await self._node.reached(name, txid, max(0.0, min(left, LOOK_SECONDS)))
                    visit.way.append(f"waited for {name}")
                    break
                except (DatabaseNotFound, OSError):
                    break  # as in Go LiteFS: the application says what it thinks of that
                except WaitTimeout as error:
                    if self._node.lag_seconds + DOUBT_SECONDS < trio.current_time() - begin:
                        visit.way.append(f"what nobody has of {name}")
                        added = self._written
                        break
                    if left > LOOK_SECONDS:
                        continue
                    log.info("proxy: %s: %s", visit, error)
                    await self._respond(visit, 504, "Proxy timeout")
                    return None
        return added

    # -- writes -----------------------------------------------------------------------------------------

    async def _write(self, visit: Visit) -> None:
        """To the application beside the primary, as soon as there is one."""
        deadline = trio.current_time() + self.redirect_timeout
        why = "no primary is known"
        while True:
            if self._leads():
                try:
                    await self._write_here(visit)
                    return
                except Unprocessed as error:
                    why, deadline = str(error), trio.current_time() + self.redirect_timeout
            leader = None if self._node.is_primary else self._node.primary
            if leader is not None and self._config.redirect == FLY_REPLAY:
                await self._respond(visit, 200, "", [(b"fly-replay", f"instance={leader.hostname}".encode())])
                return
            if leader is not None:
                try:
                    await self._to_primary(visit, leader, deadline)
                    return
                except Unprocessed as error:
                    why = str(error)
            left = deadline - trio.current_time()
            if left <= 0:
                log.warning("proxy: %s: no primary available: %s", visit, why)
                await self._respond(visit, 503, "Proxy error: no primary available")
                return
            visit.way.append("held")
            with trio.move_on_after(min(left, RETRY_SECONDS)):
                await self.gate.changed()
            _still_there(visit, 0.0)

    def _leads(self) -> bool:
        return self._node.is_primary and self.gate.is_open

    async def _write_here(self, visit: Visit) -> None:
        """Raises Unprocessed if the role goes before the application takes connections."""
        with self.gate.entered(visit.scope) as one:
            await self._to_target(visit, self._written, self._leads, one.is_tunnel)

    async def _admitted(self, visit: Visit, one: Pass) -> None:
        """What another node was promised that it would be passed on."""
        try:
            await self._to_target(visit, self._written, self._leads, one.is_tunnel)
        except Unprocessed as error:
            await self._respond(visit, 503, f"Proxy error: {error}")

    async def _to_primary(self, visit: Visit, leader: Leader, deadline: float) -> None:
        """Raises Unprocessed, ClientFault, TargetFault."""
        visit.way.append(f"forwarded to {leader.hostname}")
        request = inbound(visit.request, visit.client, self._target.authority)
        # what asks for an upgrade may go on without end
        at_once = visit.incoming.end is not None and upgrades(request.headers) is None
        since = trio.current_time()
        upstream = Link(await self._taken(leader, deadline, shared=at_once), client_end())
        try:
            _still_there(visit, since)
            await upstream.send(serialized(upstream.conn, request, visit.incoming))
            if at_once:
                await upstream.stream.send_eof()
            if await exchange(visit.front, upstream, visit.incoming, self._last):
                await self._tunnel(visit, upstream)
        finally:
            await trio.aclose_forcefully(upstream.stream)

    async def _taken(self, leader: Leader, deadline: float, *, shared: bool) -> Duplex:
        """A stream to ``leader``, which takes the request; it is not waited for any more when another node
        leads. Raises Unprocessed."""
        scope = trio.CancelScope(deadline=deadline)

        def look() -> None:
            if self._node.is_primary or self._node.primary != leader:
                scope.cancel()

        unlisten = self._node.listen(look)
        try:
            with scope:
                return await self._forwarder.open(leader, shared=shared)
        finally:
            unlisten()
        raise Unprocessed(f"{leader.url}: it did not take the request in time")

    # -- the application here ---------------------------------------------------------------------------

    async def _to_target(
        self,
        visit: Visit,
        added: Callable[[], Fields],
        wanted: Callable[[], bool] = lambda: True,
        on_tunnel: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises ClientFault, TargetFault; Unprocessed if it is not ``wanted`` any more before the
        application takes connections."""
        since = trio.current_time()

        def still() -> bool:
            _still_there(visit, since)
            return wanted()

        upstream = await self._target.connect(still)
        try:
            _still_there(visit, since)
            request = inbound(visit.request, visit.client, self._target.authority)
            await upstream.send(serialized(upstream.conn, request, visit.incoming))
            if await exchange(visit.front, upstream, visit.incoming, added):
                on_tunnel()
                await self._tunnel(visit, upstream)
        except BaseException:
            await self._target.discard(upstream)
            raise
        await self._target.release(upstream)

    async def _tunnel(self, visit: Visit, upstream: Link) -> None:
        visit.is_tunnel = True
        visit.way.append("tunnel")
        visit.scope.deadline = math.inf  # no response that would have to end in time
        await tunnel(visit.front, upstream)

    def _written(self) -> Fields:
        positions = {name: self._node.txid(name) for name in self._databases}
        value = cookie.render(positions, self._databases)
        return self._last() + ([(b"Set-Cookie", value.encode())] if value is not None else [])
