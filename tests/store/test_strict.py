"""``strict-verify``: what is wrong with a database, page by page."""

from __future__ import annotations

import os
from collections.abc import Callable

from litefs.store.paths import DatabaseDir
from litefs.store.strict import wrong_pages
from tests.store.support import Writer


def test_pages_in_the_file_and_in_the_log_are_right(
    directory: DatabaseDir, make_writer: Callable[..., Writer]
) -> None:
    writer = make_writer(directory)
    assert wrong_pages(directory, writer.db.sums_file) == []
    writer.fill(5)
    assert wrong_pages(directory, writer.db.sums_file) == [], "all is in the log only"
    writer.checkpoint()
    assert wrong_pages(directory, writer.db.sums_file) == []
    writer.run("UPDATE t SET v = randomblob(3000) WHERE id = 3")
    assert wrong_pages(directory, writer.db.sums_file) == [], "some is in the log only"


def test_a_page_that_changed_by_itself_is_found(
    directory: DatabaseDir, make_writer: Callable[..., Writer]
) -> None:
    writer = make_writer(directory)
    writer.fill(5)
    writer.checkpoint()
    with directory.database.open("r+b") as file:
        file.seek(2 * 4096 + 100)
        file.write(b"\x55")
    assert wrong_pages(directory, writer.db.sums_file) == [3]
    os.truncate(directory.database, 4096 * (writer.db.sums.page_count - 1))
    assert wrong_pages(directory, writer.db.sums_file) == [3, writer.db.sums.page_count]


def test_a_wrong_checksum_of_the_database_is_found(
    directory: DatabaseDir, make_writer: Callable[..., Writer]
) -> None:
    writer = make_writer(directory)
    writer.fill(2)
    writer.checkpoint()
    sums = writer.db.sums
    at = writer.db.point
    sums.reset(sums.page_count, at.txid, at.checksum ^ 1, sums.timestamp, at.hash)
    assert wrong_pages(directory, writer.db.sums_file) == [0]
