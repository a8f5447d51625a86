"""Whoever may win has every commit that was answered, in every order of events (litefs.cluster.insync)."""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from litefs.cluster.insync import InSync, Standing

TIMEOUT = 2.0
NAMES = ("a", "b")


@dataclass
class Life:
    """One life of a replica: what its disk has, its stream, its acknowledgements under way."""

    durable: dict[str, int]
    connected: bool = False
    told: dict[str, int] | None = None
    """What it acknowledged in this stream; it does so again only when there is more."""
    acks: deque[dict[str, int]] = field(default_factory=deque)


@dataclass(frozen=True)
class Message:
    """What the node process tells the fs process."""

    standing: Standing
    released: dict[str, int]
    hold: int


class World:
    """A primary with its fs process, three replicas and a store whose answers can get lost."""

    def __init__(self, required: int, degrade: bool) -> None:
        self.required, self.degrade = required, degrade
        self.now = 100.0
        self.tips = dict.fromkeys(NAMES, 3)
        self.machine = InSync(self.tips, self.now, timeout=TIMEOUT, degrade=degrade)
        self.lives = {node: Life(dict.fromkeys(NAMES, 0)) for node in (1, 2, 3)}
        self.next_life = 4
        # the fs process
        self.link: deque[Message] = deque()
        self.replies: deque[int] = deque()
        self.standing = Standing()
        self.acked: dict[str, int] = {}
        self.hold = 0
        self.held: set[tuple[str, int]] = set()
        self.answered = dict(self.tips)
        # the store: set and answered positions of its record, and writes that may still arrive
        self.store: tuple[frozenset[int], dict[str, int]] = (frozenset(), dict(self.tips))
        self.flying: list[tuple[frozenset[int], dict[str, int]]] = []

    # -- steps; each does nothing where it makes no sense ------------------------------------------------

    def commit(self, name: str) -> None:
        here = self.standing
        if not self.degrade and here.present < self.required:
            return
        self.tips[name] += 1
        self.held.add((name, self.tips[name]))
        self._answer()
        self.machine.advanced(name, self.tips[name], self.now)

    def replicate(self, node: int) -> None:
        life = self.lives[node]
        for name in NAMES:
            if life.connected and life.durable[name] < self.tips[name]:
                life.durable[name] += 1

    def catch_up(self, node: int) -> None:
        if self.lives[node].connected:
            self.lives[node].durable = dict(self.tips)

    def send_ack(self, node: int) -> None:
        life = self.lives[node]
        if life.connected and life.told != life.durable:
            life.told = dict(life.durable)
            life.acks.append(life.told)

    def deliver_ack(self, node: int) -> None:
        if self.lives[node].acks:
            self.machine.acknowledged(node, self.lives[node].acks.popleft(), self.now)
            self._tell()

    def connect(self, node: int) -> None:
        if not self.lives[node].connected:
            self.lives[node].connected, self.lives[node].told = True, None
            self.machine.connected(node, self.lives[node].durable, self.now)
            self._tell()

    def disconnect(self, node: int) -> None:
        if self.lives[node].connected:
            self.lives[node].connected = False
            self.lives[node].acks.clear()
            self.machine.disconnected(node, self.now)
            self._tell()

    def restart(self, node: int) -> int:
        """Power failure: a new life may have less than the old one had said."""
        self.disconnect(node)
        life = self.lives.pop(node)
        new = self.next_life
        self.next_life += 1
        self.lives[new] = Life({name: txid // 2 for name, txid in life.durable.items()})
        return new

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick(self.now)
        self._tell()

    def write(self, outcome: str) -> None:
        """A write of the store: "done"; "lost", done but nobody knows; "late", it may yet be done."""
        wanted = self.machine.propose(self.now)
        record = (wanted, dict(self.machine.answered))
        self._tell()
        if outcome == "late":
            self.flying.append(record)
            return
        self.store = record
        self.flying.clear()  # compare-and-set: what was asked for before comes too late
        if outcome == "done":
            self.machine.confirmed(wanted, self.now)
            self._tell()

    def write_slowly(self, events: list[tuple[str, int]]) -> None:
        """A write that is done at once, and confirmed only after other events."""
        wanted = self.machine.propose(self.now)
        self.store = (wanted, dict(self.machine.answered))
        self.flying.clear()
        self._tell()
        for event in events:
            self.step(*event)
            self.check()
        self.machine.confirmed(wanted, self.now)
        self._tell()

    def arrive(self) -> None:
        if self.flying:
            self.store = self.flying.pop()
            self.flying.clear()

    def link_one(self) -> None:
        """The fs process takes a message, and the node process its reply."""
        if not self.link:
            return
        message = self.link.popleft()
        began = message.standing.waiting and message.hold != self.hold
        self.standing, self.hold = message.standing, message.hold
        for name, txid in message.released.items():
            self.acked[name] = max(txid, self.acked.get(name, 0))
        self._answer()
        if began:
            self.replies.append(message.hold)

    def reply(self) -> None:
        if self.replies:
            self.machine.held(self.replies.popleft(), self.tips)
            self._tell()

    def _answer(self) -> None:
        for name, txid in sorted(self.held):
            enough = self.degrade or self.standing.counted >= self.required
            if not self.standing.waiting or (enough and self.acked.get(name, 0) >= txid):
                self.held.discard((name, txid))
                self.answered[name] = max(self.answered[name], txid)

    def _tell(self) -> None:
        machine = self.machine
        self.link.append(Message(machine.standing(self.now), dict(machine.released), machine.hold))

    def step(self, what: str, which: int) -> None:
        nodes = sorted(self.lives)
        node = nodes[which % len(nodes)]
        match what:
            case "commit":
                self.commit(NAMES[which % 2])
            case "wait":
                self.wait((0.005, 0.5, 2.5)[which % 3])
            case "write":
                self.write(("done", "lost", "late")[which % 3])
            case "arrive" | "link_one" | "reply":
                getattr(self, what)()
            case _:
                getattr(self, what)(node)

    # -- what must hold ----------------------------------------------------------------------------------

    def check(self) -> None:
        members, floor = self.store
        for node in members & self.lives.keys():
            for name in NAMES:
                assert self.lives[node].durable[name] >= self.answered[name], (
                    f"{node} may win without {name} {self.answered[name]}"
                )
        if not members and not self.degrade:  # then positions decide
            assert all(floor[name] >= self.answered[name] for name in NAMES)

    def calm_down(self) -> None:
        """Everything works again: all replicas become members, and whatever is held is answered."""
        self.wait(20.0)  # who joined then is given up
        self.wait(20.0)  # and may join again
        for _ in range(12):
            for node, life in list(self.lives.items()):
                self.connect(node)
                self.catch_up(node)
                self.send_ack(node)
                while life.acks:
                    self.deliver_ack(node)
            self.write("done")
            while self.link or self.replies:
                self.link_one()
                self.reply()
            self.wait(0.01)
            self.check()
        assert self.machine.stored == self.lives.keys()
        while self.link:
            self.link_one()
        assert self.standing.settled
        assert self.standing.counted == self.standing.present == len(self.lives)
        self.commit("a")
        for node in self.lives:
            self.catch_up(node)
            self.send_ack(node)
            self.deliver_ack(node)
        while self.link:
            self.link_one()
        assert not self.held
        assert self.answered == self.tips


@pytest.mark.parametrize("degrade", [False, True], ids=["refuse", "degrade"])
def test_members_that_left_while_the_primary_slept_come_back_without_a_new_commit(degrade: bool) -> None:
    """It takes them for late, and they are out when their acknowledgements have been heard. No other ones
    follow, as commits are refused."""
    world = World(1, degrade)
    world.calm_down()
    world.commit("a")
    for node in world.lives:
        world.catch_up(node)
        world.send_ack(node)
    world.now += TIMEOUT + 0.1
    world.write_slowly([("deliver_ack", node) for node in range(len(world.lives))])
    assert not world.machine.stored
    for _ in range(3):
        while world.link or world.replies:
            world.link_one()
            world.reply()
        world.write("done")
    assert world.machine.stored == world.lives.keys()


@pytest.mark.parametrize("degrade", [False, True], ids=["refuse", "degrade"])
def test_who_did_not_keep_up_may_join_later_without_a_new_commit(degrade: bool) -> None:
    world = World(1, degrade)
    for node in world.lives:
        world.connect(node)
        world.send_ack(node)
        world.deliver_ack(node)
    world.standing = Standing(present=1)  # as if somebody else were in sync
    world.commit("a")
    for node in world.lives:
        world.catch_up(node)
        world.send_ack(node)
        world.deliver_ack(node)
    world.commit("a")
    world.wait(TIMEOUT + 0.1)
    for node in world.lives:
        world.catch_up(node)
        world.send_ack(node)
        world.deliver_ack(node)
    assert not world.machine.waited_for
    due = world.machine.next_look()
    assert due is not None
    world.wait(due - world.now)
    for _ in range(3):
        while world.link or world.replies:
            world.link_one()
            world.reply()
        world.write("done")
    assert world.machine.stored == world.lives.keys()


STEPS = {
    "commit": 6,
    "replicate": 3,
    "catch_up": 4,
    "send_ack": 6,
    "deliver_ack": 6,
    "connect": 3,
    "disconnect": 1,
    "restart": 0.3,
    "wait": 2,
    "write": 3,
    "arrive": 1,
    "link_one": 10,
    "reply": 3,
}
"""How often each happens, relative to the others."""
WALKS = 300
WALK_STEPS = 250


def walk(world: World, chance: random.Random) -> None:
    """Random steps; among them writes of the store during which others happen."""
    kinds, weights = list(STEPS), list(STEPS.values())
    if chance.random() < 0.8:
        world.calm_down()
    for _ in range(WALK_STEPS):
        if chance.random() < 0.02:
            during = [(chance.choice(kinds), chance.randrange(6)) for _ in range(12)]
            world.write_slowly([event for event in during if event[0] not in ("write", "arrive")])
        else:
            world.step(chance.choices(kinds, weights)[0], chance.randrange(6))
        world.check()
    world.calm_down()


@pytest.mark.parametrize("degrade", [False, True], ids=["refuse", "degrade"])
@pytest.mark.parametrize("required", [1, 2])
def test_whoever_may_win_has_all_that_was_answered(required: int, degrade: bool) -> None:
    seed = int(os.environ.get("LITEFS_SEED", "0")) or random.SystemRandom().randrange(2**31)
    print(f"LITEFS_SEED={seed}")
    chance = random.Random(seed)
    for _ in range(WALKS):
        walk(World(required, degrade), chance)
