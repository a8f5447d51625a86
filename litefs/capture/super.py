"""Super-journals: transactions over several databases in rollback modes (ATTACH).

As in section 5 of https://sqlite.org/atomiccommit.html.
SQLite writes a file beside the main database that names the journals of all members, then that file's name at
the end of each member's journal, and commits by unlinking it: from then on nobody plays those journals back.
Here the unlink logs the transaction of every member, in all logs or in none (litefs.store.together), and
what SQLite does to the journals afterwards is cleanup. The file itself stays on this node and is gone after a
crash: recovery asks the logs, not the journals, which transactions happened.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from litefs.capture.commit import BigCommit, Refused
from litefs.sqlite.journal import super_journal_name
from litefs.store import fileops
from litefs.store.paths import encode_name
from litefs.store.together import commit_together

if TYPE_CHECKING:
    from litefs.capture.database import DatabaseCapture

_JOURNAL = "-journal"


def refuse_super(database: str, name: str) -> None:
    """There are no super-journals. Raises Refused."""
    raise Refused(
        database + _JOURNAL,
        f"its super-journal {name} is not on this mount: a transaction over databases here and elsewhere "
        "would not be atomic",
    )


class SuperJournals:
    """The super-journals on the primary's mount, by path below its root. Owned by the request loop."""

    def __init__(self, directory: Path, capture_of: Callable[[str], DatabaseCapture | None]) -> None:
        """``directory``: holds the files, and intents. ``capture_of``: of a database, if there is one."""
        self._directory = directory
        self._capture_of = capture_of
        self._named_by: dict[str, set[str]] = {}
        """Of each super-journal that exists, the databases whose journals were seen to name it."""

    def __contains__(self, path: str) -> bool:
        return path in self._named_by

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._named_by))

    def backing(self, path: str) -> Path:
        """The file behind a super-journal."""
        return self._directory / encode_name(path)

    def create(self, path: str, mode: int) -> None:
        """A new, empty super-journal. Raises OSError."""
        fileops.make_dir(self._directory)
        fd = fileops.open_file(self.backing(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)
        os.close(fd)
        self._named_by[path] = set()

    def admit(self, database: str, name: str) -> None:
        """A journal is about to name its super-journal, by the path that the client knows it by.

        Raises Refused unless that is one of these and all databases that it names are on this mount.
        """
        path = next((p for p in self._named_by if posixpath.basename(p) == posixpath.basename(name)), None)
        if path is None:
            refuse_super(database, name)
            return
        listed = self.backing(path).read_bytes().rstrip(b"\0").split(b"\0")
        for journal in listed:
            member = _on_mount(os.fsdecode(journal), name, path)
            if member is None or self._capture_of(member) is None:
                elsewhere = os.fsdecode(journal).removesuffix(_JOURNAL)
                raise Refused(
                    database + _JOURNAL,
                    f"its transaction also changes {elsewhere}, which is not on this mount: "
                    "it would not be atomic",
                )
        self._named_by[path].add(database)

    def members(self, path: str) -> dict[str, DatabaseCapture]:
        """The databases that a commit of this super-journal commits: their journals are hot and name it."""
        found = {}
        for name in sorted(self._named_by[path]):
            capture = self._capture_of(name)
            if capture is not None and capture.journal.hot and not capture.journal.committed:
                named = _named_in(capture.db.dir.journal)
                if named is not None and posixpath.basename(named) == posixpath.basename(path):
                    found[name] = capture
        return found

    def commit(self, path: str, members: dict[str, DatabaseCapture]) -> BigCommit:
        """The unlink of a super-journal: logs what its members changed, and forgets it.

        Without members it merely goes: SQLite removes it so when all of them were rolled back. While the
        job runs nothing else may change the members. It raises as ``commit_together`` and CommitRefused;
        then all is as before, and the client rolls back. Finishing it raises OutcomeUnknown.
        """
        logged: list[str] = []

        def run() -> None:
            parts = {name: capture.super_part() for name, capture in members.items()}
            changed = [part for part in parts.values() if part is not None]
            if changed:
                for capture in members.values():
                    capture.gate.check()
                commit_together(self._directory, path, changed)
                logged.extend(parts)

        def finish(error: Exception | None) -> None:
            if error is not None:
                raise error
            for capture in members.values():
                capture.journal.commit_logged()
            del self._named_by[path]
            with contextlib.suppress(OSError):  # nobody finds it any more; the next start removes it
                fileops.unlink(self.backing(path))
            for name in logged:
                members[name].gate.confirm()

        return BigCommit(run, finish)


def _on_mount(journal: str, name: str, path: str) -> str | None:
    """The database on the mount that a journal belongs to; None if it is elsewhere.

    ``name``: what the client calls the super-journal at ``path`` of the mount. The end that both share tells
    by what path the client knows the mount: it may be another one than ours.
    """
    theirs, ours = name.split("/"), path.split("/")
    while theirs and ours and theirs[-1] == ours[-1]:
        theirs.pop()
        ours.pop()
    root = "/".join([*theirs, ""])
    if not journal.startswith(root) or not journal.endswith(_JOURNAL):
        return None
    return "/".join([*ours, journal[len(root) : -len(_JOURNAL)]])


def _named_in(journal: Path) -> str | None:
    """The super-journal that a journal names; None also if there is no such file. Raises OSError."""
    try:
        fd = fileops.open_file(journal, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        return super_journal_name(lambda offset, length: fileops.pread_all(fd, length, offset), size)
    finally:
        os.close(fd)
