"""``litefs run -promote`` on nodes that elect their primary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.support import litefs
from tests.cli.test_nodes import INSERT
from tests.support.elected import DATABASE, Elected, lease_settings
from tests.support.node import Node


@pytest.fixture
def elected(tmp_path: Path, make_node: Callable[..., Node]) -> Iterator[Elected]:
    with lease_settings("directory", tmp_path) as lease:
        yield Elected(make_node, lease, names=("a", "b"))


def test_run_promotes_first(elected: Elected) -> None:
    """The command may write at once: Go LiteFS does not wait for the promotion."""
    elected.await_following()
    node = elected.nodes[elected.replicas()[0]]
    done = litefs(
        "run", "-promote", "-if-candidate", "-v", "-url", node.url,
        "--", sys.executable, "-c", INSERT, node.path(DATABASE),
    )  # fmt: skip
    assert (done.status, done.err.splitlines()) == (
        0,
        ["fetching node metadata", "promoting node to primary", "promotion successful"],
    )
    again = litefs("run", "-promote", "-v", "-url", node.url, "--", "true")
    assert "node is already primary, skipping promotion" in again.err
