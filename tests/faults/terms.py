"""Which node led which term, and when, read from the logs of the nodes.

A node says "term N: promoting" before its mount may commit anything in that term, and commits of that term
end before it can be told of another one. So what a node answers belongs to a term that it began before, and
at the latest to the last one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass

_PROMOTING = re.compile(r'time=(\S+) .*msg="term (\d+): promoting"')
LOG_SECONDS = 0.05
"""How much a time in a log may differ from a client's: the log shows milliseconds of the clock of the day."""


@dataclass(frozen=True, slots=True)
class Reign:
    """A term, and the time from which ``node`` may have answered commits in it."""

    term: int
    node: str
    begin: float


def reigns(node: str, log: str, offset: float) -> list[Reign]:
    """The terms of a node in the order in which it led them.

    ``offset``: clock of the day minus CLOCK_MONOTONIC, seconds.
    """
    found = []
    for line in log.splitlines():
        if match := _PROMOTING.search(line):
            moment = datetime.datetime.fromisoformat(match[1]).timestamp()
            found.append(Reign(int(match[2]), node, moment - offset))
    return found


class Terms:
    """Who led what."""

    def __init__(self, reigns: Iterable[Reign]) -> None:
        self._by_node: dict[str, list[Reign]] = {}
        for reign in sorted(reigns, key=lambda reign: reign.begin):
            self._by_node.setdefault(reign.node, []).append(reign)

    @property
    def count(self) -> int:
        """Terms that began."""
        return sum(map(len, self._by_node.values()))

    def possible(self, node: str, invoked: float, returned: float) -> range:
        """From the lowest to the highest term in which ``node`` may have answered a commit of that time."""
        led = self._by_node.get(node, [])
        before = [reign.term for reign in led if reign.begin <= invoked - LOG_SECONDS]
        during = [
            reign.term for reign in led if invoked - LOG_SECONDS < reign.begin <= returned + LOG_SECONDS
        ]
        terms = before[-1:] + during
        return range(min(terms), max(terms) + 1) if terms else range(0)

    def shared(self) -> list[int]:
        """Terms that more than one node led: there must be none."""
        leaders: dict[int, set[str]] = {}
        for node, led in self._by_node.items():
            for reign in led:
                leaders.setdefault(reign.term, set()).add(node)
        return sorted(term for term, nodes in leaders.items() if len(nodes) > 1)
