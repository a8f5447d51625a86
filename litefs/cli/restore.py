"""``litefs restore``: databases out of an archive, as they were at a moment."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from litefs.backup.archive import Archive
from litefs.backup.finding import Goal, Moment, find, moment_text
from litefs.backup.histories import histories
from litefs.backup.target import Target
from litefs.cli.archive import KEY_FLAG, parse_moment, parse_txid, target_at
from litefs.cli.connection import FLAGS, Connection
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.progress import progress
from litefs.cli.table import size
from litefs.cli.transfer import import_database
from litefs.config_types import Duration
from litefs.errors import ArchiveMissing, ArchiveUnavailable, DatabaseNotFound, LiteFSError, NotRestorable

if TYPE_CHECKING:
    from litefs.backup.restore import Restored

_CHECKS = ("none", "quick", "full")
MAX_PARALLELISM = 64
_FLAGS = (
    Flag("o", "the file to restore to; with -all: the directory", "PATH"),
    Flag("timestamp", "as it was right before TIME: 2026-09-21T14:13:50Z, or 90s, 15m, 2h ago", "TIME"),
    Flag("txid", "as it was after this transaction, in hexadecimal (default: the newest)", "TXID"),
    Flag("timeline", "of this number, if the archive has several histories of the database", "N"),
    Flag("database", "which database, if the archive has several", "NAME"),
    Flag("all", "every database of the archive that existed then"),
    Flag("integrity-check", "have SQLite check what was restored: none, quick or full", "KIND", "none"),
    Flag("if-db-not-exists", "do nothing, and succeed, if there is a file already"),
    Flag("force", "take the place of a file that is there"),
    Flag("follow", "then keep it up with the archive, until Ctrl-C or SIGTERM; -o may be such a file"),
    Flag("follow-interval", "between two looks at the archive", "TIME", "1s"),
    Flag("parallelism", "requests at a time", "N", "4"),
    Flag("dry-run", "only say what would be restored, and of what"),
    Flag("json", "print JSON"),
    KEY_FLAG,
    Flag("into-cluster", "instead of -o: make it the database of a running cluster, as a new transaction"),
    Flag("as", "with -into-cluster: under another name", "NAME"),
    *FLAGS,
)

_HELP = """Usage:

  litefs restore -o PATH [ARGUMENTS] [SOURCE]

Restores a database as it was at any moment that the archive SOURCE holds: a directory or the URL of
an object store, also of Litestream's; without it the one of -config. The result is compared with the
checksum that the primary had at that transaction. What cannot be restored exactly is an error, which
names the nearest moments that can. With -into-cluster the database of the cluster gets the old content
by a new transaction, which every replica follows and the archive keeps: it can be undone likewise.

Arguments:

"""
USAGE = {"restore": f"{_HELP}{describe(_FLAGS)}"}
SPECS = {"restore": Spec(_FLAGS, paths=True)}


class _Shown(msgspec.Struct, rename="kebab"):
    """A database as ``-json`` has it: TXID and checksum as 16 hex digits, the time as RFC 3339, sizes in
    bytes; ``pieces``: files and records that it is made of. ``checksum`` is null with -dry-run and without
    one in the archive."""

    name: str
    timeline: int
    txid: str
    time: str
    size: int
    pieces: int
    path: str
    checksum: str | None = None
    proved: bool = False
    seconds: float = 0.0


def restore(argv: Sequence[str]) -> int:
    """``litefs restore``. Raises UsageError, ConfigError, LiteFSError."""
    arguments = parse_flags(_FLAGS, argv)
    values, switches = arguments.values, arguments.switches
    if len(arguments.rest) > 1:
        raise UsageError("too many arguments")
    if bool(values["o"]) == ("into-cluster" in switches) and "dry-run" not in switches:
        raise UsageError("required: either -o PATH or -into-cluster")
    if values["as"] and ("into-cluster" not in switches or "all" in switches):
        raise UsageError("-as names what one database becomes with -into-cluster")
    if values["integrity-check"] not in _CHECKS:
        raise UsageError(f"-integrity-check: one of {', '.join(_CHECKS)}, not {values['integrity-check']!r}")
    if values["txid"] and "all" in switches:
        raise UsageError("-txid counts the transactions of one database: not with -all")
    goal = _goal(values)
    if "follow" in switches:
        return _follow(arguments)
    parallelism = _number(values["parallelism"], "parallelism", MAX_PARALLELISM)
    found = _found(arguments, goal)
    shown = []
    with tempfile.TemporaryDirectory(prefix="litefs-restore-") as scratch:
        for archive, moment in found:
            out = _place(arguments, moment, Path(scratch))
            one = _Shown(
                moment.name,
                archive.number,
                f"{moment.txid:016x}",
                moment_text(moment.time),
                moment.size,
                len(moment.pieces),
                values["as"] or moment.name if "into-cluster" in switches else str(out),
            )
            if "dry-run" not in switches:
                restored = _restored(arguments, archive, moment, out, parallelism)
                if restored is None:
                    continue
                one.proved, one.seconds = restored.proved, round(restored.seconds, 3)
                one.checksum = f"{restored.checksum:016x}"
                if "into-cluster" in switches:
                    import_database(Connection.of(arguments), one.path, out)
                    out.unlink()
            shown.append(one)
            if "json" not in switches:
                print(_line(one, dry="dry-run" in switches))
    if "json" in switches:
        print(msgspec.json.encode(shown).decode())
    return 0


def _follow(arguments: Arguments) -> int:
    """Restore the newest moment, and keep up. Raises UsageError, LiteFSError."""
    from litefs.backup.following import Follower

    values, switches = arguments.values, arguments.switches
    if switches & {"all", "into-cluster", "dry-run", "force"} or values["txid"] or values["timestamp"]:
        raise UsageError("-follow goes with -o, and always shows the newest moment of one database")
    interval = float(Duration.parse(values["follow-interval"]))
    target = target_at(arguments.rest[0] if arguments.rest else "", arguments)
    name = _one(target, values["database"])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    follower = Follower(Path(values["o"]), lambda: _of_number(histories(target)[name], values["timeline"]))
    try:
        shown = follower.begin()
        print(f"{name}: TXID {shown.txid:016x}, followed at {values['o']}", flush=True)
        while not stop.wait(interval):
            try:
                if follower.step() and follower.shown is not None:
                    print(f"{name}: TXID {follower.shown.txid:016x}", flush=True)
            except (ArchiveUnavailable, TimeoutError) as error:
                print(f"{name}: {error}; tried again", file=sys.stderr, flush=True)
    except OSError as error:
        raise LiteFSError(str(error)) from error
    finally:
        follower.close()
    return 0


def _one(target: Target, wanted: str) -> str:
    """The database meant. Raises UsageError, DatabaseNotFound, ArchiveMissing."""
    there = histories(target)
    if wanted and wanted not in there:
        known = ", ".join(sorted(there)) or "none"
        raise DatabaseNotFound(f"{target.name} has no database {wanted}; it has: {known}")
    if not there:
        raise ArchiveMissing(f"{target.name} holds no database")
    if not wanted and len(there) > 1:
        raise UsageError(f"required: -database NAME; there are {', '.join(sorted(there))}")
    return wanted or next(iter(there))


def _place(arguments: Arguments, moment: Moment, scratch: Path) -> Path:
    """Where a database is restored to."""
    if "into-cluster" in arguments.switches:
        return scratch / "database"
    out = Path(arguments.values["o"] or moment.name)
    if "all" in arguments.switches and arguments.values["o"]:
        out = out / moment.name
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _goal(values: dict[str, str]) -> Goal:
    if values["txid"] and values["timestamp"]:
        raise UsageError("give either -txid or -timestamp")
    if values["txid"]:
        return Goal(txid=parse_txid(values["txid"]))
    if values["timestamp"]:
        return Goal(time=parse_moment(values["timestamp"], "timestamp", time.time()))
    return Goal()


def _number(text: str, flag: str, most: int) -> int:
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise UsageError(f"-{flag}: a number from 1 to {most}, not {text!r}")
    return int(text)


def _found(arguments: Arguments, goal: Goal) -> list[tuple[Archive, Moment]]:
    """What is to be restored. Raises LiteFSError, DatabaseNotFound, NotRestorable."""
    values, whole = arguments.values, "all" in arguments.switches
    target = target_at(arguments.rest[0] if arguments.rest else "", arguments)
    there = histories(target)
    if not whole:
        names = [_one(target, values["database"])]
    elif there:
        names = sorted(there)
    else:
        raise ArchiveMissing(f"{target.name} holds no database")
    found = []
    for name in names:
        archives = _of_number(there[name], values["timeline"])
        one = find(archives, goal)
        if one is not None:
            found.append(one)
        elif not whole:
            raise NotRestorable(
                f"{name}: it did not exist then: it was made later, or removed before; "
                "litefs backup status shows the moments that can be restored"
            )
    if not found:
        raise NotRestorable(f"{target.name}: no database existed then")
    return found


def _of_number(archives: list[Archive], number: str) -> list[Archive]:
    if not number:
        return archives
    wanted = _number(number, "timeline", 1 << 31)
    found = [one for one in archives if one.number == wanted]
    if not found:
        last = archives[-1]
        raise LiteFSError(f"{last.name}: there is no timeline {wanted}, the newest is {last.number}")
    return found


def _restored(
    arguments: Arguments, archive: Archive, moment: Moment, out: Path, parallelism: int
) -> Restored | None:
    """Restore one; None if -if-db-not-exists kept it. Raises LiteFSError."""
    # Only now: it brings the kernels.
    from litefs.backup.restore import Check, restore

    switches = arguments.switches
    if "if-db-not-exists" in switches and out.exists():
        return None
    check = Check(arguments.values["integrity-check"])
    try:
        with progress(f"restore {moment.name}", moment.size) as advance:
            return restore(
                archive,
                moment,
                out,
                check=check,
                parallelism=parallelism,
                replace="force" in switches,
                advance=advance,
            )
    except FileExistsError as error:
        raise LiteFSError(f"{error}; -force replaces a database, -if-db-not-exists leaves it") from None
    except OSError as error:
        raise LiteFSError(f"{out}: {error.strerror or error}") from error


def _line(one: _Shown, *, dry: bool) -> str:
    what = f"{one.name}: TXID {one.txid} of {one.time}, {size(one.size)}"
    if dry:
        return f"{what}, out of {one.pieces} files and records"
    proof = "as the primary had it" if one.proved else "the archive has no checksum of it"
    return f"{what}, restored to {one.path}: {proof}"
