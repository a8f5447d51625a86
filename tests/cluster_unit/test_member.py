"""What a node tells its election of itself."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, cast

from litefs.rolechange import RoleChanges
from litefs.store.database import Database
from litefs.store.paths import DataDir
from litefs.stream.catalog import StoreCatalog
from litefs.types import ZERO, Position

PGNO_1 = struct.pack("=I", 1)
SEQ_OFFSET = 16
"""Of the seqlock in ``sums`` (ARCHITECTURE.md)."""


class Applied:
    """A replica's sink that says what the test wants."""

    def __init__(self, **positions: Position) -> None:
        self._positions = positions

    def positions(self) -> dict[str, Position]:
        return self._positions


def member(data: DataDir, applied: Applied) -> RoleChanges:
    catalog = StoreCatalog(data)
    catalog.rescan()
    nothing = cast(Any, None)
    return RoleChanges(data, catalog, nothing, cast(Any, applied), nothing, 0, nothing, nothing)


def committed(data: DataDir, name: str, count: int) -> Position:
    directory = data.database_dir(name)
    directory.create()
    db = Database.open(directory)
    position = ZERO
    for _ in range(count):
        position = db.commit(PGNO_1, os.urandom(512), 1, 0, page_size=512)
    db.close()
    return position


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
    logged = Position(2, 1 << 63 | 5)
    assert member(data, Applied(a=logged, b=ZERO)).positions() == shown | {"a": logged, "b": ZERO}
