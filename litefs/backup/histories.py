"""Which databases a target holds: below names, or the one whose timeline it is itself."""

from __future__ import annotations

import re

from litefs.backup.archive import Archive, databases, timelines
from litefs.backup.target import Target

_LEVEL = re.compile(r"[0-9]\Z")
_FLAT_LEVEL = re.compile(r"000[0-9]\Z")


def histories(target: Target) -> dict[str, list[Archive]]:
    """The timelines of each database, the oldest first. A target that is one timeline, as Litestream takes in
    its URLs, has one database, named as its last component. Raises ArchiveUnavailable."""
    if _is_timeline(target):
        name = target.name.rstrip("/").rpartition("/")[2] or "database"
        return {name: [Archive(target, "", name)]}
    return {name: timelines(target, name) for name in databases(target)}


def _is_timeline(target: Target) -> bool:
    there = target.directories("")
    if target.layout.flat:
        return any(_FLAT_LEVEL.match(name) for name in there)
    return "ltx" in there and any(_LEVEL.match(name) for name in target.directories("ltx/"))
