"""Every fuzz target, by name."""

from __future__ import annotations

from tests.fuzz import files, ltx, network, sqlite

TARGETS = (*ltx.TARGETS, *sqlite.TARGETS, *network.TARGETS, *files.TARGETS)
BY_NAME = {target.name: target for target in TARGETS}
