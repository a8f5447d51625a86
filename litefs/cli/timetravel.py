"""``litefs mount -as-of``: the databases of an archive as they were."""

from __future__ import annotations

from pathlib import Path

from litefs import logs
from litefs.cli.archive import KEY_FLAG, parse_size, parse_time, parse_txid, target_at
from litefs.cli.flags import Arguments, Flag, UsageError
from litefs.config_sections import LogConfig

FLAGS = (
    Flag("as-of", "mount an archive as it was right before TIME, as 2026-09-21T14:13:50Z", "TIME"),
    Flag("txid", "instead of -as-of: as it was after this transaction, of one -database", "TXID"),
    Flag(
        "archive",
        "with -as-of or -txid: a directory or the URL of an object store, else as -config has it",
        "SOURCE",
    ),
    KEY_FLAG,
    Flag("database", "with -as-of or -txid: only this database of the archive", "NAME"),
    Flag("timeline", "with -as-of or -txid: of this number, if the archive has several histories", "N"),
    Flag("cache-size", "with -as-of or -txid: memory for pages", "SIZE", "64M"),
    Flag("allow-other", "with -as-of or -txid: let other users read, too"),
)
HELP = (
    "With -as-of or -txid no node is started: the databases of an archive are shown at DIR as they were, to\n"
    "be read, until SIGTERM or SIGINT; pages are fetched when they are read."
)
_CACHE = "cache-size"


def is_meant(arguments: Arguments) -> bool:
    """Whether the flags ask for an archive instead of a node."""
    return any(arguments.values[flag] for flag in ("as-of", "txid", "archive"))


def run(arguments: Arguments) -> int:
    """Serve until told to stop. Raises UsageError, LiteFSError."""
    values, switches = arguments.values, arguments.switches
    if values["dir"]:
        raise UsageError("an archive is mounted without -dir: its directory is the last argument")
    if bool(values["as-of"]) == bool(values["txid"]) or len(arguments.rest) != 1:
        raise UsageError("required: either -as-of TIME or -txid TXID, and the directory to mount at")
    if values["txid"] and not values["database"]:
        raise UsageError("-txid counts the transactions of one database: give -database, too")
    if values["timeline"] and not values["timeline"].isdigit():
        raise UsageError(f"-timeline: not a number: {values['timeline']!r}")
    cache_size = parse_size(values[_CACHE], _CACHE)
    logs.setup(LogConfig(debug="debug" in switches))
    # Only now: it brings FUSE and the kernels.
    from litefs.backup.finding import Goal
    from litefs.timetravel.mount import Options
    from litefs.timetravel.mount import run as serve

    if values["txid"]:
        goal = Goal(txid=parse_txid(values["txid"]))
    else:
        goal = Goal(time=parse_time(values["as-of"], "as-of"))
    options = Options(
        goal,
        cache_size,
        (values["database"],) if values["database"] else (),
        int(values["timeline"]) if values["timeline"] else None,
        allow_other="allow-other" in switches,
        debug="fuse.debug" in switches,
    )
    return serve(target_at(values["archive"], arguments), Path(arguments.rest[0]), options)
