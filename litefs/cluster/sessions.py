"""The open streams of a primary's replicas, and whose positions a failover goes by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from litefs.stream.protocols import Source
from litefs.types import START, Point


@dataclass(slots=True)
class Session:
    """One open stream. ``sources``: its databases by handle; ``begun``: where they were when it began;
    ``whole``: the replica is sent every database."""

    stream_id: int
    hostname: str
    offered: Mapping[str, Point]
    sources: Mapping[int, Source]
    begun: Mapping[str, int]
    whole: bool
    candidate: bool = False
    heard: bool = False
    held: dict[str, Point] = field(default_factory=dict)
    """The last transaction in its log, by database, as far as it is this primary's history."""
    durable: dict[str, Point] = field(default_factory=dict)

    def counts(self, name: str) -> bool:
        """Whether it has of a database what was here when its stream began."""
        return self.held.get(name, START).txid >= self.begun.get(name, 1)

    def sent(self) -> dict[str, Point]:
        """Of each database that it is sent, which need not be all, what it has."""
        names = [source.name for source in list(self.sources.values())]
        return {name: self.held.get(name, START) for name in names}

    def total(self, names: Collection[str]) -> int:
        """Transactions that it has of these databases."""
        return sum(position.txid for name, position in self.held.items() if name in names)


def find_heir(
    sessions: Mapping[int, Session],
    members: Collection[int],
    names: Collection[str],
    published: Mapping[str, Point],
) -> Session | None:
    """The candidate whose positions are published, None without a candidate; ``sessions`` by node id.

    It is one for all databases ``names``: of two that each lack something of the other one's neither could
    win. What counts, in this order: that it is one of the ``members``, if only they may win; that it has
    caught up with all; that it lacks nothing of what was ``published`` before; and how much it has.
    """
    ranked = [
        (
            node_id in members,
            all(map(session.counts, names)),
            all(session.held.get(name, START).txid >= at.txid for name, at in published.items()),
            session.total(names),
            node_id,
        )
        for node_id, session in sessions.items()
        if session.candidate
    ]
    return sessions[max(ranked)[-1]] if ranked else None
