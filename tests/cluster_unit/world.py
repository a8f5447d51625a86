"""An ideal lease store, an adversarial network and nodes around role machines: the ground of election tests.

Nothing happens by itself. A test moves the true time, delivers or delays each request and each reply, lets
each step of a node succeed or fail, pauses and kills. Each node's clock runs at its own rate.
:meth:`World.check` holds what must be true after every move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from litefs.cluster import steps
from litefs.cluster.lease import Beat, Grant, PrimaryInfo, Timing, View
from litefs.cluster.role import SECOND, RoleMachine, State
from litefs.cluster.standing import advance, weigh
from litefs.types import ZERO, Position

NAME = "db"
RATES = (930, 1000, 1080)
"""Thousandths: while the slowest clock counts ``term`` the fastest counts less than ``term`` + ``margin``."""


def position(history: Sequence[int]) -> Position:
    """Where a database is after these transactions."""
    return Position(len(history), hash(tuple(history)) & 0xFFFFFFFF | 1 << 63) if history else ZERO


def _never(_name: str, _position: Position) -> bool:
    """Nobody removes the database."""
    return False


@dataclass
class Call:
    """One request to the store. ``result`` is None until the store had it; ``given_up``: nobody waits for the
    reply any more, but the request may still arrive."""

    node: Node
    life: int
    action: steps.Take | steps.Renew | steps.Release | None
    """None for a read."""
    sent: int
    beat: Beat | None = None
    result: steps.Event | None = None
    given_up: bool = False


@dataclass
class Node:
    """``history``: what is in its log. ``serving``, ``frozen``, ``deadline``: the commit gate, which belongs
    to the fs process and stays as it is while the node process is paused."""

    index: int
    rate: int
    machine: RoleMachine
    life: int
    history: list[int] = field(default_factory=list)
    serving: bool = False
    frozen: bool = False
    deadline: float = 0
    term: int = 0
    work: list[steps.Action] = field(default_factory=list)
    published: dict[str, Position] = field(default_factory=dict)
    following: int | None = None
    possible: list[frozenset[int]] = field(default_factory=list)
    """The in-sync sets that the store may hold, first the one that it is known to."""
    answered: int = 0
    """Of its transactions, how many may have been acknowledged."""
    paused: bool = False
    reading: bool = False

    def holds(self, _name: str, at: Position) -> bool:
        return position(self.history[: at.txid]) == at


class World:
    """``count`` nodes, all candidates and mounted, at true time 0 before the first primary. With ``sync`` a
    commit is acknowledged only once every replica has it that may be in the stored set."""

    def __init__(self, count: int = 3, rates: Sequence[int] = RATES, *, sync: bool = False) -> None:
        self.timing = Timing()
        self.sync = sync
        self.answered: list[int] = []
        """With ``sync``: what was acknowledged, by whomever."""
        self.now = 0
        self.version = 0
        self.beat: Beat | None = None
        self.held = False
        self.calls: list[Call] = []
        self.lives = 0
        self.token = 0
        self.winners: list[tuple[int, int]] = []
        """(node, term) of each time that the lease was taken."""
        self.handoffs = 0
        self.acknowledged = 0
        self.nodes: list[Node] = []
        for index in range(count):
            machine = self._machine(index)
            self.nodes.append(Node(index, rates[index % len(rates)], machine, self.lives))
        for node in self.nodes:
            self.feed(node, steps.MountUp())

    def _machine(self, index: int) -> RoleMachine:
        self.lives += 1
        return RoleMachine(self.lives, self.info(index), self.timing, candidate=True)

    @staticmethod
    def info(index: int) -> PrimaryInfo:
        return PrimaryInfo(f"node{index}", f"http://node{index}")

    def local(self, node: Node) -> int:
        """The node's clock; they also differ by seconds from the start."""
        return (node.index + 1) * 7 * SECOND + self.now * node.rate // 1000

    # -- moves ------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def tick(self, node: Node) -> bool:
        """Fire the node's timer if it is due."""
        wake = node.machine.wake_ns
        if node.paused or wake is None or wake > self.local(node):
            return False
        self.feed(node, steps.Tick())
        return True

    def read(self, node: Node) -> None:
        """The node asks for the beat, if it is one that watches."""
        if not node.paused and not node.reading and node.machine.state in (State.REPLICA, State.TAKING):
            node.reading = True
            self.calls.append(Call(node, node.life, None, self.local(node)))

    def deliver(self, call: Call) -> None:
        """The request arrives at the store."""
        if call.result is not None:
            return
        match call.action:
            case None:
                call.result = steps.Observed(View(str(self.version), self.beat, self.held))
            case steps.Take():
                call.result = self._take(call, call.action)
            case steps.Renew():
                call.result = self._renew(call, call.action.grant)
            case steps.Release():
                renewed = isinstance(self._renew(call, call.action.grant), steps.Renewed)
                call.result = steps.Released("" if renewed else "lost")
        if call.given_up:
            self.calls.remove(call)

    def reply(self, call: Call) -> None:
        """The answer arrives at the node, if there is one and somebody waits for it."""
        if call.result is None or call.node.paused:
            return
        self.calls.remove(call)
        if not call.given_up and call.life == call.node.life:
            if call.action is None:
                call.node.reading = False
            elif isinstance(call.action, steps.Release) and call.result == steps.Released():
                self.handoffs += call.action.successor is not None
            elif isinstance(call.result, steps.Won | steps.Renewed) and call.beat is not None:
                call.node.possible = [frozenset(call.beat.in_sync or ())]
                if isinstance(call.result, steps.Won):
                    call.node.answered = len(call.node.history)
            self.feed(call.node, call.result)

    def give_up(self, call: Call) -> None:
        """The node waits no longer; the request may still arrive, once."""
        node = call.node
        if call.given_up or node.paused:
            return
        call.given_up = True
        if call.result is not None or call.action is None:
            self.calls.remove(call)
        if call.life != node.life:
            return
        if call.action is None:
            node.reading = False
            self.feed(node, steps.Silent())
        elif isinstance(call.action, steps.Release):
            self.feed(node, steps.Released("no answer"))
        else:
            self.feed(node, steps.Unanswered())

    def work(self, node: Node, succeed: bool = True) -> bool:
        """The next step of the node is over."""
        if node.paused or not node.work:
            return False
        match node.work.pop(0):
            case steps.Promote(grant):
                # Also one that fails may have opened the gate before it did.
                node.serving, node.frozen = True, False
                node.term, node.deadline = grant.term, grant.deadline_ns
                self.feed(node, steps.Promoted() if succeed else steps.PromoteFailed("no"))
            case steps.Demote():
                node.serving = False
                self.feed(node, steps.Demoted())
            case steps.HandOver(target, _):
                node.frozen = True
                found = [other for other in self._replicas(node) if other.life == target]
                if succeed and found:
                    found[0].history = list(node.history)
                    self.feed(node, steps.CaughtUp())
                else:
                    self.feed(node, steps.HandOverFailed("no"))
            case steps.Thaw():
                node.frozen = False
            case steps.Follow(primary, _):
                urls = [self.info(other.index) for other in self.nodes]
                node.following = urls.index(primary) if primary is not None else None
        return True

    def commit(self, node: Node) -> bool:
        """A client commits, and is told so."""
        if not self.may_acknowledge(node):
            return False
        self.token += 1
        node.history.append(self.token)
        if self.sync:
            self.answer(node)
        else:
            self.acknowledged += 1
        return True

    def answer(self, node: Node) -> None:
        """Acknowledge what all replicas hold that may be in sync, if one is for certain."""
        if not (self.sync and self.may_acknowledge(node) and frozenset.intersection(*node.possible)):
            return
        held = [self._held(node, life) for life in frozenset().union(*node.possible)]
        if (least := min(held)) > node.answered:
            self.acknowledged += least - node.answered
            node.answered, self.answered = least, node.history[:least]

    def _held(self, node: Node, life: int) -> int:
        """How many transactions a replica is known to hold while it follows ``node``."""
        for other in self._replicas(node):
            if other.life == life:
                return len(other.history) if node.holds(NAME, position(other.history)) else 0
        return 0

    def _replicas(self, node: Node) -> list[Node]:
        """Who is connected to it."""
        others = (other for other in self.nodes if other is not node)
        return [other for other in others if other.following == node.index and not other.serving]

    def _propose(self, node: Node) -> tuple[int, ...] | None:
        """The in-sync set of the next renewal: who follows and has all that may have been acknowledged."""
        if not self.sync:
            return None
        if node.serving:
            lives = [other.life for other in self.nodes if other is not node]
            wanted = frozenset(life for life in lives if self._held(node, life) >= max(node.answered, 1))
            node.possible.append(wanted)
        return tuple(sorted(node.possible[-1])) or None

    def replicate(self, node: Node, most: int = 1000) -> None:
        """Take up to ``most`` transactions from whom the node follows, if that serves; what diverged goes."""
        if node.following is None or node.paused or node.serving:
            return
        source = self.nodes[node.following]
        if source.serving and not source.paused and node.machine.term > source.term:
            self.feed(source, steps.SawTerm(node.machine.term))
        if not source.serving or source.term != node.machine.term:
            return
        common = 0
        while common < min(len(node.history), len(source.history)):
            if node.history[common] != source.history[common]:
                break
            common += 1
        node.history[common:] = source.history[
            common : max(common + most, len(source.history) * (common == 0))
        ]

    def kill(self, node: Node) -> None:
        """``kill -9`` of both processes, and a restart: a new life with the same log."""
        node.machine = self._machine(node.index)
        node.life = self.lives
        node.serving = node.frozen = node.paused = node.reading = False
        node.work, node.following = [], None
        self.feed(node, steps.MountUp())

    def lose(self) -> None:
        """The store loses what it held, as after a restart without its disk."""
        self.version += 1
        self.beat, self.held = None, False

    def hand_off(self, node: Node, target: Node) -> None:
        if not node.paused and node is not target:
            self.feed(node, steps.HandoffAsked(target.life))

    # -- what moves lead to -----------------------------------------------------------------------------

    def feed(self, node: Node, event: steps.Event) -> None:
        """Tell the machine, and do at once what it asks for at once."""
        for action in node.machine.handle(event, self.local(node)):
            match action:
                case steps.Weigh(view):
                    standing = weigh(view.beat, node.life, self._positions(node), node.holds, _never)
                    standing = replace(standing, joined=bool(self.winners))
                    self.feed(node, steps.Weighed(view.version, standing))
                case steps.Take():
                    node.published = self._positions(node)
                    beat = Beat(action.term, node.life, self.info(node.index), node.published)
                    self.calls.append(Call(node, node.life, action, self.local(node), beat))
                case steps.Renew():
                    node.published = advance(node.published, self._to_publish(node), self._positions(node))
                    in_sync = self._propose(node)
                    beat = Beat(action.grant.term, node.life, self.info(node.index), node.published, in_sync)
                    self.calls.append(Call(node, node.life, action, self.local(node), beat))
                case steps.Release():
                    own, info = self._positions(node), self.info(node.index)
                    in_sync = tuple(sorted(node.possible[-1])) or None if self.sync else None
                    beat = Beat(action.grant.term, node.life, info, own, in_sync, True, action.successor)
                    assert not self.may_acknowledge(node), "released before commits were refused"
                    self.calls.append(Call(node, node.life, action, self.local(node), beat))
                case steps.Extend(deadline):
                    node.deadline = deadline
                case steps.HandoffEnded() | steps.Say():
                    pass
                case _:
                    node.work.append(action)

    def _positions(self, node: Node) -> dict[str, Position]:
        return {NAME: position(node.history)} if node.history else {}

    def _to_publish(self, node: Node) -> dict[str, Position]:
        """The furthest that somebody who follows holds of it; its own if nobody follows."""
        held = [other.history for other in self._replicas(node)]
        common = [history for history in held if node.holds(NAME, position(history))]
        best = max([*common, node.history[: node.answered]], key=len) if common else node.history
        return {NAME: position(best)} if best else {}

    def _take(self, call: Call, take: steps.Take) -> steps.Event:
        if take.view.version != str(self.version) or take.view.held != self.held:
            return steps.Missed()
        assert call.beat is not None
        self._check_take(call, take)
        self._write(call.beat)
        self.winners.append((call.node.index, take.term))
        return steps.Won(Grant(take.term, call.sent + self.timing.term * SECOND, str(self.version)))

    def _check_take(self, call: Call, take: steps.Take) -> None:
        assert call.beat is not None
        if self.beat is None:
            return
        assert take.term > self.beat.term, "terms increase"
        for name, kept in self.beat.positions.items():
            own = call.beat.positions.get(name, ZERO)
            behind = own.txid < kept.txid or not call.node.holds(name, kept)
            assert not behind, f"node {call.node.index} won at {own}, {kept} was published"
        lost = (
            self.answered[len(call.node.history) :]
            or call.node.history[: len(self.answered)] != self.answered
        )
        assert not lost, f"node {call.node.index} won without what was acknowledged"

    def _renew(self, call: Call, grant: Grant) -> steps.Event:
        """A request that nobody waits for any more names a version; later ones look for their own beat."""
        beat = self.beat
        own = beat is not None and beat.node_id == call.life and beat.term == grant.term and not beat.released
        if not own or (call.given_up and grant.version != str(self.version)):
            return steps.Lost("another node has the lease")
        assert call.beat is not None
        self._write(call.beat)
        return steps.Renewed(Grant(grant.term, call.sent + self.timing.term * SECOND, str(self.version)))

    def _write(self, beat: Beat) -> None:
        self.version += 1
        self.beat, self.held = beat, not beat.released

    # -- what is always true ----------------------------------------------------------------------------

    def may_acknowledge(self, node: Node) -> bool:
        return node.serving and not node.frozen and self.local(node) < node.deadline

    def check(self) -> None:
        """No two nodes may acknowledge at a time; one request to the store per node."""
        able = [(node.index, node.term) for node in self.nodes if self.may_acknowledge(node)]
        assert len(able) <= 1, f"at {self.now / SECOND:.3f} s nodes of these terms may acknowledge: {able}"
        for node in self.nodes:
            writing = [
                call
                for call in self.calls
                if call.node is node and call.life == node.life and call.action and not call.given_up
            ]
            assert len(writing) <= 1, f"node {node.index} has two requests under way"
