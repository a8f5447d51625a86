"""What a node tells its election of itself."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, cast

import trio

from litefs.cluster.lease import PrimaryInfo
from litefs.rolechange import RoleChanges
from litefs.store.database import Database
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.types import START, Point

PGNO_1 = struct.pack("=I", 1)
SEQ_OFFSET = 16
"""Of the seqlock in ``sums`` (ARCHITECTURE.md)."""


class Applied:
    """A replica that says what the test wants."""

    def __init__(self, **positions: Point) -> None:
        self._positions = positions
        self.primary: PrimaryInfo | None = None
        self.did: list[str] = []

    def positions(self) -> dict[str, Point]:
        return self._positions

    async def end_loans(self) -> None:
        self.did.append("end loans")

    def follow(self, primary: PrimaryInfo | None) -> None:
        self.primary = primary
        self.did.append("follow")


def member(data: DataDir, applied: Applied) -> RoleChanges:
    catalog = StoreCatalog(data)
    catalog.rescan()
    nothing = cast(Any, None)
    return RoleChanges(data, catalog, nothing, cast(Any, applied), nothing, 0, nothing, nothing)


def committed(data: DataDir, name: str, count: int) -> Point:
    directory = data.database_dir(name)
    directory.create()
    db = Database.open(directory)
    for _ in range(count):
        db.commit(PGNO_1, os.urandom(512), 1, 0, page_size=512)
    point = db.point
    db.close()
    return point


def test_a_fs_process_that_died_inside_an_update_leaves_what_is_in_the_log(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    positions = {"a": committed(data, "a", 3), "b": committed(data, "b", 1)}
    roles = member(data, Applied())
    assert roles.positions() == positions
    sums = data.database_dir("a").sums
    with open(sums, "r+b") as file:
        file.seek(SEQ_OFFSET)
        (seq,) = struct.unpack("<Q", file.read(8))
        file.seek(SEQ_OFFSET)
        file.write(struct.pack("<Q", seq | 1))
    assert roles.positions() == positions


def test_a_replica_has_what_its_log_has_and_nothing_of_what_is_damaged(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    shown = {name: committed(data, name, 1) for name in ("a", "b", "c")}
    logged = Point(2, 1 << 63 | 5)
    assert member(data, Applied(a=logged, b=START)).positions() == shown | {"a": logged, "b": START}


def test_what_is_lent_by_a_primary_ends_with_its_term(tmp_path: Path) -> None:
    """Also if the same node leads again, and its stream was there before the store was read."""
    data = DataDir(tmp_path)
    replica, primary = Applied(), PrimaryInfo("a", "http://a")
    roles = member(data, replica)

    async def main() -> None:
        await roles.follow(primary, 1)
        roles.connected("a", 1)
        replica.did.clear()
        roles.disconnected()
        roles.connected("a", 2)
        await roles.follow(primary, 2)
        assert replica.did == ["end loans", "follow"]

    trio.run(main)
