"""docs/feature-parity.md: each feature of Go LiteFS has a row, and each row tests that exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/feature-parity.md"

FEATURES = """
Mount
Stale unmount
allow-other
FUSE debug
Flat root
Journal modes
WAL mode
`.primary`
`.lag`
`-pos`
`-lock`
Replica read-only
Drop by unlink
statfs
Cache invalidation
LTX log
LZ4
Rolling checksum
strict-verify
Role-change recovery
Fatal exit 99
Retention
Multiple databases
Async streaming
Catch-up
Snapshot fallback
Snapshot timeout
Heartbeats
Database filter
Self-connect guard
Own-write skip
Cluster id
Consul lease
Static lease
Non-candidates
Lease handoff
Auto-promote
/promote
Clean step-down
Renew retry
HALT lock
Write forwarding
Fly role
import
export
Remote import/export
run -promote
run -if-candidate
run -with-halt-lock-on
version
Config search
Strict YAML
Env expansion
-no-expand-env
exec
exec list
if-candidate
`--` override
Signal forwarding
Exit propagation
exit-on-error
skip-sync
Proxy routing
Read-your-writes
Passthrough
always-forward
Primary wait
fly-replay
Health
Proxy timeouts
Proxy debug
Dial retry
Events
Info
Prometheus
expvar, pprof
/debug/rand
Logging
Trace log
File backup
Cloud backup
Backup batching
Restore from backup
"""
"""Of version 0.5, commit a51e72d, read from its source."""


def rows() -> dict[str, tuple[str, str, str]]:
    """The rows of the table by their feature: what is here, tests, deviation."""
    found: dict[str, tuple[str, str, str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| feature |"):
            feature, here, tests, deviation = (cell.strip() for cell in line[1:-1].split("|"))
            assert feature not in found, f"{feature} has two rows"
            found[feature] = here, tests, deviation
    return found


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """The test functions of a module that are not skipped."""
    tree = ast.parse(path.read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(
        one.name
        for one in functions
        if one.name.startswith("test_") and not any("skip" in ast.dump(mark) for mark in one.decorator_list)
    )


def test_every_feature_has_a_row_in_the_order_of_the_list() -> None:
    assert list(rows()) == FEATURES.strip().splitlines()


def test_nothing_is_missing() -> None:
    assert not [feature for feature, (here, _, _) in rows().items() if "not yet" in here]


@pytest.mark.parametrize("feature", sorted({*FEATURES.strip().splitlines()}))
def test_the_tests_of_a_row_exist(feature: str) -> None:
    here, tests, _ = rows()[feature]
    assert here
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
    assert named
    assert len(named) == tests.count("`") // 2, "not the name of a test"
    for file, name in named:
        assert name in names_in(TESTS / file), f"{file} has no {name}"
