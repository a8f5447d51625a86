"""What applications did and what they were told, as a checker needs it.

An application appends one JSON line to its file before each COMMIT and one after it, so that a COMMIT of
which nothing more is known is one that may have happened. Times are CLOCK_MONOTONIC of the machine that all
run on, in seconds.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "failed", "unknown"]

TOKEN = re.compile(rb"\[[a-z]+\.[a-z]+\.[0-9]{8}\]")
"""What every written value looks like: it can be told apart in the pages of a database."""


def token(workload: str, node: str, number: int) -> str:
    """A value that no one else writes."""
    return f"[{workload}.{node}.{number:08}]"


@dataclass(frozen=True, slots=True)
class Write:
    """One transaction, whose COMMIT was called at ``invoked`` and answered at ``returned`` (inf: never).

    ``value`` is what it wrote; ``previous``, of the register, what it replaced. "failed": it surely never
    happened, "unknown": it may have.
    """

    workload: str
    node: str
    value: str
    invoked: float
    returned: float = math.inf
    outcome: Outcome = "unknown"
    previous: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """What a session read on ``node`` after it had waited there for what it had seen before.

    ``seen`` and ``found``: the number that it knew of, and that it found, in the rows of ``nodes``.
    """

    session: str
    node: str
    at: float
    nodes: tuple[str, ...]
    seen: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """The fs process of ``node`` stood still, from ``begin`` to ``end``."""

    node: str
    begin: float
    end: float


class Journal:
    """The file of one workload of one application."""

    def __init__(self, directory: Path, workload: str, node: str) -> None:
        self._workload, self._node = workload, node
        path = directory / f"{workload}.{node}.jsonl"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._number = 0

    def next(self) -> str:
        """A new value."""
        self._number += 1
        return token(self._workload, self._node, self._number)

    @property
    def number(self) -> int:
        """Of the last value."""
        return self._number

    def invoke(self, value: str, previous: str = "") -> None:
        """The COMMIT of ``value`` is about to be called."""
        self._put({"event": "invoke", "value": value, "previous": previous})

    def end(self, value: str, outcome: Outcome) -> None:
        """It returned."""
        self._put({"event": outcome, "value": value})

    def failed(self, value: str) -> None:
        """Something before the COMMIT failed, and it was never called."""
        self.invoke(value)
        self.end(value, "failed")

    def read(self, node: str, nodes: Iterable[str], seen: Iterable[int], found: Iterable[int]) -> None:
        """A session's read on ``node`` (see :class:`Read`)."""
        event = {"node": node, "nodes": list(nodes), "seen": list(seen), "found": list(found)}
        self._put({"event": "read", "value": "", **event})

    def _put(self, event: dict[str, object]) -> None:
        os.write(self._fd, (json.dumps({"at": time.monotonic(), **event}) + "\n").encode())


def _events(directory: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in sorted(directory.glob("*.jsonl")):
        workload, node, _ = path.name.split(".")
        for line in path.read_text().split("\n")[:-1]:
            yield workload, node, json.loads(line)


def load(directory: Path) -> tuple[list[Write], list[Read]]:
    """All writes and reads of the files in ``directory``."""
    writes: dict[str, Write] = {}
    reads = []
    for workload, node, event in _events(directory):
        at, value, kind = event["at"], event["value"], event["event"]
        if kind == "read":
            nodes, seen, found = (tuple(event[key]) for key in ("nodes", "seen", "found"))
            reads.append(Read(node, event["node"], at, nodes, seen, found))
        elif kind == "invoke":
            writes[value] = Write(workload, node, value, at, previous=event["previous"])
        else:
            outcome: Outcome = "ok" if kind == "ok" else "failed" if kind == "failed" else "unknown"
            writes[value] = replace(writes[value], returned=at, outcome=outcome)
    return list(writes.values()), reads


class Progress:
    """Counts the acknowledged writes in files that grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self._counts: dict[str, int] = {}
        self.last: tuple[float, str] = (0.0, "")
        """When and by which node something was acknowledged last."""

    def counts(self) -> dict[str, int]:
        """Acknowledged writes by workload."""
        for path in self._directory.glob("*.jsonl"):
            workload, node, _ = path.name.split(".")
            self._counts.setdefault(workload, 0)
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                event = json.loads(line)
                if event["event"] == "ok":
                    self._counts[workload] += 1
                    self.last = max(self.last, (event["at"], node))
        return dict(self._counts)
