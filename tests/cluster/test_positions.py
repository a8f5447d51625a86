"""Every position that the log has is a state that some client committed: none is torn, none is merged."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litefs.ltx.decoder import decode
from litefs.store.paths import DataDir
from litefs.store.reader import LogReader
from litefs.store.sums import SumsFile
from litefs.types import START
from tests.support.clients.engines import KINDS
from tests.support.clients.workload import INVARIANT, INVARIANT_HOLDS, schema
from tests.support.node import Node
from tests.support.processes import Client

TRANSACTIONS = 700
"""Of each writer."""
_VERSIONS = 18
"""Offset of the file format versions: 1, 1 lets a file be read without a WAL."""


def violations(data: Path, name: str, target: Path) -> tuple[int, list[tuple[int, str]]]:
    """(records, those after which the constant sum is wrong, as TXID and what was found)."""
    directory = DataDir(data).database_dir(name)
    with closing(SumsFile(directory.sums)) as shared:
        tip = shared.sums.snapshot()[0]
    reader = LogReader(directory.log)
    assert reader.seek(START), "the log does not begin at the beginning"
    count, found, has_table = 0, [], False
    with target.open("w+b", buffering=0) as file:
        while entries := reader.read(tip, 8 << 20):
            for entry in entries:
                with entry.open() as stream:
                    record = decode(stream.read())
                size = record.header.page_size
                for index, pgno in enumerate(memoryview(record.pgnos).cast("I")):
                    file.seek((pgno - 1) * size)
                    file.write(record.images[index * size : (index + 1) * size])
                file.truncate(record.header.commit * size)
                file.seek(_VERSIONS)
                versions = file.read(2)
                file.seek(_VERSIONS)
                file.write(b"\1\1")
                with closing(sqlite3.connect(f"file:{target}?immutable=1", uri=True)) as db:
                    if has_table or db.execute("SELECT 1 FROM sqlite_schema WHERE name='account'").fetchone():
                        has_table = True
                        value = db.execute(INVARIANT).fetchone()[0]
                        if value != INVARIANT_HOLDS:
                            found.append((record.header.min_txid, value))
                file.seek(_VERSIONS)
                file.write(versions)
                count += 1
    reader.close()
    return count, found


@pytest.mark.timeout(120)
def test_every_position_is_a_committed_state(
    tmp_path: Path, make_node: Callable[..., Node], make_client: Callable[..., Client]
) -> None:
    node = make_node("primary").start()
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    path = node.path("a.db")
    sql = make_client("sql", "sqlite3")
    sql.call("open", path=path)
    sql.call("script", statements=["PRAGMA page_size=512", "PRAGMA journal_mode=WAL", *schema()])
    sql.call("close")
    writers = [
        make_client("random_writer", kind, path, seed + number, TRANSACTIONS)
        for number, kind in enumerate(KINDS)
    ]
    for writer in writers:
        assert writer.answer(60)["done"] == TRANSACTIONS
    assert node.stop() == 0
    count, found = violations(node.data, "a.db", tmp_path / "rebuilt.db")
    assert count > TRANSACTIONS
    assert not found
