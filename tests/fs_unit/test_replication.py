"""Commits that wait for replicas in the fs process: what ends the wait, and that it always ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from litefs.errors import CommitRefused, OutcomeUnknown
from litefs.fs.replication import MARGIN_SECONDS, DatabaseGate, Replicated
from litefs.fs.role import RoleState
from litefs.link.messages import FOREVER, Replication
from litefs.link.rules import SyncRule, SyncRules
from litefs.types import Role

RULES = SyncRules(1, (SyncRule("off", 0),), timeout=2.0)


class Scene:
    """A primary for ever, and the gate of database ``a``."""

    def __init__(self, rules: SyncRules = RULES) -> None:
        self.role = RoleState()
        self.role.role, self.role.deadline_ns = Role.PRIMARY, FOREVER
        self.woken = 0
        self.replicated = Replicated(self.role, rules, self._wake)
        self.gate = DatabaseGate(self.role, self.replicated, "a")

    def _wake(self) -> None:
        self.woken += 1

    def tell(
        self,
        counted: int = 0,
        *,
        present: int | None = None,
        waiting: bool = True,
        settled: bool = True,
        hold: int = 0,
        released: int = 0,
        dropped: tuple[str, ...] = (),
    ) -> bool:
        here = counted if present is None else present
        txids = {"a": released} if released else {}
        return self.replicated.told(Replication(waiting, counted, here, settled, hold, txids, dropped))

    async def waited(self, txid: int) -> float:
        """Seconds that a commit waited. Raises what it is answered with."""
        begun = trio.current_time()
        self.gate.confirm()
        assert self.gate.owes_answer
        await self.gate.answerable(txid)
        return trio.current_time() - begun


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await test()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_commit_waits_until_it_is_released_by_enough() -> None:
    async def main() -> None:
        scene = Scene()
        scene.tell(1)
        async with trio.open_nursery() as nursery:

            async def acknowledge() -> None:
                await trio.sleep(1)
                scene.tell(1, released=6)
                await trio.sleep(0.5)
                scene.tell(1, released=7)

            nursery.start_soon(acknowledge)
            assert await scene.waited(7) == pytest.approx(1.5)
            assert scene.woken == 1
        assert await scene.waited(7) == 0

    run(main)


def test_what_was_released_in_another_role_counts_for_nothing() -> None:
    """Its transactions may have gone to lost/ since."""

    async def main() -> None:
        scene = Scene()
        scene.tell(1, released=9)
        assert await scene.waited(9) == 0
        scene.replicated.begin()
        scene.tell(1)
        with pytest.raises(OutcomeUnknown, match="did not acknowledge"):
            await scene.waited(9)

    run(main)


def test_a_logged_commit_is_never_refused_only_unknown() -> None:
    async def main() -> None:
        scene = Scene()
        scene.tell(1)
        with pytest.raises(OutcomeUnknown, match="did not acknowledge"):
            await scene.waited(1)
        assert trio.current_time() == pytest.approx(RULES.timeout + MARGIN_SECONDS, abs=0.3)
        scene.tell(0, settled=False)
        with trio.move_on_after(1) as scope:
            await scene.waited(1)
        assert scope.cancelled_caught, "it was given up while the set may become another one"
        scene.tell(0)
        with pytest.raises(OutcomeUnknown, match="too few replicas"):
            await scene.waited(1)

    run(main)


@pytest.mark.parametrize("how", ["role", "deadline"])
def test_the_end_of_the_role_ends_the_wait(how: str) -> None:
    async def main() -> None:
        scene = Scene()
        scene.tell(1)

        async def end() -> None:
            await trio.sleep(1)
            if how == "role":
                scene.role.role = Role.REPLICA
                scene.replicated.begin()
            else:
                scene.role.deadline_ns = 1
            scene.tell(1, released=5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(OutcomeUnknown, match="the lease ended"):
                await scene.waited(5)
            assert trio.current_time() < 1.5

    run(main)


def test_too_few_replicas_refuse_before_the_log() -> None:
    async def main() -> None:
        scene = Scene()
        with pytest.raises(CommitRefused, match="1 replicas in sync are required, 0 are connected"):
            scene.gate.check()
        scene.tell(1)
        scene.gate.check()
        scene.tell(1, present=0, settled=False)
        with pytest.raises(CommitRefused):
            scene.gate.check()
        free = DatabaseGate(scene.role, scene.replicated, "off")
        free.check()
        free.confirm()
        assert not free.owes_answer

    run(main)


def test_a_lost_connection_is_waited_for_once() -> None:
    async def main() -> None:
        scene = Scene()
        scene.tell(1)
        assert not scene.gate.doubtful
        scene.tell(1, present=0, settled=False)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def back() -> None:
                await trio.sleep(1)
                scene.tell(1)

            nursery.start_soon(back)
            await scene.gate.cleared_up()
            assert trio.current_time() - begun == pytest.approx(1)
        scene.tell(1, present=0, settled=False)
        begun = trio.current_time()
        await scene.gate.cleared_up()
        await scene.gate.cleared_up()
        assert trio.current_time() - begun == pytest.approx(RULES.timeout)

    run(main)


def test_nobody_waits_for_replicas_once_the_role_has_ended() -> None:
    async def main() -> None:
        scene = Scene()
        scene.tell(1, present=0, settled=False)
        assert scene.gate.doubtful
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.gate.cleared_up)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            scene.role.become(Role.REPLICA, 2, 0, None)
            scene.replicated.begin()
        assert trio.current_time() == begun
        assert not scene.gate.doubtful

    run(main)


def test_with_degrade_nothing_is_refused_and_the_begin_of_waiting_is_told() -> None:
    async def main() -> None:
        scene = Scene(SyncRules(2, degrade=True))
        assert not scene.tell(0, waiting=False)
        scene.gate.check()
        assert await scene.waited(3) == 0
        assert scene.tell(0, hold=1, settled=False)
        assert not scene.tell(1, hold=1, released=3)
        assert await scene.waited(3) == 0

    run(main)


def test_what_was_said_of_a_removed_database_does_not_count_for_the_next() -> None:
    async def main() -> None:
        scene = Scene()
        scene.tell(1, released=100)
        scene.replicated.removed("a")
        scene.tell(1, released=101)
        with trio.move_on_after(1) as scope:
            await scene.waited(1)
        assert scope.cancelled_caught
        scene.tell(1, dropped=("a",))
        scene.tell(1, released=1)
        assert await scene.waited(1) == 0

    run(main)
