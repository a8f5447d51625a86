"""Everything that is read from outside, after damage: no crash, no hang, no allocation that a length field
asks for, and no exception but our own that names the place.

``tools/fuzz.py`` runs the same targets for longer, and ``tools/fuzz_sanitize.py`` with instrumented kernels.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import KINDS, MAX_SIZE, Step, mutate
from tests.fuzz.target import Target, bounded_memory, check
from tests.fuzz.targets import TARGETS

_WORD = st.integers(0, (1 << 32) - 1)
_STEPS = st.lists(st.tuples(st.integers(0, KINDS - 1), _WORD, _WORD), min_size=1, max_size=5)
_ROUNDS = 400
_SLOW_ROUNDS = 60
_SETTINGS = settings(
    deadline=None,  # check() bounds CPU time, which another load on the machine does not change
    database=None,
    phases=[Phase.generate, Phase.shrink],  # to explain a failure Hypothesis would trace every line
    suppress_health_check=[HealthCheck.too_slow],
)

_parametrized = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@_parametrized
def test_the_seeds_are_what_they_should_be(target: Target) -> None:
    """Else mutations of them would only try the first check."""
    assert any(check(target, seed) for seed in target.seeds)
    assert any(check(target, target.repair(seed)) for seed in target.seeds)


@_parametrized
def test_damaged_input(target: Target) -> None:
    @settings(_SETTINGS, max_examples=_SLOW_ROUNDS if target.slow else _ROUNDS)
    @given(st.integers(0, len(target.seeds) - 1), _STEPS, st.booleans())
    def run(seed: int, steps: list[Step], repair: bool) -> None:
        data = mutate(target.seeds[seed], steps, target.seeds, target.words)
        check(target, target.repair(data) if repair else data)

    with bounded_memory():
        run()


@_parametrized
def test_any_bytes(target: Target) -> None:
    @settings(_SETTINGS, max_examples=30)
    @given(st.binary(max_size=200))
    def run(data: bytes) -> None:
        check(target, data)
        check(target, target.repair(data))

    with bounded_memory():
        run()


def test_a_promise_that_is_broken_is_noticed() -> None:
    """The harness itself: too much memory, too much time, another exception, a message without its place."""

    def allocate(data: bytes) -> None:
        bytearray(1 << 30)

    def spin(data: bytes) -> None:
        while True:
            for _ in range(50_000_000):
                pass
            return

    def fail(data: bytes) -> None:
        raise ValueError("somewhere")

    def of(run: object, *errors: type[Exception]) -> Target:
        return Target("broken", (b"",), run, errors, "offset")  # type: ignore[arg-type]

    with bounded_memory(), pytest.raises(MemoryError):
        check(of(allocate), b"")
    with pytest.raises(ValueError, match="somewhere"):
        check(of(fail), b"")
    with pytest.raises(AssertionError, match="does not name the place"):
        check(of(fail, ValueError), b"")


def test_mutations_stay_bounded_and_use_every_kind() -> None:
    rng = random.Random(1)
    seeds = (bytes(range(200)), b"other")
    changed = set()
    for kind in range(KINDS):
        for _ in range(30):
            step = (kind, rng.getrandbits(32), rng.getrandbits(32))
            if mutate(seeds[0], [step], seeds) != seeds[0]:
                changed.add(kind)
    assert changed == set(range(KINDS))
    assert len(mutate(bytes(MAX_SIZE), [(4, 0, 63)] * 9, seeds)) == MAX_SIZE
