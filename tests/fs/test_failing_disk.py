"""Failing syncs, and checkpoints that die half-way: what may be forgotten, and what clients are told."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litefs.capture.commit import BigCommit, Refused
from litefs.capture.database import DatabaseCapture
from litefs.capture.super import refuse_super
from litefs.errors import CommitRefused, LogSyncFailed
from litefs.fs.role import RoleState
from litefs.link.messages import FOREVER
from litefs.sqlite.journal import MAGIC
from litefs.store import fileops
from litefs.store.database import Database
from litefs.store.paths import DatabaseDir, DataDir
from litefs.store.recovery import recover
from litefs.types import Role
from tests.fs.replay import replay

PAGE = 4096


class Witness:
    """A watcher that remembers what it was told, but for ``logged``."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def logged(self, name: str) -> None:
        pass

    def unpublished(self, name: str) -> None:
        self.told.append("unpublished")

    def loose(self, name: str) -> None:
        self.told.append("loose")


class Primary:
    """The capture of one database, driven with the very operations of SQLite, without a mount."""

    def __init__(
        self,
        directory: DatabaseDir,
        role: RoleState | None = None,
        admit_super: Callable[[str, str], None] = refuse_super,
    ) -> None:
        os.makedirs(directory.path, exist_ok=True)
        self.dir = directory
        self.role = role or RoleState()
        self.role.role, self.role.deadline_ns = Role.PRIMARY, FOREVER
        self.fd = os.open(directory.database, os.O_RDWR | os.O_CREAT)
        self.journal_fd = self.wal_fd = -1
        self.watcher = Witness()
        self.capture = DatabaseCapture(
            directory.name,
            Database.open(directory),
            self.role,
            self.watcher,
            lambda: self.fd,
            admit_super=admit_super,
        )

    def do(self, job: BigCommit | None) -> None:
        if job is not None:
            job.run()
            job.finish(None)

    def begin(self, old_pages: int) -> None:
        self.journal_fd = os.open(self.dir.journal, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        numbers = (0, 1, old_pages, 512, PAGE)
        header = MAGIC + b"".join(number.to_bytes(4, "big") for number in numbers)
        self.do(self.capture.journal_write(self.journal_fd, 0, header.ljust(512, b"\0"), self.fd))
        self.do(self.capture.journal_sync(self.journal_fd))

    def write(self, pages: dict[int, bytes]) -> None:
        for pgno, page in pages.items():
            self.do(self.capture.database_write(self.fd, (pgno - 1) * PAGE, page))

    def sync(self) -> None:
        self.do(self.capture.database_sync(self.fd))

    def end(self) -> None:
        self.do(self.capture.journal.unlink(str(self.dir.journal), self.fd))

    def write_wal(self, data: bytes) -> None:
        self.wal_fd = os.open(self.dir.wal, os.O_RDWR | os.O_CREAT)
        self.do(self.capture.wal_write(self.wal_fd, 0, data))

    def close(self) -> None:
        self.capture.db.close()
        for fd in (self.fd, self.journal_fd, self.wal_fd):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    made = Primary(DataDir(tmp_path / "data").database_dir("a.db"))
    yield made
    made.close()


@pytest.fixture
def versions(tmp_path: Path) -> list[dict[int, bytes]]:
    """A database after each of three transactions, page by page."""
    path = tmp_path / "source.db"
    found = []
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("CREATE TABLE t(a)")
        for value in ("one", "two", "three"):
            db.execute("INSERT INTO t VALUES(?)", (value,))
            data = path.read_bytes()
            found.append({at // PAGE + 1: data[at : at + PAGE] for at in range(0, len(data), PAGE)})
    db.close()
    return found


def failing(monkeypatch: pytest.MonkeyPatch, target: Callable[[str], bool]) -> None:
    """Make fdatasync fail for the files whose path *target* accepts."""
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        if target(os.readlink(f"/proc/self/fd/{fd}")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(fileops, "fdatasync", fdatasync)


def content(primary: Primary) -> dict[int, bytes]:
    data = primary.dir.database.read_bytes()
    return {at // PAGE + 1: data[at : at + PAGE] for at in range(0, len(data), PAGE)}


def test_log_that_cannot_be_synced_after_the_append(
    primary: Primary, versions: list[dict[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record exists, so the journal ends: no reader may roll back what the log says is committed."""
    primary.begin(0)
    primary.write(versions[0])
    primary.sync()
    primary.end()
    primary.begin(2)
    primary.write(versions[1])
    primary.sync()
    failing(monkeypatch, lambda path: ".seg" in path)
    with pytest.raises(LogSyncFailed):
        primary.end()
    assert not primary.dir.journal.exists()
    assert content(primary) == versions[1] == replay(primary.dir.log)[1]
    with pytest.raises(Refused, match="could not be synced"):
        primary.begin(2)
    primary.do(primary.capture.mend())  # the disk still fails
    with pytest.raises(Refused, match="could not be synced"):
        primary.begin(2)
    monkeypatch.undo()
    primary.do(primary.capture.mend())
    assert len(list(primary.dir.log.iterdir())) == 2, "not that file again"
    primary.begin(2)
    primary.write(versions[2])
    primary.end()
    assert content(primary) == versions[2] == replay(primary.dir.log)[1]


@pytest.mark.parametrize("lost", [False, True])
def test_a_database_file_that_could_not_be_synced_is_written_again(
    primary: Primary, versions: list[dict[int, bytes]], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The kernel calls clean what the disk never got. Commits go on once all pages were written again, from
    the cache; not if the cache lost one of them meanwhile.
    """
    primary.begin(0)
    primary.write(versions[0])
    primary.sync()
    primary.end()
    primary.begin(2)
    primary.write(versions[1])
    primary.capture.db.stop("the log could not be synced", until_synced=True)
    failing(monkeypatch, lambda path: path.endswith("/database"))
    with pytest.raises(OSError, match="Input/output"):
        primary.sync()
    assert primary.capture.mend() is None, "a transaction is open"
    primary.write(versions[0])
    primary.end()
    primary.do(primary.capture.mend())
    assert primary.capture.db.stopped, "the disk still fails"
    monkeypatch.undo()
    if lost:
        os.pwrite(primary.fd, versions[1][2], PAGE)
    written: list[int] = []
    real = fileops.pwrite_all

    def pwrite_all(fd: int, data: bytes, offset: int) -> None:
        written.append(len(data))
        real(fd, data, offset)

    monkeypatch.setattr(fileops, "pwrite_all", pwrite_all)
    primary.do(primary.capture.mend())
    if lost:
        assert not written
        with pytest.raises(Refused, match="could not be synced"):
            primary.begin(2)
        return
    assert written == [2 * PAGE]
    assert content(primary) == versions[0]
    primary.begin(2)
    primary.write(versions[1])
    primary.sync()
    primary.end()
    assert content(primary) == versions[1] == replay(primary.dir.log)[1]


def test_journal_that_cannot_be_removed_after_the_append(
    primary: Primary, versions: list[dict[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database stops: nobody may play the journal back over the commit. The next start sets it right."""
    primary.begin(0)
    primary.write(versions[0])
    primary.end()
    primary.begin(2)
    primary.write(versions[1])

    def unlink(path: object) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(fileops, "unlink", unlink)
        with pytest.raises(OSError, match="Input/output"):
            primary.end()
    with pytest.raises(Refused, match="could not be ended"):
        primary.write(versions[0])
    primary.close()
    primary.fd = primary.journal_fd = -1
    recover(primary.dir)
    assert content(primary) == versions[1]


def test_database_that_cannot_be_synced(
    primary: Primary, versions: list[dict[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction can be rolled back; nothing is committed any more, and nothing counts as durable."""
    primary.begin(0)
    primary.write(versions[0])
    primary.end()
    durable = primary.capture.db.sums.durable_txid
    primary.begin(2)
    primary.write(versions[1])
    failing(monkeypatch, lambda path: path.endswith("/database"))
    with pytest.raises(OSError, match="Input/output"):
        primary.sync()
    with pytest.raises(CommitRefused, match="fsync failed"):
        primary.end()
    primary.write(versions[0])
    primary.end()
    assert content(primary) == versions[0] == replay(primary.dir.log)[1]
    assert primary.capture.db.sums.durable_txid == durable
    with pytest.raises(Refused, match="fsync failed"):
        primary.begin(2)


def test_pages_cut_off_and_grown_again_are_logged(primary: Primary, versions: list[dict[int, bytes]]) -> None:
    """Nobody wrote them, and still they are other pages than before."""
    primary.begin(0)
    primary.write(versions[0])
    primary.end()
    primary.begin(2)
    primary.capture.database_truncate(primary.fd, PAGE)
    primary.capture.database_truncate(primary.fd, 2 * PAGE)
    primary.end()
    assert content(primary) == replay(primary.dir.log)[1]
    assert content(primary)[2] == bytes(PAGE)


def test_a_refused_commit_whose_page_ends_in_zeros_is_not_valid_on_the_disk(
    tmp_path: Path, primary: Primary
) -> None:
    """Space that is allocated ahead reads as zeros: with them a frame may be whole before its end is written."""
    source = tmp_path / "zeros.db"
    with closing(sqlite3.connect(source, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA secure_delete=ON")
        db.execute("CREATE TABLE t(a)")
        db.execute("INSERT INTO t VALUES(zeroblob(3000))")  # at the end of its page
        first = os.path.getsize(f"{source}-wal")
        db.execute("UPDATE t SET a = zeroblob(2999)")
        wal, database = Path(f"{source}-wal").read_bytes(), source.read_bytes()
    frame = 24 + PAGE
    assert len(wal) == first + frame
    assert not any(wal[-24:])
    primary.write_wal(wal[:first])
    assert primary.capture.db.position.txid == 2
    primary.role.deadline_ns = 0
    fd = primary.wal_fd
    refused = False
    for start, stop in (
        (first, first + 24),
        (first + 24, first + frame - 24),
        (first + frame - 24, len(wal)),
    ):
        try:
            primary.do(primary.capture.wal_write(fd, start, wal[start:stop]))
        except CommitRefused:
            refused = True
            break
    assert refused
    copy = tmp_path / "copy.db"
    copy.write_bytes(database)
    Path(f"{copy}-wal").write_bytes(primary.dir.wal.read_bytes())
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT length(a) FROM t").fetchall() == [(3000,)]


def test_a_checkpoint_never_takes_back_a_newer_image(
    primary: Primary, versions: list[dict[int, bytes]], tmp_path: Path
) -> None:
    """A checkpointer dies before it says how far it came; the next one may copy only older frames.

    What it would write over may be in no log any more, since the file held it durably.
    """
    primary.begin(0)
    primary.write(versions[0])
    primary.sync()
    primary.end()
    copy = tmp_path / "copy.db"
    copy.write_bytes(primary.dir.database.read_bytes())
    db = sqlite3.connect(copy, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    base = {1: copy.read_bytes()[:PAGE], 2: versions[0][2]}
    primary.begin(2)
    primary.write(base)
    primary.sync()
    primary.end()
    db.execute("INSERT INTO t VALUES('two')")
    db.execute("INSERT INTO t VALUES('three')")
    wal = copy.with_name("copy.db-wal").read_bytes()
    db.close()
    frames = [wal[at + 24 : at + 24 + PAGE] for at in range(32, len(wal), 24 + PAGE)]
    assert len(frames) == 2
    primary.write_wal(wal)
    capture, sums = primary.capture, primary.capture.db.sums
    assert sums.txid == 4
    assert sums.durable_txid == 2
    primary.write({2: frames[0]})
    assert content(primary)[2] == frames[0]
    primary.sync()
    assert sums.durable_txid == 2, "only an older frame is in the file"
    with pytest.raises(Refused, match="not in the database file"):
        capture.wal.unlink()
    primary.write({2: frames[1]})
    primary.sync()
    assert sums.durable_txid == 4
    primary.write({2: frames[0]})
    assert content(primary)[2] == frames[1]
    # the kernel now caches the older image: the WAL must not end before SQLite has copied the newest again
    with pytest.raises(Refused, match="not in the database file"):
        capture.wal.unlink()
    primary.write({2: frames[1]})
    capture.wal.unlink()


def test_a_checkpoint_that_knows_less_than_the_log_is_told_of(
    primary: Primary, versions: list[dict[int, bytes]], tmp_path: Path
) -> None:
    """A wal-index recovered over a broken chain lacks the commit that made the database grow."""
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(a)")
        primary.write_wal(copy.with_name("copy.db-wal").read_bytes())
    pages = copy.read_bytes()
    assert len(pages) == 2 * PAGE
    primary.write({1: pages[:PAGE], 2: pages[PAGE:]})
    assert primary.capture.wal.pending == 0
    with pytest.raises(Refused, match="only in the database file"):
        primary.capture.database_truncate(primary.fd, PAGE)
    assert primary.watcher.told == ["unpublished"]
