"""The commit over several databases when something of it fails, driven with the very operations of SQLite."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from litefs.capture.commit import Refused
from litefs.capture.super import SuperJournals
from litefs.errors import CommitRefused, LiteFSError, LogSyncFailed, OutcomeUnknown
from litefs.fs.role import RoleState
from litefs.sqlite.journal import MAGIC
from litefs.store import fileops
from litefs.store.database import Database, Prepared
from litefs.store.paths import DataDir
from litefs.store.recovery import recover
from litefs.store.together import resolve, super_dir
from litefs.types import Role
from tests.fs.harness import python, serving
from tests.fs.replay import replay
from tests.fs.test_failing_disk import PAGE, Primary, content, failing, versions

__all__ = ["versions"]

NAMES = ("a.db", "b.db")
SUPER = "a.db-mj0A1B2C9D3"
CALLED = f"/mnt/{SUPER}"
Versions = list[dict[int, bytes]]


class Gate(RoleState):
    """A gate whose lease may end right after a commit was logged."""

    late = False

    def confirm(self) -> None:
        if self.late:
            raise OutcomeUnknown("the lease ended")
        super().confirm()


class Attached:
    """Two databases and a client that changes both in one transaction."""

    def __init__(self, root: Path) -> None:
        self.data = DataDir(root / "data")
        self.role = Gate()
        self.supers = SuperJournals(
            super_dir(self.data),
            lambda name: self.members[name].capture if name in self.members else None,
        )
        self.members: dict[str, Primary] = {}
        for name in NAMES:
            self.members[name] = Primary(self.data.database_dir(name), self.role, self.supers.admit)

    def begin(self, pages: dict[int, bytes], listed: tuple[str, ...] = NAMES) -> None:
        """Phase one of the commit: everything up to the unlink of the super-journal."""
        old = self.members["a.db"].capture.db.sums.page_count
        for member in self.members.values():
            member.begin(old)
        self.supers.create(SUPER, 0o644)
        text = b"".join(f"/mnt/{name}-journal\0".encode() for name in listed)
        self.supers.backing(SUPER).write_bytes(text)
        for member in self.members.values():
            self.name(member)
            member.write(pages)
            member.sync()

    def name(self, member: Primary, name: str = CALLED) -> None:
        """Write the super-journal's name at the end of a journal, in SQLite's five writes."""
        raw = name.encode()
        offset = os.fstat(member.journal_fd).st_size
        for part in (
            (262145).to_bytes(4, "big"),
            raw,
            len(raw).to_bytes(4, "big"),
            sum(raw).to_bytes(4, "big"),
            MAGIC,
        ):
            member.do(member.capture.journal_write(member.journal_fd, offset, part, member.fd))
            offset += len(part)

    def commit(self) -> None:
        """Unlink the super-journal."""
        job = self.supers.commit(SUPER, self.supers.members(SUPER))
        error: Exception | None = None
        try:
            job.run()
        except (LiteFSError, OSError) as exc:
            error = exc
        job.finish(error)

    def end(self) -> None:
        """End the journals."""
        for member in self.members.values():
            member.capture.check_writable(f"{member.dir.name}-journal")
            member.end()

    def txids(self) -> list[int]:
        return [member.capture.db.position.txid for member in self.members.values()]

    def holds(self, pages: dict[int, bytes]) -> bool:
        """Whether files and logs of both hold just these pages."""
        return all(content(m) == pages == replay(m.dir.log)[1] for m in self.members.values())

    def close(self) -> None:
        for member in self.members.values():
            member.close()
            member.fd = member.journal_fd = -1


@pytest.fixture
def attached(tmp_path: Path, versions: Versions) -> Iterator[Attached]:
    """Both databases hold the first version."""
    made = Attached(tmp_path)
    made.begin(versions[0])
    made.commit()
    made.end()
    yield made
    made.close()


def test_a_commit_whose_reply_came_too_late(attached: Attached, versions: Versions) -> None:
    """It exists in both; the client that is told otherwise cannot undo it, only end the journals."""
    attached.begin(versions[1])
    attached.role.late = True
    with pytest.raises(OutcomeUnknown):
        attached.commit()
    assert SUPER not in attached.supers
    assert attached.txids() == [2, 2]
    assert [m.capture.db.sums.durable_txid for m in attached.members.values()] == [1, 1]
    for member in attached.members.values():
        with pytest.raises(Refused, match="is committed"):
            member.write(versions[0])
        with pytest.raises(Refused, match="is committed"):
            member.capture.database_truncate(member.fd, PAGE)
    attached.role.role = Role.REPLICA
    attached.end()
    assert attached.txids() == [2, 2]
    assert [m.capture.db.sums.durable_txid for m in attached.members.values()] == [2, 2]
    assert attached.holds(versions[1])


def test_files_that_were_not_synced_keep_their_records(attached: Attached, versions: Versions) -> None:
    """Retention may drop what the database file durably holds, and no more."""
    attached.begin(versions[1])
    first, second = attached.members.values()
    first.write(versions[1])  # after its sync
    attached.commit()
    attached.end()
    assert attached.txids() == [2, 2]
    assert [m.capture.db.sums.durable_txid for m in (first, second)] == [1, 2]


def test_no_lease_no_record(attached: Attached, versions: Versions) -> None:
    attached.begin(versions[1])
    attached.role.deadline_ns = 0
    with pytest.raises(CommitRefused, match="lease"):
        attached.commit()
    assert SUPER in attached.supers
    for member in attached.members.values():
        member.write(versions[0])
        member.end()
    attached.commit()  # what SQLite does when the last member is rolled back
    assert SUPER not in attached.supers
    assert attached.txids() == [1, 1]
    assert attached.holds(versions[0])


def test_space_for_one_record_only(
    attached: Attached, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached.begin(versions[1])
    real = fileops.pwrite_all

    def full(fd: int, data: bytes, offset: int) -> None:
        if "b.db/log" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(fileops, "pwrite_all", full)
        with pytest.raises(OSError, match="No space"):
            attached.commit()
    assert attached.txids() == [1, 1]
    assert not list(super_dir(attached.data).glob("*.intent"))
    attached.commit()  # SQLite would roll back first, but nothing depends on that
    attached.end()
    assert attached.txids() == [2, 2]
    assert attached.holds(versions[1])


def test_a_log_that_cannot_be_synced(
    attached: Attached, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say what the disk has of it: the members stop, and the next start decides for all of them."""
    attached.begin(versions[1])
    with monkeypatch.context() as patch:
        failing(patch, lambda path: "b.db/log" in path)
        with pytest.raises(LogSyncFailed):
            attached.commit()
    assert attached.txids() == [1, 1]
    for member in attached.members.values():
        member.write(versions[0])
        member.end()
        with pytest.raises(Refused, match="could not be removed"):
            member.begin(2)
    attached.close()
    _, failed = resolve(attached.data)
    assert not failed
    assert [recover(attached.data.database_dir(name)).position.txid for name in NAMES] == [1, 1]
    assert not list(super_dir(attached.data).iterdir())


def test_names_that_are_not_admitted(attached: Attached, versions: Versions) -> None:
    member = attached.members["a.db"]
    member.begin(2)
    with pytest.raises(Refused, match="is not on this mount"):
        attached.name(member)
    for journal in ("/elsewhere/c.db-journal", "/mnt/c.db-journal", "/mnt/b.db", "a.db-journal"):
        attached.supers.create(SUPER, 0o644)
        attached.supers.backing(SUPER).write_bytes(f"/mnt/a.db-journal\0{journal}\0".encode())
        with pytest.raises(Refused, match="is not on this mount: it would not be atomic"):
            attached.name(member)
        assert not attached.supers.members(SUPER)
        attached.commit()
    member.end()


def test_a_name_in_two_pieces(attached: Attached, versions: Versions) -> None:
    """As the kernel cuts writes at the borders of its pages: it is the last piece that counts."""
    member = attached.members["a.db"]
    member.begin(2)
    raw = b"/elsewhere/" + SUPER.encode()
    tail = raw + len(raw).to_bytes(4, "big") + sum(raw).to_bytes(4, "big") + MAGIC
    for cut in range(1, len(MAGIC)):
        member.do(member.capture.journal_write(member.journal_fd, 4096, tail[:-cut], member.fd))
        with pytest.raises(Refused, match="is not on this mount"):
            member.capture.journal_write(member.journal_fd, 4096 + len(tail) - cut, tail[-cut:], member.fd)
        member.do(member.capture.journal.truncate(member.journal_fd, 512, member.fd))
    member.end()


def test_a_super_journal_that_only_one_still_names(attached: Attached, versions: Versions) -> None:
    """A client died before the commit: the next one rolls one member back and keeps the super-journal."""
    attached.begin(versions[1])
    first, second = attached.members.values()
    first.write(versions[0])
    first.end()
    assert list(attached.supers.members(SUPER)) == ["b.db"]
    second.write(versions[0])
    second.end()
    attached.commit()
    assert attached.txids() == [1, 1]
    assert attached.holds(versions[0])


class Died(BaseException):
    """The process ends here: nothing cleans up."""


@pytest.mark.parametrize("appended", [0, 1, 2])
def test_the_next_start_after_a_death_between_the_records(
    tmp_path: Path, versions: Versions, monkeypatch: pytest.MonkeyPatch, appended: int
) -> None:
    """One record of two is as good as none; both, though nobody published them, are the transaction."""
    attached = Attached(tmp_path)
    attached.begin(versions[0])
    attached.commit()
    attached.end()
    attached.begin(versions[1])
    real, real_sync, calls = Database.append_stream, Database.sync, []

    def append_stream(db: Database, *arguments: Any) -> Prepared:
        if len(calls) == appended:
            raise Died
        calls.append(db)
        return real(db, *arguments)

    def sync(db: Database) -> None:
        if calls:
            raise Died
        real_sync(db)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "append_stream", append_stream)
        patch.setattr(Database, "sync", sync)
        with pytest.raises(Died):
            attached.commit()
    attached.close()
    read = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT a FROM t').fetchall())"
    with serving(tmp_path) as fs:
        undone = [line for line in fs.mounted.reports if "undid a transaction" in line]
        assert undone == (
            ["a.db: undid a transaction over several databases that a crash cut short"]
            if appended == 1
            else []
        )
        expected = "('one',) ('two',)\n" if appended == 2 else "('one',)\n"
        assert [python(read, fs.mount / name) for name in NAMES] == [expected] * 2
        python(
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('ATTACH ? AS b', sys.argv[2:]);"
            "db.execute('DELETE FROM main.t'); db.execute('DELETE FROM b.t'); db.commit()",
            *(fs.mount / name for name in NAMES),
        )
        assert [python(read, fs.mount / name) for name in NAMES] == ["\n"] * 2
        fs.stop()
    assert [replay(DataDir(tmp_path / "data").database_dir(name).log)[0].txid for name in NAMES] == [
        (3 if appended == 2 else 2)
    ] * 2
