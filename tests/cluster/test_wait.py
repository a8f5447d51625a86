"""Read-your-writes: who waits for a position on a replica reads what was written on the primary.

The helper for applications finds node and database by the path alone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from litefs.types import Position
from tests.support.node import Node, wait_equal, wait_present
from tests.support.processes import Client, ClientError, open_to_others, pause, wait_until

SESSIONS = 3
COMMITS = 60

NOBODY = 65534


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_reads_never_go_back_after_a_wait(
    mode: str, primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    sql = make_client("sql", "sqlite3")
    path = primary.path("app.db")
    sql.call("open", path=path)
    sql.call("execute", statement=f"PRAGMA journal_mode={mode}")
    sql.call("execute", statement="CREATE TABLE session(id INTEGER PRIMARY KEY, value)")
    for number in range(SESSIONS):
        sql.call("execute", statement=f"INSERT INTO session VALUES({number}, -1)")
    wait_present(replica, "app.db")
    sessions = [make_client("session") for _ in range(SESSIONS)]
    # every other session reads on the primary, too: readers there may lag behind the log by a moment
    readers = [(primary if number % 3 == 2 else replica).path("app.db") for number in range(SESSIONS)]
    with ThreadPoolExecutor(SESSIONS) as pool:
        answers = list(
            pool.map(
                lambda number: sessions[number].call(
                    "run",
                    60,
                    writer=path,
                    reader=readers[number],
                    number=number,
                    count=COMMITS,
                    seed=seed + number,
                ),
                range(SESSIONS),
            )
        )
    print("slowest waits:", [f"{answer['slowest']:.3f} s" for answer in answers])
    assert [answer["back"] for answer in answers] == [[]] * SESSIONS


def has_lag(helper: Client, path: str) -> bool:
    return helper.call("look", path=path)["lag"] is not None


def test_what_the_helper_finds(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client], tmp_path: Path
) -> None:
    primary, replica = primary_and_replica
    sql, helper = make_client("sql", "sqlite3"), make_client("session")
    primary.files("mkdir", path=primary.path("sub"))
    for name in ("app.db", "sub/b.db"):
        sql.call("open", path=primary.path(name))
        sql.call("execute", statement="CREATE TABLE t(a)")
        wait_present(replica, name)
        position = str(primary.position(name))
        here = helper.call("look", path=primary.path(name))
        assert here.pop("lag") == 0
        assert here == {
            "name": name,
            "mount": str(primary.mount),
            "position": position,
            "primary": None,
            "is_primary": True,
        }
        wait_until(
            partial(has_lag, helper, replica.path(name)),
            10,
            "the replica has a lag",
        )
        there = helper.call("look", path=replica.path(name))
        assert 0 <= there.pop("lag") < 20
        assert there == here | {"mount": str(replica.mount), "primary": "primary", "is_primary": False}
    link = tmp_path / "link"
    link.symlink_to(replica.mount / "sub")
    assert helper.call("look", path=str(link / "b.db"))["name"] == "sub/b.db"
    with pytest.raises(ClientError, match="NotOnMount"):
        helper.call("look", path=str(tmp_path / "x.db"))
    with pytest.raises(ClientError, match="WaitTimeout"):
        helper.call("wait", path=replica.path("app.db"), txid=99, seconds=0.2)
    with pytest.raises(ClientError, match="DatabaseNotFound"):
        helper.call("wait", path=replica.path("c.db"), txid=1, seconds=0.2)


WITHOUT_SOCKET = """
import os, sys
from litefs import client
client.position(sys.argv[1])  # whatever Python imports late may be out of reach afterwards
os.setgid({nobody}); os.setuid({nobody})
try:
    client.is_primary(sys.argv[1])
except client.NodeUnreachable:
    print("unreachable")
print(client.wait(sys.argv[1], 1, timeout=5).txid)
try:
    client.wait(sys.argv[1], 99, timeout=0.2)
except client.WaitTimeout:
    print("late")
"""


def test_who_has_no_access_to_the_socket_waits_all_the_same(
    make_node: Callable[..., Node], make_client: Callable[..., Client], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.fail("this test needs root, to become somebody else")
    node = make_node("primary", fuse={"dir": str(tmp_path / "primary" / "mnt"), "allow-other": True}).start()
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=node.path("app.db"))
    sql.call("execute", statement="CREATE TABLE t(a)")
    open_to_others(tmp_path)
    script = WITHOUT_SOCKET.format(nobody=NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", script, node.path("app.db")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.splitlines() == ["unreachable", "1", "late"], done.stderr


WITHOUT_ANSWER = """
import sys
from litefs import client
client.ANSWER_SECONDS = 0.5
try:
    print(client.wait(sys.argv[1], 1, timeout=0.5))
except client.NoAnswer:
    print("no answer")
"""


def test_a_node_that_does_not_answer_is_not_taken_for_one_without_a_socket(
    make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    """``NAME-pos`` shows what is logged; whether readers see that only the node could tell."""
    node = make_node("primary").start()
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=node.path("app.db"))
    sql.call("execute", statement="CREATE TABLE t(a)")
    assert node.process is not None
    pause(node.process.pid)
    try:
        command = [sys.executable, "-c", WITHOUT_ANSWER, node.path("app.db")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    finally:
        node.process.send_signal(signal.SIGCONT)
    assert done.stdout == "no answer\n", done.stderr


def test_the_socket_is_made_anew_after_a_kill(
    make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    node = make_node("primary").start()
    sql, helper = make_client("sql", "sqlite3"), make_client("session")
    sql.call("open", path=node.path("app.db"))
    sql.call("execute", statement="CREATE TABLE t(a)")
    sql.call("close")
    node.kill("both")
    node.start()
    assert helper.call("look", path=node.path("app.db"))["is_primary"] is True
    assert helper.call("wait", path=node.path("app.db"), txid=1, seconds=5).startswith("0000000000000001/")


def test_a_commit_under_halt_that_readers_do_not_see_yet(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    """The replica's log moves before its client publishes, here never: that one is killed between the two."""
    primary, replica = primary_and_replica
    sql, reader, halting = (
        make_client("sql", "sqlite3"),
        make_client("sql", "sqlite3"),
        make_client("halting"),
    )
    sql.call("open", path=primary.path("app.db"))
    for statement in ("PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES('before')"):
        sql.call("execute", statement=statement)
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    reader.call("open", path=replica.path("app.db"), readonly=True)
    halting.call("halt", 30, path=replica.path("app.db"))
    victim = make_client("failing")
    victim.call("open", path=replica.path("app.db"))
    victim.call("break_next", cause="kill")
    with pytest.raises(ClientError, match="Ended"):
        victim.call("execute", statement="INSERT INTO t VALUES('killed')")
    position = replica.position("app.db")
    assert position is not None
    assert position == primary.position("app.db")
    url = f"{replica.url}/db/app.db/wait?txid={position}"
    assert reader.call("execute", statement="SELECT a FROM t") == [["before"]]
    assert httpx.get(f"{url}&timeout=0.5").status_code == 504
    halting.call("unhalt", 30)
    assert httpx.get(f"{url}&timeout=10", timeout=15).status_code == 200
    assert reader.call("execute", statement="SELECT a FROM t") == [["before"], ["killed"]]


def test_a_position_of_another_history(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    primary, replica = primary_and_replica
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=primary.path("app.db"))
    sql.call("execute", statement="CREATE TABLE t(a)")
    first = primary.position("app.db")
    assert first is not None
    sql.call("execute", statement="INSERT INTO t VALUES(1)")
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    for node in (primary, replica):
        url = f"{node.url}/db/app.db/wait?timeout=0&txid="
        assert httpx.get(f"{url}{first}").status_code == 200
        assert httpx.get(f"{url}{first.txid:x}").status_code == 200
        assert httpx.get(f"{url}{Position(first.txid, first.checksum ^ 1)}").status_code == 409
