"""Who may win: what a node holds, compared with what the last primary published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from litefs.cluster.lease import Beat
from litefs.types import START, Point


@dataclass(frozen=True, slots=True)
class Loss:
    """A database of which a failover to this node would lose something: ``kept`` is the published position,
    ``own`` this node's."""

    name: str
    own: Point
    kept: Point

    def __str__(self) -> str:
        missing = self.kept.txid - self.own.txid
        if missing > 0:
            return f"{self.name}: {missing} transaction{'s' if missing > 1 else ''} behind"
        return f"{self.name}: another history than the last primary's"


@dataclass(frozen=True, slots=True)
class Standing:
    """``losses``: databases in which this node is behind; ``barred``: why it may not win in any case, empty
    if nothing bars it; ``beyond``: transactions that it holds beyond the published positions; ``joined``: it
    belongs to a cluster, which may have a primary although the store knows none."""

    losses: tuple[Loss, ...] = ()
    barred: str = ""
    beyond: int = 0
    joined: bool = False

    @property
    def obstacles(self) -> list[str]:
        """Why this node may not win, with what would be lost if it did, in lines; none if it may."""
        return [*([self.barred] if self.barred else []), *map(str, self.losses)]

    @property
    def obstacle(self) -> str:
        """The same in one line."""
        return "; ".join(self.obstacles)


def weigh(
    beat: Beat | None,
    node_id: int,
    own: Mapping[str, Point],
    holds: Callable[[str, Point], bool],
    was_removed: Callable[[str, Point], bool],
) -> Standing:
    """Compare what this node holds with ``beat``; ``holds`` and ``was_removed`` are those of
    :class:`litefs.cluster.member.Member`: a beat names a database for some time after its removal.

    The set of in-sync replicas bars those outside of it, except from a beat that was released: that names
    exactly the positions that hold every acknowledged commit. The last primary holds them while it lives.
    """
    kept = beat.positions if beat is not None else {}
    losses, beyond = [], 0
    for name in sorted(kept.keys() | own.keys()):
        have, need = own.get(name, START), kept.get(name, START)
        if have == need or (have.txid > need.txid and (need == START or holds(name, need))):
            beyond += have.txid - need.txid
        elif not was_removed(name, need):
            losses.append(Loss(name, have, need))
    barred = ""
    if beat is not None and beat.in_sync is not None and not beat.released:
        in_sync = node_id in (beat.node_id, *beat.in_sync)
        barred = "" if in_sync else "not known to hold every acknowledged commit (it is not in sync)"
    return Standing(tuple(losses), barred, beyond)


def advance(
    before: Mapping[str, Point], now: Mapping[str, Point], own: Mapping[str, Point]
) -> dict[str, Point]:
    """What to publish next: ``now``, but nothing that goes back behind ``before`` in the same history, or a
    candidate that has just connected could win without what was published already. The most recently changed
    database comes last.

    A database that was removed and made again, so that ``own`` is behind ``before``, begins anew.
    """
    result: dict[str, Point] = {}
    changed: dict[str, Point] = {}
    for name, position in now.items():
        old = before.get(name, START)
        if position.txid < old.txid <= own.get(name, START).txid:
            position = old
        (result if before.get(name) == position else changed)[name] = position
    order = [name for name in before if name in result]
    return {name: result[name] for name in order} | changed
