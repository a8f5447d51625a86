"""Commits that nobody announced, on real nodes: whatever follows, primary and replica stay equal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.unpublished import (
    CASES,
    ROWS,
    SEQUELS,
    MakeClient,
    Scene,
    expected,
    insist,
    last_close,
    truncate,
    unannounced,
)


def assert_equal(primary: Node, replica: Node, name: str, scene: Scene, *further: str) -> None:
    wait_present(replica, name)
    wait_equal(primary, replica, name)
    pages_equal(primary, replica, name)
    assert scene.rows() == expected(scene, *further)
    scene.holder.call("open", path=replica.path(name), readonly=True)
    assert scene.holder.call("execute", statement=ROWS) == expected(scene, *further)


@pytest.mark.parametrize("sequel", SEQUELS, ids=lambda sequel: sequel.__name__)
def test_primary_and_replica_stay_equal(
    sequel: Callable[[Scene], None], primary_and_replica: tuple[Node, Node], make_client: MakeClient
) -> None:
    primary, replica = primary_and_replica
    for cause, who in CASES:
        name = f"{cause}-{who}.db"
        print(name)
        with unannounced(make_client, primary.path(name), cause, who) as scene:
            insist(sequel, scene)
            further = [] if sequel in (truncate, last_close) else ["next"]
            assert_equal(primary, replica, name, scene, *further)


@pytest.mark.parametrize("which", ["fs", "both"])
def test_recovery(which: str, make_node: Callable[..., Node], make_client: MakeClient) -> None:
    """The fs process dies right after the commit; or both do, and the node is started again."""
    primary = make_node("primary").start()
    replica = make_node("replica", primary=primary).start()
    for cause, who in CASES[::2]:
        name = f"{cause}-{who}.db"
        print(name)
        with unannounced(make_client, primary.path(name), cause, who) as scene:
            pid = primary.fs_pid()
            if which == "fs":
                primary.kill("fs")
                primary.wait_recovered(pid)
            else:
                primary.kill("both")
                primary.start()
            scene.holder = make_client("sql", "sqlite3")
            assert_equal(primary, replica, name, scene)
