"""Elections with arbitrary delays, lost replies, pauses, deaths and clocks that run at different speed."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from litefs.cluster import steps

from .world import World

NODES = st.integers(0, 2)


class Elections(RuleBasedStateMachine):
    """Three role machines against an ideal store."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(seconds=st.sampled_from([0.01, 0.2, 0.6, 1.0, 1.7, 3.0, 3.6]))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(index=NODES)
    def node_is_served(self, index: int) -> None:
        """Everything about one node goes as it should, once."""
        serve(self.world, index)

    @rule()
    def all_is_well(self) -> None:
        for index in range(3):
            serve(self.world, index)

    @rule(index=NODES)
    def timer(self, index: int) -> None:
        self.world.tick(self.world.nodes[index])

    @rule(index=NODES)
    def read(self, index: int) -> None:
        self.world.read(self.world.nodes[index])

    @rule(pick=st.integers(0, 9), how=st.sampled_from(["deliver", "reply", "both", "give up"]))
    def network(self, pick: int, how: str) -> None:
        network(self.world, pick, how)

    @rule(index=NODES, succeed=st.booleans())
    def work(self, index: int, succeed: bool) -> None:
        self.world.work(self.world.nodes[index], succeed)

    @rule(index=NODES)
    def commit(self, index: int) -> None:
        self.world.commit(self.world.nodes[index])

    @rule(index=NODES, most=st.integers(1, 3))
    def replicate(self, index: int, most: int) -> None:
        self.world.replicate(self.world.nodes[index], most)

    @rule(index=NODES)
    def pause_or_resume(self, index: int) -> None:
        node = self.world.nodes[index]
        node.paused = not node.paused

    @rule(index=NODES)
    def kill(self, index: int) -> None:
        self.world.kill(self.world.nodes[index])

    @rule(index=NODES, back=st.booleans())
    def mount(self, index: int, back: bool) -> None:
        self.world.feed(self.world.nodes[index], steps.MountUp() if back else steps.MountGone())

    @rule()
    def lose(self) -> None:
        self.world.lose()

    @rule(index=NODES, to=NODES)
    def hand_off(self, index: int, to: int) -> None:
        self.world.hand_off(self.world.nodes[index], self.world.nodes[to])

    @invariant()
    def one_at_a_time(self) -> None:
        self.world.check()


def serve(world: World, index: int) -> None:
    node = world.nodes[index]
    world.tick(node)
    world.read(node)
    for call in [call for call in world.calls if call.node is node]:
        world.deliver(call)
        if call in world.calls:
            world.reply(call)
    while world.work(node):
        pass
    world.commit(node)
    world.replicate(node)


def network(world: World, pick: int, how: str) -> None:
    if not world.calls:
        return
    call = world.calls[pick % len(world.calls)]
    if how == "give up":
        world.give_up(call)
        return
    if how in ("deliver", "both"):
        world.deliver(call)
    if how in ("reply", "both") and call in world.calls:
        world.reply(call)


TestElections = Elections.TestCase
TestElections.settings = settings(
    max_examples=int(os.environ.get("LITEFS_ROLE_EXAMPLES", "60")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_a_store_that_goes_back_leaves_nobody_behind() -> None:
    """A node that was restarted just then wins with a term that others know to be over."""
    world = World()

    def settled() -> bool:
        (primary,) = [node for node in world.nodes if node.serving] or [None]
        return primary is not None and all(
            node is primary or (node.following == primary.index and node.machine.term == primary.term)
            for node in world.nodes
        )

    def go_on(*indexes: int, seconds: float = 20) -> None:
        for _ in range(int(seconds / 0.1)):
            for index in indexes:
                serve(world, index)
            world.advance(0.1)
            world.check()

    for _ in range(4):
        go_on(0, 1, 2)
        world.kill(next(node for node in world.nodes if node.serving))
    go_on(0, 1, 2)
    assert settled()
    high = world.winners[-1][1]
    restarted = next(node for node in world.nodes if not node.serving)
    world.lose()
    world.kill(restarted)
    go_on(restarted.index, seconds=6)
    assert restarted.serving
    assert restarted.term < high
    go_on(0, 1, 2)
    assert settled()
    assert world.winners[-1][1] > high


def run_schedule(seed: int, moves: int, *, sync: bool = False) -> World:
    """A long run in which most goes well, so that terms change often and commits go on between."""
    rng = random.Random(seed)
    world = World(sync=sync)
    for _ in range(moves):
        index = rng.randrange(3)
        node = world.nodes[index]
        move = rng.random()
        if move < 0.35:
            serve(world, index)
        elif move < 0.55:
            world.advance(rng.choice([0.02, 0.1, 0.3, 0.5, 0.9]))
        elif move < 0.70:
            network(world, rng.randrange(10), rng.choice(["deliver", "reply", "both", "give up"]))
        elif move < 0.78:
            rng.choice([world.tick, world.read])(node)
        elif move < 0.85:
            world.work(node, rng.random() < 0.8)
        elif move < 0.91:
            world.replicate(node, rng.randint(1, 3))
            world.answer(rng.choice(world.nodes))
        elif move < 0.93:
            node.paused = not node.paused
        elif move < 0.94:
            world.hand_off(node, rng.choice(world.nodes))
        elif move < 0.95:
            world.advance(rng.choice([3.0, 3.6, 8.0]))
        elif move < 0.96:
            world.feed(node, rng.choice([steps.MountUp(), steps.MountGone()]))
        elif move < 0.961 and not sync:  # its positions are lost with it
            world.lose()
        elif move < 0.99:
            while world.commit(node) and rng.random() < 0.8:
                pass
        else:
            world.kill(node)
        world.check()
    return world


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("block", range(2))
def test_long_schedules(block: int, sync: bool) -> None:
    """With ``sync`` also: whoever wins has every acknowledged commit."""
    base = int(os.environ.get("LITEFS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    won = handed = acknowledged = 0
    for number in range(int(os.environ.get("LITEFS_ROLE_RUNS", "20"))):
        seed = base + 1000 * block + number
        print(f"LITEFS_SEED={seed}")
        world = run_schedule(seed, 1500, sync=sync)
        won, handed = won + len(world.winners), handed + world.handoffs
        acknowledged += world.acknowledged
    print(f"{won} times won, {handed} handoffs, {acknowledged} commits")
    assert won > 25
    assert handed > 0
    assert acknowledged > 200
