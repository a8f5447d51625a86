"""A torn, truncated or bit-flipped log: the tail is cut, or the log refused with a clear error."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from litefs.types import Position
from tests.support.node import Node, pages_equal, wait_equal, wait_present
from tests.support.processes import Client, ClientError

SEGMENT_HEADER = 64
RECORD_HEAD = struct.Struct("<IIQ")
ROWS = 12


@dataclass(frozen=True, slots=True)
class Record:
    """Where a record lies in a segment (layout: ARCHITECTURE.md); ``body`` is the offset after its head."""

    path: Path
    head: int
    body: int
    length: int


def records(node: Node, name: str) -> list[Record]:
    """The records of a database's log, read independently of the code under test."""
    found = []
    for path in sorted((node.data / "dbs" / name / "log").glob("*.seg")):
        content = path.read_bytes()
        at = SEGMENT_HEADER
        while at + RECORD_HEAD.size <= len(content):
            length, _, _ = RECORD_HEAD.unpack_from(content, at)
            if length == 0:
                break
            found.append(Record(path, at, at + RECORD_HEAD.size, length))
            at += RECORD_HEAD.size + -(-length // 8) * 8
    return found


def flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def fill(node: Node, client: Client) -> list[Position]:
    """A WAL database with one row per transaction and no checkpoint; the position after each row."""
    client.call("open", path=node.path("app.db"))
    create = [
        "PRAGMA journal_mode=WAL",
        "PRAGMA wal_autocheckpoint=0",
        "CREATE TABLE t(n INTEGER, data BLOB)",
    ]
    client.call("script", statements=create)
    positions = []
    for row in range(1, ROWS + 1):
        client.call("execute", statement=f"INSERT INTO t VALUES({row}, randomblob(300))")
        position = node.position("app.db")
        assert position is not None
        positions.append(position)
    return positions


def rows(client: Client, path: str) -> list[int]:
    client.call("open", path=path, readonly=True)
    assert client.call("execute", statement="PRAGMA integrity_check") == [["ok"]]
    return [row[0] for row in client.call("execute", statement="SELECT n FROM t ORDER BY n")]


def damage_tail(kind: str, last: Record, source: random.Random) -> None:
    if kind == "truncated":
        truncate(last.path, last.body + source.randrange(last.length))
    elif kind == "torn head":
        truncate(last.path, last.head + source.randrange(1, RECORD_HEAD.size))
    elif kind == "flipped head":
        flip(last.path, last.head + source.randrange(4, RECORD_HEAD.size), source.randrange(8))
    else:
        flip(last.path, last.body + source.randrange(last.length), source.randrange(8))


@pytest.mark.parametrize("kind", ["truncated", "torn head", "flipped head", "flipped body"])
def test_damaged_tail_of_the_primary_is_cut(
    kind: str, make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    node = make_node("primary").start()
    client = make_client("sql", "sqlite3")
    positions = fill(node, client)
    node.kill("both")
    client.close()
    damage_tail(kind, records(node, "app.db")[-1], random.Random(seed))
    node.start()
    assert node.position("app.db") == positions[-2]
    assert rows(make_client("sql", "sqlite3"), node.path("app.db")) == list(range(1, ROWS))
    assert "cut" in node.log.read_text()
    # What follows is an ordinary history again.
    writer = make_client("sql", "apsw")
    writer.call("open", path=node.path("app.db"))
    writer.call("execute", statement="INSERT INTO t VALUES(100, NULL)")
    position = node.position("app.db")
    assert position is not None
    assert position.txid == positions[-1].txid
    node.stop()


def test_damage_before_the_tail_is_refused(
    make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    """Records after the damaged one are valid: cutting would lose them, applying would be wrong."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    source = random.Random(seed)
    node = make_node("primary").start()
    client = make_client("sql", "sqlite3")
    fill(node, client)
    node.kill("both")
    client.close()
    log = records(node, "app.db")
    victim = log[source.randrange(1, len(log) - 1)]
    flip(victim.path, victim.body + source.randrange(victim.length), source.randrange(8))
    before = victim.path.read_bytes()

    process = node.launch()
    try:
        node.wait_ready()
    except AssertionError:
        # The node may refuse to start at all: then it says why and ends.
        assert process.wait(10) != 0
        node.process = None
    else:
        # Or it serves everything else: nothing can be written to this database.
        writer = make_client("sql", "sqlite3")
        writer.call("open", path=node.path("app.db"))
        with pytest.raises(ClientError):
            writer.call("execute", statement="INSERT INTO t VALUES(100, NULL)")
    assert victim.path.name in node.log.read_text(), "the message names the segment"
    assert victim.path.read_bytes() == before, "nothing of the log was changed"


def test_damaged_tail_of_a_replica_is_fetched_again(
    primary_and_replica: tuple[Node, Node], make_client: Callable[..., Client]
) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    primary, replica = primary_and_replica
    fill(primary, make_client("sql", "sqlite3"))
    wait_present(replica, "app.db")
    wait_equal(primary, replica, "app.db")
    replica.kill("both")
    log = records(replica, "app.db")
    damage_tail("flipped body", log[-1], random.Random(seed))
    replica.start()
    wait_equal(primary, replica, "app.db")
    pages_equal(primary, replica, "app.db")
    assert rows(make_client("sql", "sqlite3"), replica.path("app.db")) == list(range(1, ROWS + 1))
