"""Commits: what they log, what they refuse, and that the checksums follow."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator

import pytest

from litefs._core.pagesums import page_checksum
from litefs.errors import CommitRefused, FormatError, LogCorrupt, NotSupported
from litefs.ltx import decode
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.types import CHECKSUM_FLAG, START, ZERO, Position
from tests.store.support import Writer, pack

PAGE = 1024


def total(pages: dict[int, bytes]) -> int:
    value = 0
    for pgno, page in pages.items():
        value ^= page_checksum(pgno, page)
    return value | CHECKSUM_FLAG


@pytest.fixture
def db(directory: DatabaseDir) -> Iterator[Database]:
    database = Database.open(directory, node_id=77)
    yield database
    database.close()


def test_nothing_is_published_before_it_is_in_the_log(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    before = db.commit(pack(1), bytes(PAGE), 1, 0)
    prepared = db.prepare(pack(1), b"1" * PAGE, 1, 0)

    def append(log: Log, *record: object) -> None:
        assert db.position == before
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Log, "append", append)
        with pytest.raises(OSError, match="No space"):
            db.append(prepared)
    assert db.position == db.log.tip.position == before
    db.append(prepared)
    assert db.position == db.log.tip.position == prepared.position


def test_random_transactions_follow_a_model(db: Database, rng: random.Random) -> None:
    model: dict[int, bytes] = {}
    stamp = 0
    for txid in range(1, 200):
        commit = rng.randrange(1, 60)
        changed = {pgno for pgno in range(1, commit + 1) if rng.random() < 0.1 or pgno > len(model)}
        pages = {pgno: os.urandom(PAGE) for pgno in sorted(changed)}
        model = {pgno: page for pgno, page in (model | pages).items() if pgno <= commit}
        given = rng.randrange(1000)
        stamp = max(stamp, given)
        args = (pack(*pages), b"".join(pages.values()), commit, given)
        if rng.random() < 0.5:
            position = db.commit(*args, page_size=PAGE)
        else:
            batches = [(pack(pgno), page) for pgno, page in pages.items()]
            db.commit_stream(args[0], batches, commit, given, PAGE)
            position = db.position
        assert position == db.position == db.log.tip.position == Position(txid, total(model))
        assert db.sums.page_count == commit
    with LogReader(db.dir.log) as reader:
        assert reader.seek(START)
        replayed: dict[int, bytes] = {}
        before = 0
        stamps = []
        while entries := reader.read(db.position.txid):
            for entry in entries:
                record = decode(entry.body)
                numbers = memoryview(record.pgnos).cast("I")
                for at, pgno in enumerate(numbers):
                    replayed[pgno] = bytes(record.images[at * PAGE : (at + 1) * PAGE])
                replayed = {p: page for p, page in replayed.items() if p <= record.header.commit}
                assert record.header.pre_apply == before
                assert record.header.node_id == 77
                before = record.trailer.post_apply
                stamps.append(record.header.timestamp)
    assert replayed == model
    assert stamps == sorted(stamps)
    assert stamps[-1] == stamp


def test_reopens_where_it_was(db: Database) -> None:
    assert (db.page_size, db.position) == (0, ZERO)
    db.commit(pack(1, 2), os.urandom(2 * PAGE), 2, 5)
    position = db.position
    db.sync()
    assert db.sums.synced_txid == 1
    db.close()
    again = Database.open(db.dir)
    assert (again.position, again.page_size) == (position, PAGE)
    assert again.commit(pack(2), os.urandom(PAGE), 2, 5).txid == 2
    again.close()


def test_log_and_checksums_at_different_positions_need_recovery(db: Database) -> None:
    db.commit(pack(1), os.urandom(PAGE), 1, 5)
    db.append(db.prepare(pack(1), os.urandom(PAGE), 1, 5), publish=False)
    assert db.position.txid == 1
    with pytest.raises(CommitRefused, match="was not published"):
        db.prepare(pack(1), os.urandom(PAGE), 1, 5)
    with pytest.raises(LogCorrupt, match="recovery is needed"):
        Database.open(db.dir)


def test_before_publish_runs_between_log_and_checksums(db: Database) -> None:
    seen: list[tuple[int, int]] = []
    db.commit(
        pack(1),
        os.urandom(PAGE),
        1,
        5,
        before_publish=lambda: seen.append((db.log.tip.txid, db.position.txid)),
    )
    assert seen == [(1, 0)]


@pytest.mark.parametrize(
    ("pgnos", "commit", "error"),
    [
        (pack(2, 1), 3, FormatError),
        (pack(1, 5), 3, FormatError),
        (pack(1), 5, FormatError),
        (pack(0), 3, FormatError),
    ],
)
def test_refuses_what_is_no_transaction(
    db: Database, pgnos: bytes, commit: int, error: type[Exception]
) -> None:
    db.commit(pack(1, 2, 3), os.urandom(3 * PAGE), 3, 5)
    before = db.position
    images = bytes(PAGE * (len(pgnos) // 4))
    with pytest.raises(error):
        db.prepare(pgnos, images, commit, 5)
    with pytest.raises(error):
        db.commit_stream(pgnos, [(pgnos, images)], commit, 5)
    assert db.position == before == db.log.tip.position


def test_fill_supplies_pages_that_the_database_grows_by(db: Database) -> None:
    db.commit(pack(1), os.urandom(PAGE), 3, 5, fill=lambda pgno: bytes([pgno]) * PAGE)
    assert db.sums.get(3) == page_checksum(3, b"\3" * PAGE)
    db.commit(pack(1, 5), os.urandom(2 * PAGE), 5, 5, fill=lambda pgno: bytes([pgno]) * PAGE)
    assert db.sums.get(4) == page_checksum(4, b"\4" * PAGE)


def test_page_size_may_change_only_before_the_first_transaction(db: Database) -> None:
    db.prepare(pack(1), bytes(512), 1, 5)
    db.commit(pack(1), os.urandom(PAGE), 1, 5)
    with pytest.raises(NotSupported, match="page size changes from 1024 to 512"):
        db.prepare(pack(1), bytes(512), 1, 5)


def test_stopped_databases_refuse(db: Database) -> None:
    db.stop("first reason")
    db.stop("second")
    with pytest.raises(CommitRefused, match="first reason"):
        db.commit(pack(1), os.urandom(PAGE), 1, 5)


def test_a_failed_append_changes_nothing(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db.commit(pack(1, 2), os.urandom(2 * PAGE), 2, 5)
    before = db.position

    def fail(fd: int, start: int, end: int) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
        patch.setattr(fileops, "write_zeros", fail)
        with pytest.raises(OSError, match="full"):
            db.commit(pack(1), os.urandom(PAGE), 1, 5)
        with pytest.raises(OSError, match="full"):
            db.commit_stream(pack(1), [(pack(1), os.urandom(PAGE))], 1, 5)
    assert db.position == before
    assert db.sums.page_count == 2
    assert db.commit(pack(1), os.urandom(PAGE), 1, 5).txid == 2


def test_a_stream_that_changes_between_its_passes_is_refused(db: Database) -> None:
    with pytest.raises(FormatError, match="changed while"):
        db.commit_stream(pack(1), lambda: [(pack(1), os.urandom(PAGE))], 1, 5, PAGE)
    shrinking = iter([[(pack(1), bytes(PAGE)), (pack(2), bytes(PAGE))], [(pack(1), bytes(PAGE))]])
    with pytest.raises(FormatError, match="disappeared"):
        db.commit_stream(pack(1, 2), lambda: next(shrinking), 2, 5, PAGE)
    assert db.position == ZERO
    db.commit(pack(1), os.urandom(PAGE), 1, 5)


def test_growth_past_the_mapped_checksums(db: Database) -> None:
    db.commit(pack(1), os.urandom(512), 1, 5)
    pages = db.sums.capacity + 5
    pgnos = pack(*range(2, pages + 1))
    db.commit_stream(pgnos, [(pgnos, bytes(512 * (pages - 1)))], pages, 5)
    assert db.sums.page_count == pages
    assert db.sums.recompute_total() == db.position.checksum
    assert db.commit(pack(pages + 1), bytes(512), pages + 1, 5).txid == 3


def test_real_transactions(directory: DatabaseDir, make_writer: Callable[..., Writer]) -> None:
    writer = make_writer(directory, 512)
    writer.fill(20)
    writer.run("DELETE FROM t WHERE id > 3")
    writer.sql.execute("VACUUM")
    writer.log()
    assert writer.db.sums.page_count == len(writer.pages)
    assert writer.db.position.checksum == total(dict(enumerate(writer.pages, 1)))
