"""One transaction over the logs of several databases: in all of them, or in none.

An *intent*, a file of its own, names the members and the position that each is at. It is durable before the
first record is appended and goes when the last one is durable; only then is any of them published. A crash
between leaves the intent, and what some logs have and others lack is taken out of them before the members are
recovered (docs/concurrency.md, I16).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from litefs.errors import FormatError, LiteFSError
from litefs.store import fileops
from litefs.store.database import Batch, Database, Prepared
from litefs.store.log import Log
from litefs.store.paths import DatabaseDir, DataDir, encode_name
from litefs.store.segments import extents, list_segments
from litefs.store.sums import SumsFile
from litefs.types import ZERO, Position

if TYPE_CHECKING:
    from typing_extensions import Buffer

_INTENT = ".intent"


@dataclass(frozen=True, slots=True)
class Part:
    """What one member logs: arguments of ``Database.append_stream``."""

    db: Database
    pgnos: Buffer
    batches: Callable[[], Iterable[Batch]]
    commit: int
    timestamp: int
    page_size: int


def super_dir(data: DataDir) -> Path:
    """Where super-journals and intents are: ``DATA/super``."""
    return data.path / "super"


def commit_together(directory: Path, name: str, parts: Sequence[Part]) -> None:
    """Log the parts, durably, and publish them; in a worker thread, while nothing else touches their members.

    ``name``: of the transaction, for its intent in ``directory``. Raises as ``Database.append_stream`` and
    ``Database.sync``; then no log has a part of it. If a disk fails so badly that this cannot be, the members
    are stopped, and the next start sees to it.
    """
    intent = directory / (encode_name(name) + _INTENT)
    before = {part.db.dir.name: part.db.position for part in parts}
    appended: list[tuple[Database, Prepared]] = []
    try:
        for part in parts:
            part.db.check()  # the intent must not name what an earlier one could not take out of its log
            part.db.sync()  # a member that loses what came before could not tell that it lacks its part
        fileops.write_file_atomic(intent, json.dumps({n: str(p) for n, p in before.items()}).encode())
        for part in parts:
            db = part.db
            prepared = db.append_stream(part.pgnos, part.batches, part.commit, part.timestamp, part.page_size)
            appended.append((db, prepared))
        for db, _ in appended:
            db.sync()
    except Exception as error:
        with _or_stop(parts, f"{name}: {error}; what is left of a transaction over several databases"):
            for db, _ in appended:
                db.retract(before[db.dir.name])
            fileops.unlink_durably(intent)
        raise
    with _or_stop(parts, f"{name}: the intent of a transaction over several databases"):
        # durably: what the members do next must not look like a transaction that is in some logs only
        fileops.unlink_durably(intent)
    for db, prepared in appended:
        db.publish(prepared)


@contextlib.contextmanager
def _or_stop(parts: Sequence[Part], what: str) -> Iterator[None]:
    """What fails inside stops the members until the next start."""
    try:
        yield
    except (LiteFSError, OSError) as error:
        for part in parts:
            part.db.stop(f"{what} could not be removed: {error}")


def resolve(data: DataDir) -> tuple[list[str], dict[str, str]]:
    """Finish what a crash left of such transactions, durably; before ``recover`` of any database, without a
    mount.

    Super-journals go as well: no client of theirs lives. Returns a line for each transaction that was undone,
    or whose intent cannot be understood; and databases that must not be recovered, with the reason, because
    the like could not be done. Raises OSError.
    """
    directory = super_dir(data)
    lines: list[str] = []
    failed: dict[str, str] = {}
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    for path in paths:
        members: list[tuple[DatabaseDir, Position]] = []
        if path.suffix == _INTENT:
            try:
                members = _read_intent(data, path)
            except FormatError as error:
                lines.append(str(error))
        try:
            lines += _resolve(members)
        except (LiteFSError, OSError) as error:
            reason = f"half a transaction over several databases could not be undone: {error}"
            failed |= {member.name: reason for member, _ in members}
        else:
            fileops.unlink(path)
    if paths:
        fileops.sync_dir(directory)
    return lines, failed


def _resolve(members: list[tuple[DatabaseDir, Position]]) -> list[str]:
    tips = [_tip(directory, before) for directory, before in members]
    known = all(tip is not None for tip in tips)
    behind = [tip == before for tip, (_, before) in zip(tips, members, strict=True)]
    if not known or all(behind):
        return []
    if not any(behind):
        for directory, _ in members:  # before the intent goes: a power failure may take what a kill left
            with _opened(directory) as (log, _sums):
                log.sync()
        return []
    undone = []
    for (directory, before), tip in zip(members, tips, strict=True):
        if tip != before:
            _retract(directory, before)
            undone.append(directory.name)
    return [f"{', '.join(undone)}: undid a transaction over several databases that a crash cut short"]


def _read_intent(data: DataDir, path: Path) -> list[tuple[DatabaseDir, Position]]:
    try:
        fields = json.loads(path.read_bytes())
        return [(data.database_dir(name), Position.parse(text)) for name, text in fields.items()]
    except (ValueError, TypeError, AttributeError, LiteFSError) as error:
        raise FormatError(f"{path}: not the intent of a transaction: {error}") from None


def _tip(directory: DatabaseDir, before: Position) -> Position | None:
    """The log's tip if it is at ``before`` or one record beyond, else None: then the transaction is an old
    one, or the member is gone or damaged, and nobody can tell any more that it lacks its part.
    """
    if not directory.path.is_dir():
        return None
    if not list_segments(directory.log):
        return ZERO if before == ZERO else None
    try:
        with _opened(directory) as (log, _):
            tip = log.tip.position
        beyond = list(extents(directory.log, before.txid))
    except LiteFSError:
        return None
    if tip == before:
        return tip
    follows = len(beyond) == 1 and Position(beyond[0].txid_min - 1, beyond[0].pre_apply) == before
    return tip if follows else None


def _retract(directory: DatabaseDir, before: Position) -> None:
    with _opened(directory) as (log, file):
        log.retract(before)
        file.sums.synced_txid = min(file.sums.synced_txid, before.txid)
        file.flush()


@contextlib.contextmanager
def _opened(directory: DatabaseDir) -> Iterator[tuple[Log, SumsFile]]:
    """The log, without a torn tail."""
    file = SumsFile(directory.sums, create=True)
    try:
        log = Log.open(directory.log, synced_txid=file.sums.synced_txid)
        try:
            yield log, file
        finally:
            log.close()
    finally:
        file.close()
