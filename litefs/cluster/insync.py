"""The set of replicas that hold every acknowledged commit, as a state machine without I/O.

The lease's store has the set (``Beat.in_sync``), since after the primary's death only its members may win.
The invariant (docs/synchronous-replication.md): whoever belongs to a set that the store may hold has every
commit that was answered. So a write of the store counts in both directions: between its request and its
confirmation the store may hold the old set or the new one; commits wait for the members of both, and only who
is in both counts. And a node is proposed only if it has all that may have been answered before.

Times are seconds of one monotonic clock. Databases are those that replicate synchronously.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SAMPLE_SECONDS = 0.01
"""Transactions within this time are taken for as old as the first of them."""

REJOIN_TIMEOUTS = 5
"""Timeouts that a replica stays out which was to become a member and did not keep up."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the fs process goes by.

    ``waiting``: commits wait for acknowledgements, as opposed to being answered at once. ``counted``: members
    that are certain to be in the store; ``present``: those of them that are connected. ``settled``: without
    another event these numbers stay as they are, so that it is of no use to wait for better ones.
    """

    waiting: bool = True
    counted: int = 0
    present: int = 0
    settled: bool = False


@dataclass(slots=True)
class _Replica:
    """A node's present life, as far as it told."""

    since: float
    """When it was connected, or disconnected."""
    connected: bool = True
    durable: dict[str, int] = field(default_factory=dict)
    """Its last durable transaction, by database."""
    mark: dict[str, int] | None = None
    """The primary's last transactions when it was heard last: who has them now keeps up."""
    joining: bool = False
    """It keeps up, and commits wait for it so that it can become a member."""
    waited_since: float = 0.0
    """When commits began to wait for it."""
    not_before: float = 0.0
    """When it may join again."""


class InSync:
    """The primary's view of its replicas, in one term."""

    def __init__(self, tips: Mapping[str, int], now: float, *, timeout: float, degrade: bool) -> None:
        """``tips``: the last transaction of each database, before any is committed in this term.

        ``timeout`` (seconds) and ``degrade`` as of ``SyncRules``. So long from ``now`` on replicas that the
        primary had before, or another one had, may be expected.
        """
        self._expecting: float | None = now + timeout
        self._timeout = timeout
        self._degrade = degrade
        self._tips = dict(tips)
        self._answered = dict(tips)
        self._released: dict[str, int] = {}
        self._replicas: dict[int, _Replica] = {}
        self._possible: list[frozenset[int]] = [frozenset()]
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._exact = not degrade
        """Whether ``answered`` is all that may have been answered: the fs process is known to wait."""
        self.hold = 0
        """Counts the times that commits began to wait; ``held`` answers for the last one."""

    # -- what is known -----------------------------------------------------------------------------

    @property
    def stored(self) -> frozenset[int]:
        """The set that was last confirmed to be in the store."""
        return self._possible[0]

    @property
    def counted(self) -> frozenset[int]:
        """The members that are certain to be in the store, whatever became of writes that are under way."""
        return frozenset.intersection(*self._possible)

    @property
    def waited_for(self) -> frozenset[int]:
        """Whose acknowledgements a commit needs."""
        joining = [node for node, replica in self._replicas.items() if replica.joining]
        return frozenset().union(*self._possible, joining)

    @property
    def released(self) -> Mapping[str, int]:
        """By database the last transaction that all have who are waited for: it may be answered, if enough
        members count."""
        return self._released

    @property
    def answered(self) -> Mapping[str, int]:
        """By database the last transaction that may have been answered."""
        return self._answered

    def standing(self, now: float) -> Standing:
        """For the fs process, as of now."""
        counted = self.counted
        present = [node for node in counted if self._replicas[node].connected]
        return Standing(
            waiting=not self._degrade or bool(self.waited_for),
            counted=len(counted),
            present=len(present),
            settled=(
                self._expecting is None
                and len(self._possible) == 1
                and self.wanted(now) == self.stored
                and len(present) == len(counted)
                and not any(replica.joining for replica in self._replicas.values())
            ),
        )

    def wanted(self, now: float) -> frozenset[int]:
        """The set that the store should have, as of now."""
        proposed = frozenset().union(*self._possible[1:])
        return frozenset(
            node
            for node, replica in self._replicas.items()
            if (
                node in self.stored
                or (self._exact and replica.connected and (replica.joining or node in proposed))
            )
            and _covers(replica.durable, self._answered)
            and not self._is_late(node, now)
        )

    def next_look(self) -> float | None:
        """When ``tick`` is due if nothing is heard; None: not before the next event."""
        later = [self._replicas[node].not_before for node in self._idle()]
        dues = [self._expecting, *later, *map(self._due, self.waited_for)]
        return min((due for due in dues if due is not None), default=None)

    # -- events ------------------------------------------------------------------------------------

    def connected(self, node: int, offered: Mapping[str, int], now: float) -> None:
        """A replica that may become a member opened its stream, with these transactions in its logs."""
        old = self._replicas.get(node)
        replica = self._replicas[node] = _Replica(now)
        if old is not None and node in self.waited_for:
            replica.durable = {name: min(txid, offered.get(name, 0)) for name, txid in old.durable.items()}
            replica.waited_since, replica.not_before = old.waited_since, old.not_before

    def disconnected(self, node: int, now: float) -> None:
        """Its stream ended. A member stays one for the timeout."""
        if (replica := self._replicas.get(node)) is not None:
            replica.connected, replica.joining, replica.since = False, False, now
            self._changed()

    def acknowledged(self, node: int, durable: Mapping[str, int], now: float) -> None:
        """A connected replica has these transactions, and all before them, durably."""
        replica = self._replicas.get(node)
        if replica is None or not replica.connected:
            return
        replica.durable.update(durable)
        keeps_up = _covers(replica.durable, self._tips if replica.mark is None else replica.mark)
        replica.mark = dict(self._tips)
        if keeps_up:
            self._join(node, now)
        self._changed()

    def advanced(self, name: str, txid: int, now: float) -> None:
        """A database of the primary is at that transaction."""
        self._tips[name] = txid
        samples = self._samples.setdefault(name, deque())
        if samples and now < samples[-1][0] + SAMPLE_SECONDS:
            samples[-1] = (samples[-1][0], txid)
        else:
            samples.append((now, txid))
        self._trim(name)

    def dropped(self, name: str) -> None:
        """A database was removed; one that gets its name begins anew."""
        self._samples.pop(name, None)
        for txids in (self._tips, self._answered, self._released):
            txids.pop(name, None)
        for replica in self._replicas.values():
            replica.durable.pop(name, None)
            if replica.mark is not None:
                replica.mark.pop(name, None)

    def held(self, hold: int, tips: Mapping[str, int]) -> None:
        """The fs process lets commits wait since ``hold``; what it answered before is within ``tips``."""
        if hold == self.hold and self.waited_for and not self._exact:
            for name, txid in tips.items():
                self._answered[name] = max(txid, self._answered.get(name, 0))
            self._exact = True

    def tick(self, now: float) -> None:
        """Time passed: who was to become a member and does not keep up is given up."""
        if self._expecting is not None and now >= self._expecting:
            self._expecting = None
        for node, replica in self._replicas.items():
            if replica.joining and self._is_late(node, now):
                replica.joining = False
                replica.not_before = now + REJOIN_TIMEOUTS * self._timeout
        self._changed()
        self._join_idle(now)

    # -- the store ---------------------------------------------------------------------------------

    def propose(self, now: float) -> frozenset[int]:
        """The set that the next write of the store is to have; from now on it may be there."""
        wanted = self.wanted(now)
        if wanted not in self._possible:
            self._possible.append(wanted)
        for node in wanted:
            self._replicas[node].joining = False
        return wanted

    def confirmed(self, members: Iterable[int], now: float) -> None:
        """The store has exactly this set: no write that was asked for before can succeed any more."""
        self._possible = [frozenset(members)]
        self._changed()
        self._join_idle(now)

    # -- parts -------------------------------------------------------------------------------------

    def _join(self, node: int, now: float) -> None:
        """Let commits wait for a replica that keeps up, so that it can become a member."""
        replica = self._replicas[node]
        if now >= replica.not_before and node not in self.waited_for:
            if not self._exact and not self.waited_for:
                self.hold += 1
            replica.joining, replica.waited_since = True, now

    def _join_idle(self, now: float) -> None:
        """The same for those of whom no acknowledgement will come: they have all that there is."""
        for node in self._idle():
            self._join(node, now)

    def _idle(self) -> list[int]:
        """Connected replicas that are no members and have told that they have all that there is."""
        waited_for = self.waited_for
        return [
            node
            for node, replica in self._replicas.items()
            if replica.connected
            and replica.mark is not None
            and node not in waited_for
            and _covers(replica.durable, self._tips)
        ]

    def _is_late(self, node: int, now: float) -> bool:
        due = self._due(node)
        return due is not None and now >= due

    def _due(self, node: int) -> float | None:
        """When it will have been silent for the timeout; None while nothing is awaited from it."""
        replica = self._replicas[node]
        begins = [] if replica.connected else [replica.since]
        for name, samples in self._samples.items():
            have = replica.durable.get(name, 0)
            begin = next((time for time, txid in samples if txid > have), None)
            if begin is not None:
                begins.append(max(begin, replica.waited_since))
        return min(begins) + self._timeout if begins else None

    def _changed(self) -> None:
        """Forget who is gone and no member; release what everybody has who is waited for."""
        nodes = self.waited_for
        for node in [n for n, one in self._replicas.items() if not one.connected and n not in nodes]:
            del self._replicas[node]
        if not nodes:
            self._exact = not self._degrade
            return
        for name in self._tips:
            least = min(self._replicas[node].durable.get(name, 0) for node in nodes)
            if least > self._released.get(name, 0):
                self._released[name] = least
                self._answered[name] = max(least, self._answered.get(name, 0))
            self._trim(name)

    def _trim(self, name: str) -> None:
        """Forget samples that nobody's silence is judged by."""
        if (samples := self._samples.get(name)) is None:
            return
        have = (self._replicas[node].durable.get(name, 0) for node in self.waited_for)
        least = min(have, default=self._tips.get(name, 0))
        while samples and samples[0][1] <= least:
            samples.popleft()


def _covers(durable: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    return all(durable.get(name, 0) >= txid for name, txid in wanted.items())
