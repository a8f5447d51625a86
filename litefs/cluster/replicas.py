"""The primary's replicas: who is connected, what each holds, which of them are in sync.

The trio edge over :class:`~litefs.cluster.insync.InSync`: acknowledgements and the catalog's positions go in;
what the fs process has to know, and the set for the lease's store, come out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec
import trio

from litefs.cluster.insync import InSync, Standing
from litefs.cluster.sessions import Session, find_heir
from litefs.config_sections import ReplicationConfig
from litefs.errors import NotPrimary, PeerError, StreamEnded
from litefs.link.messages import Replication
from litefs.link.rules import SyncRule, SyncRules
from litefs.stream.acks import Ack, AckAnswer, Held, ReplicaInfo
from litefs.stream.handshake import format_node_id
from litefs.stream.protocols import Catalog, Identity, Source
from litefs.types import START, Point

log = logging.getLogger(__name__)

TICK_SECONDS = 0.05
"""Between two looks at a replica that is late, while the lease's store does not answer."""
MESSAGE_BYTES = 32 << 10
"""Of the names in one message to the fs process."""


def sync_rules(config: ReplicationConfig) -> SyncRules:
    """The rules of ``litefs.yml``."""
    return SyncRules(
        int(config.sync),
        tuple(SyncRule(one.name, int(one.sync)) for one in config.databases),
        float(config.timeout),
        config.on_shortage == "degrade",
    )


class Replicas:
    """What a primary knows of its replicas; empty and idle while this node is none.

    Implements :class:`litefs.server.view.Replicas`. ``tell`` posts to the fs process. ``expedite`` asks for a
    renewal of the lease soon; None: the lease has no store, and the set is this node's own memory.
    """

    def __init__(
        self,
        catalog: Catalog,
        rules: SyncRules,
        identity: Callable[[], Identity],
        tell: Callable[[Replication], None],
        expedite: Callable[[], None] | None = None,
    ) -> None:
        self.rules = rules
        self._catalog = catalog
        self._identity = identity
        self._tell = tell
        self._expedite = expedite
        self._sessions: dict[int, Session] = {}
        self._machine: InSync | None = None
        self._sources: dict[str, Source] = {}
        """Databases that replicate synchronously."""
        self._positions: dict[str, Point] = {}
        """Where those are."""
        self._answered: dict[str, Point] = {}
        """Of those, up to where commits may have been answered."""
        self._reached: dict[str, dict[int, Point]] = {}
        """Of those, what replicas have had durably since then, by transaction."""
        self._own: dict[str, Point] = {}  # where this node's databases were when they were published last
        self._published: dict[str, Point] = {}
        self._primary = False
        self._generation = -1
        self._told: tuple[Standing, int] | None = None
        self._told_released: dict[str, int] = {}
        self._asked_for: frozenset[int] = frozenset()
        self._news = trio.Event()
        self._heard = trio.Event()
        """Set, and made anew, when a replica told what it holds, or left."""

    # -- this node's role --------------------------------------------------------------------------

    def begin(self) -> None:
        """This node became primary, and no client has committed yet: nobody is in sync."""
        self.end()
        self._primary = True
        if self.rules.active:
            self._follow_catalog()
            self._positions = {name: source.point() for name, source in self._sources.items()}
            self._answered = dict(self._positions)
            self._machine = InSync(
                {name: position.txid for name, position in self._positions.items()},
                trio.current_time(),
                timeout=self.rules.timeout,
                degrade=self.rules.degrade,
            )
            self._update()

    def end(self) -> None:
        """This node is not primary any more; its streams end by themselves."""
        self._primary, self._machine = False, None
        self._sessions.clear()
        self._sources.clear()
        self._positions.clear()
        self._answered.clear()
        self._reached.clear()
        self._own.clear()
        self._published.clear()
        self._generation, self._told, self._asked_for = -1, None, frozenset()
        self._told_released.clear()

    def mounted(self, *, primary: bool) -> None:
        """There is a new fs process, which knows nothing yet, and the catalog has its databases. ``primary``:
        this node is; if that is new to this object, it begins."""
        if primary and not self._primary:
            self.begin()
            return
        self._told = None
        self._told_released.clear()
        self._update()

    def dropped(self, name: str) -> None:
        """A client removed that database. The fs process hears that all that follows is about another one."""
        for session in self._sessions.values():
            session.held.pop(name, None)
            session.durable.pop(name, None)
        self._own.pop(name, None)
        self._published.pop(name, None)
        self._forget(name)
        if self._machine is not None and self.rules.required(name):
            self._update(dropped=(name,))

    def holding(self, hold: int) -> None:
        """The fs process lets commits wait since that ``hold``."""
        if self._machine is not None:
            self._look()
            self._machine.held(hold, {name: at.txid for name, at in self._positions.items()})
            self._answered |= self._positions
            self._update()

    # -- its replicas ------------------------------------------------------------------------------

    def joined(
        self,
        replica: Identity,
        stream_id: int,
        offered: Mapping[str, Point],
        sources: Mapping[int, Source],
        *,
        whole: bool,
    ) -> None:
        """A replica's stream begins: ``offered`` is what it has, ``sources`` are its databases by handle.

        Whose stream is not ``whole`` is never in sync: it does not hold every commit.
        """
        begun = {
            name: position.txid
            for name, source in self._catalog.sources().items()
            if (position := _point(source)) is not None
        }
        self._sessions[replica.node_id] = Session(stream_id, replica.hostname, offered, sources, begun, whole)

    def left(self, replica: Identity, stream_id: int) -> None:
        """That stream ended."""
        session = self._sessions.get(replica.node_id)
        if session is not None and session.stream_id == stream_id:
            del self._sessions[replica.node_id]
            self._heard.set()
            self._heard = trio.Event()
            if self._machine is not None:
                self._machine.disconnected(replica.node_id, trio.current_time())
                self._update()

    def acknowledged(self, replica: Identity, stream_id: int, ack: Ack) -> AckAnswer:
        """What a replica says that it holds. Raises StreamEnded, NotPrimary."""
        own, session = self._identity(), self._sessions.get(replica.node_id)
        if replica.term != own.term:
            raise NotPrimary(f"acknowledgement in term {replica.term}, this node is in term {own.term}")
        if session is None or session.stream_id != stream_id:
            raise StreamEnded("acknowledgement of a stream that is not open")
        session.candidate = ack.candidate
        self._look()
        for held in ack.held:
            self._take(session, held)
        self._heard.set()
        self._heard = trio.Event()
        if self._machine is None or not (session.whole and (ack.candidate or self._expedite is None)):
            return AckAnswer()
        now, node = trio.current_time(), replica.node_id
        if not session.heard:
            session.heard = True
            offered = {name: at.txid for name, at in session.offered.items()}
            self._machine.connected(node, offered, now)
        durable = {name: at.txid for name, at in session.durable.items() if name in self._sources}
        self._machine.acknowledged(node, durable, now)
        self._update()
        return AckAnswer(self.rules)

    def _take(self, session: Session, held: Held) -> None:
        source = session.sources.get(held.handle)
        if source is None or self._catalog.sources().get(source.name) is not source:
            return  # removed meanwhile
        if held.chained or source.is_at(held.point):
            session.held[source.name] = held.point
            if held.chained or held.durable == held.point:
                session.durable[source.name] = held.durable
                if source.name in self._sources:
                    self._reached.setdefault(source.name, {})[held.durable_txid] = held.durable

    @property
    def _members(self) -> frozenset[int]:
        return self._machine.stored if self._machine is not None else frozenset()

    # -- for the lease -----------------------------------------------------------------------------

    def published(self) -> dict[str, Point]:
        """What a failover must keep, by database.

        With replicas in sync, of a database that has to wait for them: what may have been answered. Else the
        position in the log of the *heir*, but no less than that; this node's own without one. It is one
        candidate for all databases, or each might lack something of another one's, and nobody could win. Logs
        survive the death of a process; synced they need not be. The heir counts once it has what was here
        when its stream began.
        """
        found = {}
        heir = find_heir(self._sessions, self._members, self._catalog.sources(), self._published)
        waits = self._machine is not None and self._machine.waited_for
        for name, source in self._catalog.sources().items():
            if waits and name in self._sources:
                found[name] = self._answered.get(name, START)
                continue
            if (own := _point(source)) is not None:
                self._own[name] = own
            best = (heir.held if heir is not None and heir.counts(name) else self._own).get(name, START)
            found[name] = max(best, self._answered.get(name, START), key=lambda position: position.txid)
        self._published = found
        return found

    def in_sync(self) -> tuple[int, ...] | None:
        """The set for the store's next record, which may be there from now on; ``stored`` follows once that
        is certain. None: no replica is in sync, or none is asked for; then positions decide."""
        if self._machine is None:
            return None
        members = self._machine.propose(trio.current_time())
        self._update()
        return tuple(sorted(members)) or None

    def stored(self, members: tuple[int, ...] | None) -> None:
        """The store has that set, and no write that was asked for before can succeed any more."""
        if self._machine is not None:
            self._machine.confirmed(members or (), trio.current_time())
            self._update()

    def nearest(self) -> int | None:
        """The connected candidate that lacks least, of the replicas in sync if there are any; None without
        one."""
        names = self._catalog.sources()
        candidates = [
            (node_id in self._members, session.total(names), node_id)
            for node_id, session in self._sessions.items()
            if session.candidate
        ]
        return max(candidates)[2] if candidates else None

    async def await_all(self, node_id: int) -> None:
        """Wait until a replica has every transaction that is here, while none is added. Raises PeerError if
        it is not connected, or no candidate."""
        while not self._has_all(node_id):
            await self._heard.wait()

    def _has_all(self, node_id: int) -> bool:
        session = self._sessions.get(node_id)
        if session is None or not session.candidate:
            raise PeerError(f"node {format_node_id(node_id)} is not connected, or no candidate")
        sources = self._catalog.sources()
        return all(source.is_at(session.held.get(name, START)) for name, source in sources.items())

    # -- for people --------------------------------------------------------------------------------

    def connected(self) -> list[ReplicaInfo]:
        """The replicas whose streams are open, each with the databases that it is sent."""
        return [
            ReplicaInfo(node, session.candidate, node in self._members, session.hostname, session.sent())
            for node, session in list(self._sessions.items())  # at once: /metrics asks in a thread
        ]

    # -- work --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Note what the primary commits, and how long replicas take for it; until cancelled."""
        unlisten = self._catalog.listen(self._committed)
        try:
            while True:
                due = self._machine.next_look() if self._machine is not None else None
                with trio.move_on_at(due if due is not None else float("inf")) as scope:
                    await self._news.wait()
                self._news = trio.Event()
                if scope.cancelled_caught and self._machine is not None:
                    self._machine.tick(trio.current_time())
                    self._update()
                    await trio.sleep(TICK_SECONDS)
        finally:
            unlisten()

    def _committed(self) -> None:
        if self._machine is not None and self._sessions:
            self._look()
            self._news.set()

    def _look(self) -> None:
        """Where are the databases that replicate synchronously?"""
        if self._machine is None:
            return
        self._follow_catalog()
        now = trio.current_time()
        for name, source in self._sources.items():
            if name in self._positions and source.is_at(self._positions[name]):
                continue
            if (position := _point(source)) is not None:
                self._positions[name] = position
                self._machine.advanced(name, position.txid, now)

    def _follow_catalog(self) -> None:
        if self._generation == self._catalog.generation:
            return
        self._generation = self._catalog.generation
        sources = self._catalog.sources()
        for name in [name for name, source in self._sources.items() if sources.get(name) is not source]:
            self._forget(name)
        self._sources = {name: one for name, one in sources.items() if self.rules.required(name)}

    def _forget(self, name: str) -> None:
        self._sources.pop(name, None)
        self._positions.pop(name, None)
        self._answered.pop(name, None)
        self._reached.pop(name, None)
        self._told_released.pop(name, None)
        if self._machine is not None:
            self._machine.dropped(name)

    def _update(self, dropped: tuple[str, ...] = ()) -> None:
        """Have the store get the set that it should have, and the fs process what is new."""
        machine, now = self._machine, trio.current_time()
        if machine is None:
            return
        wanted = machine.wanted(now)
        if self._expedite is None:
            machine.confirmed(machine.propose(now), now)
        elif wanted not in (machine.stored, self._asked_for):
            self._expedite()
        self._asked_for = wanted
        standing = machine.standing(now)
        released = {
            name: txid for name, txid in machine.released.items() if txid != self._told_released.get(name)
        }
        if self._told == (standing, machine.hold) and not released and not dropped:
            return
        if self._told is None or self._told[0].counted != standing.counted:
            members = sorted(map(format_node_id, machine.counted))
            log.info("replicas in sync: %s", ", ".join(members) or "none")
        self._told = (standing, machine.hold)
        self._told_released |= released
        self._note_answered(released)
        message = Replication(
            standing.waiting, standing.counted, standing.present, standing.settled, machine.hold, {}, dropped
        )
        for part in _parts(released):
            self._tell(msgspec.structs.replace(message, released=part))
        self._news.set()

    def _note_answered(self, released: Mapping[str, int]) -> None:
        """The positions of what the fs process may answer now."""
        for name, txid in released.items():
            reached = self._reached.get(name, {})
            if txid in reached:
                self._answered[name] = reached[txid]
            self._reached[name] = {at: position for at, position in reached.items() if at > txid}


def _point(source: Source) -> Point | None:
    """Where a database is; None if its writer died inside an update: the next fs process recovers it."""
    try:
        return source.point()
    except OSError:
        return None


def _parts(released: Mapping[str, int]) -> list[dict[str, int]]:
    """In parts that fit into a message each; one at least."""
    parts, size = [dict[str, int]()], 0
    for name, txid in released.items():
        size += len(name.encode()) + 16
        if size > MESSAGE_BYTES:
            parts, size = [*parts, {}], 0
        parts[-1][name] = txid
    return parts
