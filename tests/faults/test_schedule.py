"""The schedule of faults: what a seed decides, and what may come together."""

from __future__ import annotations

import random

import pytest

from tests.faults.schedule import CUTS, PLANNED, SHORTEST, Schedule, Strike

LONGEST = 8.0


def drawn(seed: int, count: int) -> list[Strike]:
    return list(Schedule(random.Random(seed), LONGEST).strikes(count))


@pytest.mark.parametrize("count", [1, 5, 15, 100])
def test_a_seed_decides_everything(count: int) -> None:
    strikes = drawn(count, count)
    assert strikes == drawn(count, count)
    assert sum(len(strike.faults) for strike in strikes) == count
    assert len({str(drawn(seed, count)) for seed in range(20)}) > 10


def test_fifteen_faults_are_of_every_family() -> None:
    for seed in range(200):
        faults = [fault for strike in drawn(seed, 15) for fault in strike.faults]
        kinds = [fault.kind for fault in faults]
        assert min(kinds.count(kind) for kind in ("kill", "stop", "cut")) >= 3
        assert 1 <= sum(kind in PLANNED for kind in kinds) <= 4
        assert all(SHORTEST <= fault.seconds <= LONGEST for fault in faults if fault.kind not in PLANNED)


def test_all_faults_come_up() -> None:
    faults = [fault for strike in drawn(1, 200) for fault in strike.faults]
    labels = {fault.label for fault in faults}
    assert {f"cut {cut}" for cut in CUTS} | set(PLANNED) < labels
    for kind in ("kill", "stop"):
        for target in ("primary", "replica"):
            assert {f"{kind} {target} ({which})" for which in ("fs", "node", "both")} < labels


def test_what_comes_together() -> None:
    """Nobody is told to end, or killed, whose processes may be stopped or gone; nobody loses the last member
    of an in-sync set because the one before had not come back."""
    together = [strike for seed in range(300) for strike in drawn(seed, 15)]
    for strike in together:
        first, second = strike.first, strike.second
        if strike.hasty:
            assert not first.ends_lives
            assert second is None
        if second is None:
            continue
        assert first.kind not in PLANNED
        assert 0 <= strike.after <= first.seconds
        if first.kind in ("kill", "stop") and first.target == "primary":
            assert second.kind != "terminate"
            assert second.kind not in ("kill", "stop") or second.target == "replica"
    assert sum(strike.second is not None for strike in together) > 300
