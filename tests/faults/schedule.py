"""Which faults there are, and a schedule of them that a seed decides."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

Target = Literal["primary", "replica"]
Processes = Literal["fs", "node", "both"]

CUTS = (
    "primary from all",
    "primary from consul",
    "primary from replicas",
    "replica from all",
    "primary to consul",
    "consul to primary",
    "primary to replicas",
    "replicas to primary",
    "consul from all",
)
""""from" cuts both ways, "to" only what the first one sends."""
PLANNED = ("handoff", "promote", "terminate")
SHORTEST = 1.0
"""Seconds that a fault lasts at least."""
OVERLAPPING = HASTY = 0.25
"""How many of the strikes are so, if they can."""

Card = TypeVar("Card")


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind``: kill, stop, cut, or one of PLANNED. ``seconds``: how long, until what was killed is started
    again or the fault is healed. ``detail``: of a cut."""

    kind: str
    target: Target = "primary"
    processes: Processes = "both"
    detail: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        words = {"kill": "kill -9 of", "stop": "SIGSTOP of", "cut": "cut:"}.get(self.kind, self.kind)
        if self.is_cut:
            return f"{words} {self.detail} {self.seconds:.1f} s"
        if self.kind in PLANNED:
            return self.kind
        return f"{words} {self.target} ({self.processes}) {self.seconds:.1f} s"

    @property
    def label(self) -> str:
        """The kind, for the count at the end."""
        if self.kind in PLANNED:
            return self.kind
        return f"cut {self.detail}" if self.is_cut else f"{self.kind} {self.target} ({self.processes})"

    @property
    def is_cut(self) -> bool:
        return self.kind == "cut"

    @property
    def ends_lives(self) -> bool:
        """Whether a node comes back as another one: with the in-sync set of synchronous replication it is no
        member any more."""
        return self.kind == "terminate" or (self.kind == "kill" and self.processes != "fs")


LOSING = (
    Fault("stop", "primary", "node", seconds=6.0),
    Fault("cut", detail="primary from all", seconds=6.0),
)
"""Without synchronous replication commits are answered for 2 s at least that nobody else will have."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One or two faults. ``second`` begins ``after`` seconds, while the first one lasts. ``hasty``: it comes
    though the nodes may not have recovered from the one before."""

    first: Fault
    second: Fault | None = None
    after: float = 0.0
    hasty: bool = False

    @property
    def faults(self) -> tuple[Fault, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def __str__(self) -> str:
        text = str(self.first)
        if self.second is not None:
            text += f"; {self.after:.1f} s later {self.second}"
        return f"(hasty) {text}" if self.hasty else text


class Schedule:
    """Draws strikes. Every kind of fault comes up before any comes up again, in an order by chance."""

    def __init__(self, rng: random.Random, longest: float) -> None:
        """``longest``: seconds that a fault lasts at most."""
        self._rng = rng
        self._longest = longest
        self._kinds = self._deck(("kill", "kill", "stop", "stop", "cut", "cut", "planned"))
        self._cuts = self._deck(CUTS)
        self._planned = self._deck(PLANNED)
        victims: list[tuple[Target, Processes]] = [
            ("primary", "both"),
            ("primary", "fs"),
            ("primary", "node"),
            ("replica", "both"),
            ("replica", "fs"),
            ("replica", "node"),
            ("primary", "both"),
        ]
        self._killed, self._stopped = self._deck(victims), self._deck(victims)

    def strikes(self, count: int) -> Iterator[Strike]:
        """``count`` faults, of which some overlap."""
        left = count
        while left > 0:
            first, second, after = self._fault(), None, 0.0
            hasty = not first.ends_lives and self._rng.random() < HASTY
            if left > 1 and not hasty and first.kind not in PLANNED and self._rng.random() < OVERLAPPING:
                second, after = _beside(first, self._fault()), self._rng.uniform(0, first.seconds)
            strike = Strike(first, second, after, hasty)
            left -= len(strike.faults)
            yield strike

    def _fault(self) -> Fault:
        kind = next(self._kinds)
        seconds = self._rng.uniform(SHORTEST, self._longest)
        if kind == "planned":
            return Fault(next(self._planned))
        if kind == "cut":
            return Fault(kind, detail=next(self._cuts), seconds=seconds)
        target, processes = next(self._killed if kind == "kill" else self._stopped)
        return Fault(kind, target, processes, seconds=seconds)

    def _deck(self, cards: Sequence[Card]) -> Iterator[Card]:
        while True:
            yield from self._rng.sample(cards, len(cards))


def _beside(first: Fault, second: Fault) -> Fault:
    """``second``, or what comes nearest to it where ``first`` has taken the primary's processes: one that is
    stopped, or not there, can neither be told to end nor be waited for."""
    if first.target != "primary" or first.kind not in ("kill", "stop"):
        return second
    if second.kind == "terminate":
        return Fault("promote")
    return replace(second, target="replica") if second.kind in ("kill", "stop") else second
