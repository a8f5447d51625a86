"""One step of a history: what is done, by whom, and to which databases."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

ROOT = "$ROOT"
"""Stands in a step for the directory of a side."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of one client, or with client "" one on files.

    ``databases``: those whose content it may change.
    """

    action: str
    client: str
    connection: int
    databases: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        who = f"{self.client}#{self.connection}" if self.client else "files"
        return f"{who} {self.action} {json.dumps(self.arguments)}"


def files(command: str, *names: str) -> dict[str, Any]:
    """The arguments of an ``attempt``."""
    return {"command": command, "arguments": [f"{ROOT}/{name}" for name in names]}
