"""Judges a history: what was promised to applications, and whether it was kept. No I/O.

Each function returns the violations it finds, as sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from tests.faults.history import Pause, Read, Write, token
from tests.faults.terms import Terms

LATE_SECONDS = 1.0
"""How much later than the node's answer a client may notice it. Nothing stops clients, they only compete for
processors with the nodes; the nodes' own last look at the clock is some 100 µs before their answer."""


def late_answers(writes: Iterable[Write], terms: Terms, pauses: Collection[Pause] = ()) -> list[str]:
    """Acknowledgements by a node after another one's first acknowledgement of a higher term.

    Proved if the COMMIT was called after that; and counted as proved if its answer arrived LATE_SECONDS after
    it. A process that is stopped between its last look at the clock and its answer answers late
    (docs/failover.md, "What is left"); it is one answer that it is giving then, so of each of ``pauses`` one
    does not count.
    """
    instants = list(pauses)
    acknowledged = sorted((w for w in writes if w.outcome == "ok"), key=lambda write: write.returned)
    found = [f"term {term} was led by two nodes" for term in terms.shared()]
    highest: list[tuple[int, Write]] = []
    for write in acknowledged:
        possible = terms.possible(write.node, write.invoked, write.returned)
        if not possible:
            found.append(f"{write} was acknowledged by a node that led no term")
            continue
        for term, other in reversed(highest):
            if term <= possible[-1]:
                break
            if other.node == write.node:
                continue
            if other.returned < write.invoked or other.returned + LATE_SECONDS < write.returned:
                held = next((pause for pause in instants if _held_by(write, pause)), None)
                if held is not None:
                    instants.remove(held)
                    break
                found.append(f"{write}, of term {possible[-1]} at most, came after {other} of term {term}")
                break
        if not highest or possible[0] > highest[-1][0]:
            highest.append((possible[0], write))
    return found


def _held_by(write: Write, pause: Pause) -> bool:
    """Whether a write was under way when its node was stopped, and answered as soon as that went on."""
    began = write.node == pause.node and write.invoked < pause.begin
    return began and pause.end <= write.returned < pause.end + LATE_SECONDS


def set_violations(
    writes: Collection[Write], present: Sequence[str], lost: Collection[str] | None = None
) -> list[str]:
    """Of rows that were each inserted once. ``present``: those at the end; ``lost``: those that nodes kept of
    transactions they gave up, None if nothing may be given up.
    """
    found = [f"{value} is there {count} times" for value, count in Counter(present).items() if count > 1]
    found += _unfounded(writes, present, "is there")
    found += _missing(writes, set(present), lost)
    return found


def register_violations(
    writes: Collection[Write], initial: str, final: str, lost: Collection[str] | None = None
) -> list[str]:
    """Of a register that was only changed by compare-and-set to values that nobody else writes: the changes
    that led to ``final`` must form a chain from ``initial`` on, in an order that fits their times.
    """
    by_value = {write.value: write for write in writes}
    chain: list[Write] = []
    found = []
    value = final
    while value != initial:
        write = by_value.get(value)
        if write is None or len(chain) > len(by_value):
            found.append(f"the chain of values breaks at {value!r}")
            break
        chain.append(write)
        value = write.previous
    chain.reverse()
    found += _unfounded(writes, [write.value for write in chain], "is part of the register's history")
    found += _missing(writes, {write.value for write in chain}, lost)
    latest = None
    for write in chain:
        if latest is not None and write.returned < latest.invoked:
            found.append(f"{write} comes after {latest} in the register's history")
        if latest is None or write.invoked > latest.invoked:
            latest = write
    return found


def lost_violations(writes: Collection[Write], present: Collection[str], lost: Collection[str]) -> list[str]:
    """Of what nodes kept of transactions they gave up: nothing that was never written."""
    return _unfounded(writes, set(lost) - set(present), "was kept as lost")


def session_violations(reads: Iterable[Read], lost: Collection[str] = ()) -> list[str]:
    """Reads of something older than what the session had seen and waited for, unless that was given up."""
    found = []
    for read in reads:
        for node, seen, number in zip(read.nodes, read.seen, read.found, strict=True):
            if number < seen and token("session", node, seen) not in lost:
                found.append(f"{read} went back in the row of {node}")
    return found


def _unfounded(writes: Iterable[Write], values: Iterable[str], what: str) -> list[str]:
    outcomes = {write.value: write.outcome for write in writes}
    found = []
    for value in values:
        outcome = outcomes.get(value)
        if outcome is None:
            found.append(f"{value} {what}, and nobody wrote it")
        elif outcome == "failed":
            found.append(f"{value} {what}, and its COMMIT was never called or refused as busy")
    return found


def _missing(writes: Iterable[Write], present: Collection[str], lost: Collection[str] | None) -> list[str]:
    kept = lost or ()
    where = "at the end" if lost is None else "at the end and in what was kept as lost"
    return [
        f"{write} was acknowledged and is missing {where}"
        for write in writes
        if write.outcome == "ok" and write.value not in present and write.value not in kept
    ]
