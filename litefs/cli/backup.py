"""``litefs backup``: what an archive holds, whether it restores, a snapshot now, what may go."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from litefs import config as configuration
from litefs.backup.archive import Archive
from litefs.backup.finding import At, moment_text
from litefs.backup.histories import histories
from litefs.backup.summary import Summary, summarize
from litefs.backup.target import Target
from litefs.cli.archive import KEY_FLAG, target_at
from litefs.cli.cluster import look, towards
from litefs.cli.connection import FLAGS, WORK_TIMEOUT, Connection, RefusedByNode
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.cli.progress import progress
from litefs.cli.table import render, seconds, size
from litefs.config_backup import BackupConfig
from litefs.config_types import Duration
from litefs.errors import DatabaseNotFound, LiteFSError, PeerError

_ACTIONS = ("status", "verify", "snapshot", "prune")
_FLAGS = (
    Flag("database", "only this database", "NAME"),
    KEY_FLAG,
    Flag("json", "print JSON"),
    Flag("quick", "verify: restore the newest moment, and do not read every object"),
    Flag("timeline", "verify: this history of a database (default: the newest)", "N"),
    Flag("scratch", "verify: where to restore to (default: the directory for temporary files)", "DIR"),
    Flag("retention", "prune: keep every moment since then (default 24h, or as -config has it)", "TIME"),
    Flag("dry-run", "prune: only say what would go"),
    *FLAGS,
)

_HELP = """Usage:

  litefs backup status [ARGUMENTS] [SOURCE]
  litefs backup verify [ARGUMENTS] [SOURCE]
  litefs backup snapshot [ARGUMENTS]
  litefs backup prune [ARGUMENTS] [SOURCE]

SOURCE is an archive, a directory or the URL of an object store; without it the one of -config.

status shows what it holds and which moments can be restored; with -url or -config, how far it is
behind the primary. verify reads every object, restores the newest moment to a scratch place,
compares each page with the checksum that the primary had, and has SQLite check it; it ends with 1
if something is wrong. snapshot has the primary write a whole copy now. prune removes what the
retention does not need, as the primary does by itself.

Arguments:

"""
USAGE = {"backup": f"{_HELP}{describe(_FLAGS)}"}
SPECS = {"backup": Spec(_FLAGS, words=_ACTIONS, paths=True)}


class _Timeline(msgspec.Struct, rename="kebab"):
    """A timeline as ``-json`` has it: TXIDs as 16 hex digits, times as RFC 3339, sizes in bytes."""

    name: str
    timeline: int
    url: str
    reason: str
    size: int
    levels: dict[str, dict[str, int]]
    bundles: dict[str, int]
    oldest: dict[str, str] | None
    each_from: dict[str, str] | None
    newest: dict[str, str] | None
    snapshot: dict[str, str] | None
    as_of: str
    dropped: str | None
    behind: int | None
    """Transactions that the primary has and the archive has not; null without a node."""


def backup(argv: Sequence[str]) -> int:
    """``litefs backup``. Raises UsageError, ConfigError, LiteFSError."""
    if not argv or argv[0] not in _ACTIONS:
        if argv and argv[0].lstrip("-") in ("h", "help"):
            raise UsageError
        raise UsageError(f"required: one of {', '.join(_ACTIONS)}")
    arguments = parse_flags(_FLAGS, argv[1:])
    actions: dict[str, Callable[[Arguments], int]] = {
        "status": _status,
        "verify": _verify,
        "snapshot": _snapshot,
        "prune": _prune,
    }
    return actions[argv[0]](arguments)


def _target(arguments: Arguments) -> Target:
    """The archive that SOURCE or -config names. Raises UsageError, ConfigError."""
    if len(arguments.rest) > 1:
        raise UsageError("too many arguments")
    return target_at(arguments.rest[0] if arguments.rest else "", arguments)


def _configured(arguments: Arguments) -> BackupConfig:
    """The backup section of -config, or the defaults. Raises ConfigError."""
    path = arguments.values["config"]
    return configuration.load(path).config.backup if path else BackupConfig()


def _chosen(arguments: Arguments, target: Target) -> dict[str, list[Archive]]:
    """The timelines of the databases meant. Raises DatabaseNotFound."""
    wanted, there = arguments.values["database"], histories(target)
    if wanted and wanted not in there:
        raise DatabaseNotFound(f"database not found in {target.name}: {wanted}")
    return {wanted: there[wanted]} if wanted else there


# -- status -----------------------------------------------------------------------------------------------


def _status(arguments: Arguments) -> int:
    target = _target(arguments)
    positions = _positions(arguments)
    found = [
        (summary, _behind(summary, positions))
        for archives in _chosen(arguments, target).values()
        for summary in map(summarize, archives)
        if summary is not None
    ]
    if "json" in arguments.switches:
        print(msgspec.json.encode([_shown(summary, behind) for summary, behind in found]).decode())
    elif found:
        print("\n".join(_table(found, with_node=positions is not None)))
    else:
        print(f"{target.name} holds no database")
    return 0


def _positions(arguments: Arguments) -> dict[str, int] | None:
    """The TXIDs of the primary's databases, if a node is named. Raises PeerError."""
    if not (arguments.values["url"] or arguments.values["config"]):
        return None
    view = look(Connection.of(arguments))
    status = view.primary or view.asked
    return {one.name: int(one.txid, 16) for one in status.databases}


def _behind(summary: Summary, positions: dict[str, int] | None) -> int | None:
    if positions is None or summary.dropped is not None or summary.newest is None:
        return None
    return max(0, positions[summary.name] - summary.newest.txid) if summary.name in positions else None


def _shown(summary: Summary, behind: int | None) -> _Timeline:
    def at(one: At | None) -> dict[str, str] | None:
        return None if one is None else {"txid": f"{one.txid:016x}", "time": moment_text(one.time)}

    return _Timeline(
        summary.name,
        summary.timeline,
        summary.url,
        summary.reason,
        summary.size,
        {str(level): {"files": count, "size": bytes_} for level, (count, bytes_) in summary.levels.items()},
        {"count": summary.bundles[0], "size": summary.bundles[1]},
        at(summary.oldest),
        at(summary.each_from),
        at(summary.newest),
        at(summary.snapshot),
        moment_text(summary.as_of),
        None if summary.dropped is None else moment_text(summary.dropped),
        behind,
    )


def _table(found: Sequence[tuple[Summary, int | None]], *, with_node: bool) -> Iterator[str]:
    now = time.time()
    rows = []
    for one, behind in found:
        objects = one.bundles[0] + sum(count for count, _ in one.levels.values())
        rows.append(
            (
                one.name,
                str(one.timeline),
                "" if one.newest is None else f"{one.newest.txid:016x}",
                "" if one.oldest is None else moment_text(one.oldest.time),
                moment_text(one.as_of) if one.dropped is None else "dropped " + moment_text(one.dropped),
                "" if one.snapshot is None else seconds(max(0.0, now - one.snapshot.time / 1000)),
                str(objects),
                size(one.size),
                "" if behind is None else str(behind),
            )
        )
    columns = 9 if with_node else 8
    header = ("NAME", "TIMELINE", "TXID", "FROM", "TO", "SNAPSHOT AGE", "OBJECTS", "SIZE", "BEHIND")[:columns]
    yield render(header, [row[:columns] for row in rows], right=[name for name in header if name in _NUMBERS])
    yield ""
    levels = [
        (one.name, str(one.timeline), label, str(count), size(bytes_))
        for one, _ in found
        for label, (count, bytes_) in [
            ("bundles", one.bundles),
            *((f"level {level}", of) for level, of in one.levels.items()),
        ]
    ]
    yield render(("NAME", "TIMELINE", "KIND", "FILES", "SIZE"), levels, right=("TIMELINE", "FILES", "SIZE"))


_NUMBERS = frozenset(("TIMELINE", "SNAPSHOT AGE", "OBJECTS", "SIZE", "BEHIND"))


# -- verify -----------------------------------------------------------------------------------------------


def _verify(arguments: Arguments) -> int:
    # Only now: it brings the kernels.
    from litefs.backup.verify import Verified, verify

    target, values = _target(arguments), arguments.values
    if values["timeline"] and not values["timeline"].isdigit():
        raise UsageError(f"-timeline: not a number: {values['timeline']!r}")
    everything = "quick" not in arguments.switches
    results: list[Verified] = []
    with tempfile.TemporaryDirectory(prefix="litefs-verify-", dir=values["scratch"] or None) as scratch:
        for name, archives in _chosen(arguments, target).items():
            archive = _timeline(archives, values["timeline"])
            if archive is None:
                continue
            with progress(f"verify {name}", None) as advance:
                result = verify(archive, Path(scratch), every_object=everything, advance=advance)
            results.append(result)
            if "json" not in arguments.switches:
                _tell(result)
    if not results:
        raise LiteFSError(f"{target.name} holds no database: nothing was verified")
    if "json" in arguments.switches:
        print(msgspec.json.encode(results).decode())
    return int(not all(result.sound for result in results))


def _timeline(there: Sequence[Archive], number: str) -> Archive | None:
    """The newest timeline that was begun, or the one of that number. Raises LiteFSError."""
    from litefs.backup.finding import Timeline

    if number:
        of, there = there, [one for one in there if one.number == int(number)]
        if not there:
            raise LiteFSError(f"{of[0].name}: there is no timeline {number}, the newest is {of[-1].number}")
    return next((one for one in reversed(there) if not Timeline(one).unfinished), None)


def _tell(result: object) -> None:
    from litefs.backup.verify import Verified

    assert isinstance(result, Verified)
    proof = (
        "every page as the primary had it" if result.proved else "whole; the archive has no checksum of it"
    )
    restored = f"TXID {result.txid:016x} of {moment_text(result.time)}, {size(result.size)}"
    print(f"{result.name}: {'sound' if result.sound else 'DAMAGED'}: {restored} restored: {proof}")
    audit = result.audit
    if audit is not None:
        print(
            f"{result.name}: {audit.transactions} transactions in {audit.bundles} bundles, {audit.files} "
            f"files ({audit.proved} proved by them), {size(audit.size)}"
        )
        for note in audit.notes:
            print(f"{result.name}: {note}")
    for problem in result.problems:
        print(f"{result.name}: {problem}", file=sys.stderr)
    if audit is not None and audit.more:
        print(f"{result.name}: and {audit.more} more", file=sys.stderr)


# -- snapshot and prune -----------------------------------------------------------------------------------


def _snapshot(arguments: Arguments) -> int:
    if arguments.rest:
        raise UsageError("too many arguments")
    node, name = Connection.of(arguments), arguments.values["database"]
    view = look(node)
    if view.primary is None:
        raise PeerError(f"{node.url} is not the primary, and {view.problem}: only the primary archives")
    primary = towards(node, view.url)
    with primary.client() as client:
        primary.greet(client)
        query = {"name": name} if name else None
        try:
            with primary.exchange(
                client, "POST", "/backup/snapshot", about=name, query=query, timeout=WORK_TIMEOUT
            ) as response:
                made = response.read().decode("utf-8", "replace")
        except RefusedByNode as error:
            raise PeerError(f"{primary.url} wrote no snapshot: {error.reason or error}") from None
    if "json" in arguments.switches:
        print(made.strip())
        return 0
    for database, txid in sorted(msgspec.json.decode(made, type=dict[str, str]).items()):
        print(f"{database}: a snapshot of TXID {txid} is in the archive")
    return 0


def _prune(arguments: Arguments) -> int:
    from litefs.backup.dry import DryTarget
    from litefs.backup.pruning import Policy, prune, prune_timelines

    values, dry = arguments.values, "dry-run" in arguments.switches
    real = _target(arguments)
    target: Target = DryTarget(real) if dry else real
    retention = Duration.parse(values["retention"]) if values["retention"] else _configured(arguments).reach
    if retention < 0:
        raise UsageError("-retention must not be negative")
    policy = Policy(int(retention * 1000))
    now = int(time.time() * 1000)
    counts: dict[str, dict[str, int]] = {}
    for name, there in _chosen(arguments, target).items():
        found = counts.setdefault(name, {})
        for pruned in (*(prune(one, policy, now) for one in there), prune_timelines(there, policy, now)):
            for kind, number in pruned.objects.items():
                found[kind] = found.get(kind, 0) + number
    if "json" in arguments.switches:
        print(msgspec.json.encode(counts).decode())
        return 0
    for name, objects in counts.items():
        what = ", ".join(f"{number} {kind}" for kind, number in sorted(objects.items())) or "nothing"
        print(f"{name}: {what} {'would go' if dry else 'removed'}")
    return 0
